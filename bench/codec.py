"""How long the codec takes to decode: whole, several at once, streamed, in each precision.

    python -m bench.codec --device cuda --random-weights

Times the configured model's codec, or with `--random-weights` one of the published size. Prints a
table of median milliseconds and their share of the audio's duration, and as its last line the same
as JSON. `dB` is the signal over the error of that precision, see `worker.codec.precision`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.published import DAC
from worker.codec.checkpoint import FRAMES_AT_ONCE, load_codec
from worker.codec.codec import Codec
from worker.codec.network import CodecNetwork
from worker.codec.precision import decode_error
from worker.codec.stream import FIRST_FRAMES, PIECE_FRAMES, StreamDecoder
from worker.config import load_settings
from worker.startup import resolve_device
from worker.weights import find_codec, find_dia

SECONDS = (1, 2, 5, 10, 20)
TOGETHER, EACH = 8, 5  # rows of the batch, seconds of each
SHORTER = 16  # frames by which each row of the ragged batch is shorter than the one before


def open_codec(random_weights: bool, device: torch.device) -> Codec:
    """The codec to time, in float32."""
    if not random_weights:
        settings = load_settings()
        return load_codec(find_codec(settings, find_dia(settings, device.type == "cuda")), device)
    torch.manual_seed(0)
    with device:
        network = CodecNetwork(DAC)
    return Codec(network, "random", frames_at_once=FRAMES_AT_ONCE.get(device.type))


def in_dtype(codec: Codec, dtype: torch.dtype) -> Codec:
    """A second codec that decodes in `dtype`."""
    network = copy.deepcopy(codec.network)
    return Codec(network, codec.fingerprint, dtype, codec.frames_at_once)


def codes_of(codec: Codec, seconds: float) -> Tensor:
    """Random codes for that long, [T, codebooks]."""
    shape = (round(seconds * codec.frame_rate), codec.codebooks)
    return torch.randint(codec.config.codebook_size, shape)


def cases(codec: Codec) -> dict[str, tuple[float, Callable[[], object]]]:
    """What is timed: seconds of audio that come out, and how to make them."""
    rate = codec.frame_rate
    timed: dict[str, tuple[float, Callable[[], object]]] = {
        f"whole, {seconds} s": (seconds, partial(codec.decode, codes_of(codec, seconds)))
        for seconds in SECONDS
    }
    equal = [codes_of(codec, EACH) for _ in range(TOGETHER)]
    ragged = [codes[: len(codes) - SHORTER * row] for row, codes in enumerate(equal)]
    for name, rows in ((f"{TOGETHER} x {EACH} s", equal), (f"{TOGETHER} ragged", ragged)):
        total = sum(map(len, rows)) / rate
        timed[f"{name}, one by one"] = (total, partial(one_by_one, codec, rows))
        timed[f"{name}, together"] = (total, partial(codec.decode_batch, rows))
    first = codes_of(codec, FIRST_FRAMES / rate)
    audible = (FIRST_FRAMES - codec.context_frames) / rate
    timed["streamed, first piece"] = (audible, partial(first_piece, codec, first))
    piece = codes_of(codec, (PIECE_FRAMES + 2 * codec.context_frames) / rate)
    timed["streamed, a later piece"] = (PIECE_FRAMES / rate, partial(codec.decode, piece))
    return timed


def one_by_one(codec: Codec, rows: list[Tensor]) -> None:
    """What `decode_batch` is compared with."""
    for codes in rows:
        codec.decode(codes)


def first_piece(codec: Codec, codes: Tensor) -> Tensor:
    """The first samples of a stream."""
    return StreamDecoder(codec).push(codes)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time; waveforms come back to the CPU, so the device is done when the call is."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


def measure(codec: Codec, repeats: int, most: float) -> dict[str, dict[str, float]]:
    """Milliseconds of every case of at most so many seconds, and their share of the duration."""
    results = {}
    for name, (seconds, work) in cases(codec).items():
        if seconds > most:
            continue
        took = milliseconds(work, repeats)
        results[name] = {"ms": round(took, 2), "share": round(took / seconds / 1000, 5)}
        print(f"  {name:<28} {took:>10.1f} ms {took / seconds / 10:>9.2f} %", flush=True)
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random-weights", action="store_true", help="of the published size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", help="float32, float16, bfloat16; a GPU: all three")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=float, default=math.inf, help="seconds of audio in a case")
    options = parser.parse_args()
    device = resolve_device(options.device)
    every = ["float32", "float16", "bfloat16"] if device.type == "cuda" else ["float32"]
    codec = open_codec(options.random_weights, device)
    results = {}
    for name in options.dtypes or every:
        dtype = getattr(torch, name)
        error = decode_error(codec, dtype)  # inf for float32 against itself, which JSON has not
        print(f"{name} on {device}, {error:.1f} dB")
        results[name] = {
            "db": round(error, 1) if math.isfinite(error) else None,
            "cases": measure(in_dtype(codec, dtype), options.repeats, options.most),
        }
    size = sum(parameter.numel() for parameter in codec.network.parameters())
    print(json.dumps({"bench": "codec", "device": str(device), "size": size, "dtypes": results}))


if __name__ == "__main__":
    main()
