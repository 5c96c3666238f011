"""The worker's commands for people: speak a text, check this machine against the reference.

Knows arguments and a terminal; everything else is the service's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from worker.audio.encode import FORMATS, EncodedAudio
from worker.config import load_settings
from worker.errors import InvalidInput, WorkerError
from worker.parity import check_folder, modes_of
from worker.report import summary
from worker.schema import JobInput, JobResult, parse_job
from worker.service import Service
from worker.startup import resolve_device, start
from worker.text import estimate_frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status: int = options.run(options)
    except (WorkerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    speak = commands.add_parser("speak", help="speak a text into a file")
    speak.add_argument("text", metavar="TEXT", help="what to say; [S1] and [S2] mark speakers")
    speak.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    speak.add_argument("--voice", metavar="ID", help="a voice of the library")
    speak.add_argument("--seed", type=int, metavar="N", help="same seed, same speech")
    speak.add_argument(
        "--format", choices=list(FORMATS), help="default: what the file's ending says"
    )
    speak.set_defaults(run=_speak)

    parity = commands.add_parser("parity", help="compare this machine with reference vectors")
    parity.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parity.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parity.set_defaults(run=_parity)
    return parser


def _speak(options: argparse.Namespace) -> int:
    settings = load_settings()
    fields = {
        "text": options.text,
        "voice_id": options.voice,
        "seed": options.seed,
        "output_format": options.format or _format_of(options.output),
    }
    job = parse_job(fields, settings.generation)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    service = start(settings)
    try:
        result, audio = _with_bar(service, job)
    finally:
        service.close()
    options.output.write_bytes(audio.data)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.output}: {summary(result)}")
    return 0


def _format_of(output: Path) -> str | None:
    """What the file's ending says; a file without one gets the settings' format."""
    known = {format.extension: name for name, format in FORMATS.items()}
    suffix = output.suffix.lower()
    if suffix and suffix not in known:
        raise InvalidInput(
            f"{output.name} ends in {suffix!r}; valid are {', '.join(known)}, or any ending "
            "together with --format"
        )
    return known.get(suffix)


def _with_bar(service: Service, job: JobInput) -> tuple[JobResult, EncodedAudio]:
    """Speaks a job behind a progress bar of codec frames; how many it will be is an estimate."""
    with tqdm(total=estimate_frames(job.text), unit=" frames", leave=False) as bar:

        def advance(frames: int) -> None:
            bar.total = max(bar.total or 0, bar.n + frames)
            bar.update(frames)

        return asyncio.run(service.speak(job, advance))


def _parity(options: argparse.Namespace) -> int:
    device = resolve_device(options.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        torch.set_num_threads(1)  # models this small wait longer for a team than it saves
    print(f"{'case':<20} {'mode':<7} {'frames':>6}  {'codes':<9} {'encoder':>9} {'logits':>9}")
    failed = 0
    for folder, mode in product(options.folders, modes_of(device)):
        for case in check_folder(folder, device, mode=mode):
            failed += not case.passed
            print(
                f"{case.folder + '/' + case.case:<20} {case.mode.value:<7} {case.frames:>6}  "
                f"{'equal' if case.codes_equal else 'DIFFERENT':<9} "
                f"{case.encoder_error:>9.1e} {case.logit_error:>9.1e}"
                f"{'' if case.passed else '  FAILED'}"
            )
    print("all equal" if not failed else f"{failed} cases failed")
    return 1 if failed else 0
