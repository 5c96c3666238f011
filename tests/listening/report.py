"""Listens to a model in full and says what it reached.

    python -m tests.listening.report [--model FOLDER] [--codec FOLDER] [--codec-only]
        [--voices FOLDER] [--sentences 100] [--dialogues 10]

Prints a table with limits and goals, and last of all one line of JSON. The model speaks for about a
quarter of an hour, and listening takes some eight minutes more on 2 cores. Nothing is asserted; how
fast the model is depends on the machine, and is only told.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from handler import make_handler
from tests.listening import ears, measures, texts
from tests.listening.gates import SPEED, TOLD_APART, Gate
from tests.listening.measures import Handler, Recording, Values
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.config import load_settings
from worker.settings import Settings
from worker.startup import is_trained, start
from worker.weights import EMBEDDED, find_codec, find_dia

Details = dict[str, Any]  # ready for JSON

logger = logging.getLogger("report")

VOICES = Path(__file__).parents[2] / "voices"
NARRATORS = ("narrator_warm", "narrator_deep")
PLAIN_SENTENCES = 4  # in each voice of flite


def measure_model(handler: Handler, sentences: int, dialogues: int) -> tuple[Values, Details]:
    """Every number about a model, and what lies behind them."""
    logger.info("one sentence, timed")
    speed = measures.realtime_factor(handler, measures.sentence_jobs(1))
    logger.info("%d sentences", sentences)
    spoken = measures.speak(handler, measures.sentence_jobs(sentences))
    values = {SPEED: speed, **measures.sentence_values(spoken)}

    logger.info("the long text, in %d voices", len(NARRATORS))
    jobs = [measures.long_text_job(name) for name in NARRATORS]
    voices = [measures.shipped_voice(VOICES / name) for name in NARRATORS]
    long_texts = measures.speak(handler, jobs)
    each = [measures.long_text_values(*pair) for pair in zip(long_texts, voices, strict=True)]
    values |= {gate: _worst(gate, [one[gate] for one in each]) for gate in each[0]}

    logger.info("%d dialogues", dialogues)
    talks = measures.speak(handler, measures.dialogue_jobs(dialogues))
    speakers = [measures.speaker_values(talk) for talk in talks]
    values[TOLD_APART] = measures.told_apart(speakers)

    chunks = [chunk for one in (*spoken, *long_texts, *talks) for chunk in one.chunks]
    forced = sum(one.forced for one in (*spoken, *long_texts, *talks))
    return values, {
        "seconds_of_sentences": round(sum(one.seconds for one in spoken), 1),
        "seconds_shortest_and_longest": [
            round(pick(one.seconds for one in spoken), 2) for pick in (min, max)
        ],
        "word_errors_of_sentences": [round(one.errors.rate, 3) for one in spoken],
        "quality_of_sentences": [round(one.quality, 2) for one in spoken],
        "long_texts": [_named(one) for one in each],
        "word_errors_of_dialogues": round(measures.word_errors(talks), 4),
        "dialogues": [_named(one) for one in speakers],
        "chunks": len(chunks),
        "ended_by_themselves_of_all_chunks": round(1 - forced / len(chunks), 4),
    }


def measure_codec(codec: Codec, voices: Sequence[Path], folder: Path) -> tuple[Values, Details]:
    """Every number about a codec, and what lies behind them.

    Args:
        codec: the codec.
        voices: folders of voices that it was not trained on.
        folder: for flite's files. Its voices are told of, but do not count: they are nothing like
            a person's.
    """
    sources = [measures.shipped_voice(voice) for voice in voices]
    plain = [
        measures.flite(voice, text, folder)
        for voice in measures.FLITE_VOICES
        for text in texts.sentences(PLAIN_SENTENCES)
        if measures.has_flite()
    ]
    logger.info("the codec, on %d recordings and %d of flite", len(sources), len(plain))
    decoded = [measures.through_codec(codec, recording) for recording in sources]
    plain_decoded = [measures.through_codec(codec, recording) for recording in plain]
    return measures.codec_values(sources, decoded), {
        "codec": [_codec_details(*pair) for pair in zip(sources, decoded, strict=True)],
        "codec_words": sum(one.errors.words for one in sources),
        "codec_on_flite": _named(measures.codec_values(plain, plain_decoded)) if plain else None,
    }


def table(values: Values) -> str:
    """One line for each number."""
    width = max(len(gate.name) for gate in values)
    rows = [
        f"{gate.name:{width}}  {gate.shown(value):>17}  {_bound(gate, gate.limit):>17}  "
        f"{_bound(gate, gate.goal):>9}  {'passes' if gate.passes(value) else 'FAILS'}"
        for gate, value in values.items()
    ]
    return "\n".join([f"{'':{width}}  {'measured':>17}  {'limit':>17}  {'goal':>9}", *rows])


def _bound(gate: Gate, bound: float | None) -> str:
    return "–" if bound is None else f"{'≤' if gate.at_most else '≥'} {gate.shown(bound)}"


def _codec_details(source: Recording, after: Recording) -> Details:
    return {
        "voice": source.name,
        "word_errors": [round(one.errors.rate, 3) for one in (source, after)],
        "quality": [round(one.quality, 2) for one in (source, after)],
        "similarity": round(source.at(after.sample_rate).like(after), 3),
    }


def _worst(gate: Gate, values: Sequence[float]) -> float:
    return max(values) if gate.at_most else min(values)


def _named(values: Values) -> dict[str, float]:
    return {gate.name: round(value, 4) for gate, value in values.items()}


def _settings(arguments: argparse.Namespace, library: Path) -> Settings:
    chosen = {"DIA_MODEL": arguments.model, "DAC_MODEL": arguments.codec}
    # A copy of the library, since codes are kept beside the recordings.
    shutil.copytree(VOICES, library)
    return load_settings(
        {
            **{name: value for name, value in chosen.items() if value},
            "VOICE_LIBRARY_PATH": str(library),
            "MODEL_DEVICE": "cpu",
        }
    )


def _measure(arguments: argparse.Namespace, folder: Path) -> tuple[Values, Details]:
    settings = _settings(arguments, folder / "voices")
    files = find_dia(settings, cuda_available=False)
    if not is_trained(files.config):
        logger.warning("%s is untrained: it will fail, except perhaps its codec", files.name)
    codec = load_codec(find_codec(settings, files), torch.device("cpu"))
    voices = [VOICES / name for name in NARRATORS]
    if arguments.voices:
        voices += sorted(file.parent for file in arguments.voices.glob("*/voice.yaml"))
    values, details = measure_codec(codec, voices, folder)
    if arguments.codec_only:
        return values, details
    service = start(settings)
    try:
        more, behind = measure_model(
            make_handler(service, settings), arguments.sentences, arguments.dialogues
        )
    finally:
        service.close()
    model = service.model.model_dump()
    return {**values, **more}, {**details, **behind, "model": model}


def main() -> None:
    """Measures, prints the table and the line of JSON."""
    parser = argparse.ArgumentParser(description="listens to a model in full")
    parser.add_argument("--model", default=EMBEDDED, help="as DIA_MODEL; the embedded one if not")
    parser.add_argument("--codec", help="as DAC_MODEL; the model's own if it is not given")
    parser.add_argument("--codec-only", action="store_true", help="leave the model alone")
    parser.add_argument(
        "--voices",
        type=Path,
        help="a library of further voices that the codec was not trained on, audio.flac in each",
    )
    parser.add_argument("--sentences", type=int, default=100, help="at most 120")
    parser.add_argument("--dialogues", type=int, default=len(texts.DIALOGUES), help="at most 10")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    if missing := ears.missing_packages():
        parser.error(f"not installed: {', '.join(missing)}; see requirements.txt beside this file")
    with tempfile.TemporaryDirectory() as folder:
        values, details = _measure(arguments, Path(folder))
    result = {
        "passes": all(gate.passes(value) for gate, value in values.items() if gate != SPEED),
        "values": _named(values),
        "limits": {gate.name: gate.limit for gate in values},
        "threads": torch.get_num_threads(),
        **details,
    }
    sys.stdout.write(f"{table(values)}\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
