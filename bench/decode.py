"""How long a decode step takes, by slots and context, and how far that is from the floor.

    python -m bench.decode --random-weights                    # full size, on one GPU
    python -m bench.decode --random-weights --no-graphs --no-fused
    DIA_MODEL=models/dia-tiny python -m bench.decode --contexts 256        # what batching brings
    python -m bench.decode --random-weights --reproducible [--same-shapes]  # who gets lone codes

A figure is the median of five groups of 60 steps of the whole engine, whose slots all stand at the
end of the context. The floor is the time in which the device could copy what a step has to read:
the decoder's weights once, and the keys and values of every slot. A step decodes one frame of each
slot, and 86.13 frames are a second of audio. `batching` is the total beside that of one slot.
Prints a table, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from torch import Tensor

from bench.reproducible import measure_reproducibility
from bench.subject import (
    Subject,
    build_engine,
    copy_bandwidth,
    elapsed_ms,
    load_subject,
    parser_for,
    random_prompt,
    text_of,
    times_realtime,
)
from bench.table import finish, show, significant
from worker.dia.model import DiaModel
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence

WARM_STEPS = 4  # compile, record, and fill the device's queue


def weight_bytes(model: DiaModel) -> int:
    """Bytes of weights that every step reads: the decoder's, less what only a start needs."""
    unread = ("embedding.", "cross_attention.key_value.")
    return sum(
        parameter.nbytes
        for name, parameter in model.decoder.named_parameters()
        if not any(part in name for part in unread)
    )


def slot_bytes(model: DiaModel, context: float, text: int) -> float:
    """Bytes of keys and values that a step reads for one slot."""
    decoder, element = model.config.decoder, model.decoder.logits.weight.element_size()
    own = 2 * 2 * decoder.kv_heads * decoder.head_dim * context  # without and with the text
    cross = 2 * decoder.cross_heads * decoder.cross_head_dim * text
    return decoder.layers * (own + cross) * element


def step_ms(engine: Engine, prompt: Tensor, slots: int, options: argparse.Namespace) -> float:
    """Median milliseconds of a step with so many slots that have decoded the prompt."""
    steps, device = options.steps, engine.runner.device
    times = []
    for _ in range(options.groups + 1):
        for _ in range(slots):
            engine.add(Sequence(text_of(options.text), prompt, steps + WARM_STEPS + 1))
        for _ in range(WARM_STEPS):
            engine.step()
        times.append(elapsed_ms(device, lambda: [engine.step() for _ in range(steps)]) / steps)
        if len(engine.clear()) < slots:
            raise SystemExit("the model ended a sequence while it was timed: --random-weights")
    return float(statistics.median(times[1:]))


def row_of(
    subject: Subject,
    engine: Engine,
    bandwidth: float,
    slots: int,
    context: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The figures of one number of slots and one context; `bandwidth` in bytes a second."""
    frames = context - options.steps - WARM_STEPS
    prompt = random_prompt(frames, subject.config.decoder.channels)
    took = step_ms(engine, prompt, slots, options)
    kept = slots * slot_bytes(subject.model, context - options.steps / 2, options.text)
    floor = 1e3 * (weight_bytes(subject.model) + kept) / bandwidth
    each = times_realtime(took)
    return {
        "slots": slots,
        "context": context,
        "ms_per_step": significant(took),
        "floor_ms": significant(floor),
        "floor_share": significant(floor / took),
        "times_realtime_per_stream": significant(each),
        "times_realtime_total": significant(slots * each),
    }


def with_batching(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its total as a multiple of the fewest slots' at the same context."""
    first = {row["context"]: row["times_realtime_total"] for row in reversed(rows)}
    return [
        {**row, "batching": significant(row["times_realtime_total"] / first[row["context"]], 3)}
        for row in rows
    ]


def measure_speed(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Measures every number of slots at every context, and prints the table."""
    longest = subject.config.decoder.max_positions - subject.config.max_delay - 2
    least = options.steps + WARM_STEPS
    contexts = [each for each in options.contexts if least < each <= longest]
    if not contexts:
        raise SystemExit(f"--contexts: valid is {least + 1} to {longest}")
    slots, shapes = max(options.slots), options.same_shapes
    engine = build_engine(subject.model, slots, options.graphs, options.fused, shapes)
    bandwidth = copy_bandwidth(subject.device)
    rows = [
        row_of(subject, engine, bandwidth, slots, context, options)
        for context in contexts
        for slots in sorted(options.slots)
    ]
    rows = with_batching(rows)
    gigabytes = significant(bandwidth / 1e9)
    show(f"{subject.name} on {subject.device}; a copy moves {gigabytes:,} GB/s", rows)
    return {
        "copy_gb_per_s": gigabytes,
        "weights_read_mb_per_step": significant(weight_bytes(subject.model) / 1e6),
        "rows": rows,
    }


def main() -> None:
    """Measures and prints."""
    parser = parser_for(__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--text", type=int, default=256, help="bytes of each slot's text")
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of a group")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false")
    parser.add_argument("--no-fused", dest="fused", action="store_false", help="plain kernels")
    parser.add_argument("--reproducible", action="store_true", help="compares codes, not times")
    parser.add_argument("--same-shapes", action="store_true", help="as REPRODUCIBLE=true")
    parser.add_argument("--targets", type=int, default=10, help="sequences that are compared")
    parser.add_argument("--frames", type=int, default=200, help="of each of them")
    options = parser.parse_args()
    subject = load_subject(options)
    measure = measure_reproducibility if options.reproducible else measure_speed
    figures = measure(subject, options)
    on_gpu = subject.device.type == "cuda"
    finish(
        "reproducibility" if options.reproducible else "decode",
        subject.device,
        subject.dtype,
        model=subject.name,
        graphs=options.graphs and on_gpu,
        fused=options.fused and on_gpu,
        same_shapes=options.same_shapes,
        text_bytes=options.text,
        **figures,
    )


if __name__ == "__main__":
    main()
