"""The same work by others: decode steps of the same weights, in the same run, on the same device.

    python -m bench.peers --random-weights               # full size, on one GPU

A fixed number of steps from a text alone, for one stream and for a batch: by this engine; by the
`transformers` port (`DiaForConditionalGeneration`, its own `generate`); and by nari-labs/dia where
it can be imported (`dia.model.Dia`; the package called `dia` on the package index is another
program). All in one precision, with guidance, top-k and top-p, and none with a codec. A figure is
the median time of a whole generation over its steps, the text's encoding included; `times_slower`
is it beside this engine's. Prints a table, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.subject import (
    SENTENCE,
    Subject,
    build_engine,
    elapsed_ms,
    load_subject,
    parser_for,
    random_prompt,
    times_realtime,
)
from bench.table import finish, show, significant
from worker.dia.checkpoint import export_dia
from worker.dia.layouts import Layout
from worker.dia.tokenizer import encode_text
from worker.engine.sequence import SamplingParams, Sequence

PARAMS = SamplingParams()
TEXT = SENTENCE.strip()

Generate = Callable[[int], object]  # a generation of so many streams, `steps` long
Peer = tuple[str, Generate]


def our_engine(subject: Subject, options: argparse.Namespace) -> Peer:
    """This engine, with as many slots as the largest batch."""
    engine = build_engine(subject.model, max(options.batches))
    # A sequence's last frame is complete when the most delayed channel has it, and one step more
    # decodes the end.
    frames = options.steps - subject.config.max_delay - 1
    prompt = random_prompt(0, subject.config.decoder.channels)

    def generate(streams: int) -> None:
        sequences = [Sequence(encode_text(TEXT), prompt, frames) for _ in range(streams)]
        engine.generate(sequences)
        if any(sequence.ended for sequence in sequences):
            raise SystemExit("the model ended a sequence while it was timed: --random-weights")

    return "dia-worker", generate


def transformers_port(subject: Subject, options: argparse.Namespace) -> Peer:
    """`transformers`' own generation."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    config = transformers.DiaConfig.from_pretrained(subject.folder)
    with torch.device(subject.device):
        model = transformers.DiaForConditionalGeneration(config).to(subject.dtype).eval()
    # From the loaded model, whose weights keep it from ending.
    model.load_state_dict(export_dia(subject.model, Layout.TRANSFORMERS), strict=True)
    ids = torch.tensor([encode_text(TEXT)], device=subject.device)

    def generate(streams: int) -> None:
        batch = ids.expand(streams, -1)
        codes = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            min_new_tokens=options.steps,
            max_new_tokens=options.steps,
            do_sample=True,
            guidance_scale=PARAMS.cfg_scale,
            temperature=PARAMS.temperature,
            top_p=PARAMS.top_p,
            top_k=PARAMS.top_k,
        )
        assert codes.shape[:2] == (streams, options.steps + 1)

    return f"transformers {transformers.__version__}", generate


def nari_labs(subject: Subject, options: argparse.Namespace) -> Peer:
    """The published code of the model.

    Raises:
        ImportError: where it is not installed, or something else has its name.
    """
    theirs = importlib.import_module("dia.model").Dia
    if "load_dac" not in inspect.signature(theirs.__init__).parameters:
        raise ImportError("dia.model.Dia is of a release before 0626")
    config = importlib.import_module("dia.config").DiaConfig.load(subject.folder / "config.json")
    name = str(subject.dtype).removeprefix("torch.")
    dia = theirs(config, compute_dtype=name, device=subject.device, load_dac=False)
    dia.model.to(subject.device).eval()  # norms stay in float32, as they have them
    dia.model.load_state_dict(export_dia(subject.model, Layout.NATIVE), strict=True)

    def generate(streams: int) -> None:
        dia.generate(
            [TEXT] * streams,
            max_tokens=options.steps,
            cfg_scale=PARAMS.cfg_scale,
            temperature=PARAMS.temperature,
            top_p=PARAMS.top_p,
            cfg_filter_top_k=PARAMS.top_k,
        )

    return "nari-labs/dia", generate


def peers(subject: Subject, options: argparse.Namespace) -> Iterator[Peer]:
    """Those that can be imported, this engine first."""
    yield our_engine(subject, options)
    for make in (transformers_port, nari_labs):
        try:
            yield make(subject, options)
        except (ImportError, AttributeError) as error:
            print(f"{make.__name__} is left out: {error}", flush=True)


def measure(subject: Subject, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each peer and batch."""
    rows: list[dict[str, Any]] = []
    ours: dict[int, float] = {}
    for name, generate in peers(subject, options):
        for streams in options.batches:
            times = [
                elapsed_ms(subject.device, lambda: generate(streams)) / options.steps  # noqa: B023
                for _ in range(options.repeats + 1)
            ]
            took = statistics.median(times[1:])
            ours.setdefault(streams, took)
            rows.append(
                {
                    "engine": name,
                    "streams": streams,
                    "ms_per_step": significant(took),
                    "times_realtime_per_stream": significant(times_realtime(took)),
                    "times_realtime_total": significant(streams * times_realtime(took)),
                    "times_slower": significant(took / ours[streams], 3),
                }
            )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = parser_for(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    subject = load_subject(options)
    rows = measure(subject, options)
    show(f"{subject.name} on {subject.device}, {options.steps} steps", rows)
    device, dtype = subject.device, subject.dtype
    finish("peers", device, dtype, model=subject.name, steps=options.steps, rows=rows)


if __name__ == "__main__":
    main()
