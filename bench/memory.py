"""Whether memory stays flat: what the worker holds after 2 chunks, and after many.

    python -m bench.memory --chunks 200

Runs the configured model (`DIA_MODEL` and the other settings). On a GPU it counts the bytes that
torch has allocated and reserved, on a CPU the tensors that are alive and their bytes. Prints a
table, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json

import torch

from worker.config import load_settings
from worker.schema import parse_job
from worker.service import Service
from worker.startup import start

TEXT = "The tide comes in, and the tide goes out."
FRAMES = 40  # of a chunk: enough to pass through every stage


def held() -> dict[str, int]:
    """What is held now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return {
            "allocated_bytes": torch.cuda.memory_allocated(),
            "reserved_bytes": torch.cuda.memory_reserved(),
        }
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"tensors": len(tensors), "tensor_bytes": size}


def speak(service: Service, chunks: int) -> None:
    """Runs one job of one chunk after another."""
    settings = load_settings().generation
    for seed in range(chunks):
        job = parse_job({"text": TEXT, "seed": seed, "max_tokens": FRAMES}, settings)
        asyncio.run(service.speak(job))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=200)
    chunks = parser.parse_args().chunks
    service = start(load_settings())
    speak(service, 2)
    early = held()
    speak(service, chunks - 2)
    late = held()
    service.close()
    print(f"{service.model.name}, {service.model.dtype}")
    print(f"{'':<16} {'after 2':>14} {f'after {chunks}':>14} {'growth':>10}")
    for name, value in early.items():
        print(f"{name:<16} {value:>14,} {late[name]:>14,} {late[name] - value:>10,}")
    print(json.dumps({"chunks": chunks, "after_2": early, "after_all": late}))


if __name__ == "__main__":
    main()
