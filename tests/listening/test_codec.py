"""The codec of dia-tiny is listened to alone, on voices that it was not trained on.

flite's voices are not among them: they are nothing like a person's, and not installed everywhere.
`report.py` tells how they fare.
"""

from __future__ import annotations

from tests.listening import measures
from tests.listening.gates import require
from tests.listening.measures import Recording
from worker.codec.codec import Codec


def test_the_narrators_are_understood_and_sound_well_after_the_codec(
    trained_codec: Codec, warm: Recording, deep: Recording
) -> None:
    decoded = [measures.through_codec(trained_codec, voice) for voice in (warm, deep)]
    require(measures.codec_values([warm, deep], decoded), [one.heard for one in decoded])
