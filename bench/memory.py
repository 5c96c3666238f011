"""Whether memory stays flat, and whether the plan of it holds.

    python -m bench.memory --random-weights              # full size, on one GPU

Runs the largest that the plan of `worker.engine.memory` provides for, each thing alone: the longest
prompt, as many usual prompts as start together, the longest decoding of audio. Then short chunks in
every slot, and notes what is held after the first few and after all of them. On a GPU that is what
torch has allocated and reserved, and the peaks of both stand beside the plan; on a CPU it is the
bytes of all tensors that are alive. Prints a table, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import torch

from bench.subject import parser_for, random_prompt, settings_for, text_of
from bench.table import finish, show, significant
from worker.engine.footprint import AT_ONCE, PROMPT_FRAMES, longest_prompt
from worker.engine.memory import CodecSize, MemoryPlan, plan_memory
from worker.engine.sequence import Sequence
from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.startup import resolve_device, start

TEXT = "The tide comes in, and the tide goes out."
WARM_CHUNKS = 2  # for each slot: every bucket of the engine has been used


def held(device: torch.device) -> dict[str, int]:
    """What is held now, in bytes, and how many tensors there are where that can be known."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return {
            "allocated_bytes": torch.cuda.memory_allocated(device),
            "reserved_bytes": torch.cuda.memory_reserved(device),
        }
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return {
        "allocated_bytes": sum(storage.nbytes() for storage in storages.values()),
        "tensors": len(tensors),
    }


def peaks(device: torch.device) -> dict[str, int]:
    """The most that was ever held, where torch knows it."""
    if device.type != "cuda":
        return {}
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def plan_of(service: Service) -> MemoryPlan:
    """The plan by which the worker has as many slots as it has."""
    engine, codec = service._engine.engine, service._codec
    weights = sum(each.nbytes for each in codec.network.parameters())
    size = CodecSize(codec.config, weights, codec.decode_dtype.itemsize)
    element = engine.runner.model.decoder.logits.weight.element_size()
    return plan_memory(engine.config, element, size, engine.slots)


def run_largest(service: Service) -> None:
    """Whatever takes the most memory, one thing after another."""
    engine = service._engine
    config = engine.engine.config
    longest, channels = longest_prompt(config), config.decoder.channels
    text = text_of(config.encoder.max_positions)
    usual = min(PROMPT_FRAMES, longest)
    together = min(AT_ONCE, service.slots)
    for frames in ([longest], [usual] * together):
        futures = [
            engine.submit(Sequence(text, random_prompt(count, channels, seed), 1))
            for seed, count in enumerate(frames)
        ]
        for future in futures:
            future.result()
    service._codec.decode(random_prompt(longest, channels))


async def speak(service: Service, seeds: Iterator[int], frames: int) -> None:
    """Keeps every slot busy with short jobs of one chunk, until there are no more seeds."""
    settings = GenerationSettings()

    async def listen() -> None:
        for seed in seeds:
            fields = {"text": TEXT, "seed": seed, "max_tokens": frames}
            await service.speak(parse_job(fields, settings))

    await asyncio.gather(*(listen() for _ in range(service.slots)))


def measure(service: Service, options: argparse.Namespace) -> dict[str, Any]:
    """Measures, and prints the tables."""
    device, slots = service._engine.engine.runner.device, service.slots
    warm = min(WARM_CHUNKS * slots, options.chunks)
    run_largest(service)
    asyncio.run(speak(service, iter(range(warm)), options.frames))
    early = held(device)
    asyncio.run(speak(service, iter(range(warm, options.chunks)), options.frames))
    late, most, plan = held(device), peaks(device), plan_of(service).total
    rows = [
        {
            "held": name,
            "after_warm_up": value,
            "after_all": late[name],
            "growth": late[name] - value,
            "peak": most.get(name),
            "plan": plan if name.endswith("bytes") else None,
            "peak_share_of_plan": significant(most[name] / plan) if name in most else None,
        }
        for name, value in early.items()
    ]
    title = f"{service.model.name} on {device}, {slots} slots"
    show(f"{title}, after {warm} and after {options.chunks} chunks", rows)
    return {"slots": slots, "chunks": options.chunks, "warm_up_chunks": warm, "rows": rows}


def main() -> None:
    """Measures and prints."""
    parser = parser_for(__doc__)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=40, help="of a chunk at most")
    parser.add_argument("--slots", type=int, help="instead of as many as the device has room for")
    options = parser.parse_args()
    settings = settings_for(options, options.slots)
    service = start(settings)
    figures = measure(service, options)
    service.close()
    finish(
        "memory",
        resolve_device(settings.model.device),
        getattr(torch, service.model.dtype),
        model=service.model.name,
        **figures,
    )


if __name__ == "__main__":
    main()
