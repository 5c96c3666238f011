"""dia-tiny is listened to, through the handler, on texts that it was not trained on.

Each test generates once for all that it judges, since generating is what takes the time.
"""

from __future__ import annotations

from tests.listening import measures
from tests.listening.gates import TOLD_APART, require, said
from tests.listening.measures import Handler, Recording

SENTENCES = 8
DIALOGUES = 4


def test_sentences_are_understood_sound_well_and_end_by_themselves(trained: Handler) -> None:
    spoken = measures.speak(trained, measures.sentence_jobs(SENTENCES))
    require(measures.sentence_values(spoken), [one.heard for one in spoken])


def test_a_long_text_is_spoken_whole_in_the_voice_of_the_library(
    trained: Handler, warm: Recording
) -> None:
    (spoken,) = measures.speak(trained, [measures.long_text_job(warm.name)])
    require(measures.long_text_values(spoken, warm), [chunk.heard for chunk in spoken.chunks])


def test_the_speakers_of_a_dialogue_are_told_apart(trained: Handler) -> None:
    spoken = measures.speak(trained, measures.dialogue_jobs(DIALOGUES))
    each = [measures.speaker_values(one) for one in spoken]
    require({TOLD_APART: measures.told_apart(each)}, [said(values) for values in each])
