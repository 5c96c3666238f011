"""Submits a text, shows how far the job is, and writes the sound file.

    pip install httpx tqdm
    export RUNPOD_ENDPOINT_ID=… RUNPOD_API_KEY=…      (RUNPOD_BASE_URL: another server)
    python examples/submit.py "[S1] It begins. [S2] (laughs) Already?" -o hello.mp3
    python examples/submit.py - --voice narrator_warm -o page.flac < page.txt

The ending of the file says its format. Ctrl-C cancels the job on the server, and so does the
timeout. Questions are repeated when they fail; the job is not, unless it surely was not accepted
(see client.py): where that is unknown, you are told, and another call is another job.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from client import Json
from terminal import (
    add_job_arguments,
    check_folder,
    endpoint,
    format_of,
    job,
    job_input,
    run,
    say,
    text_of,
    within,
)
from tqdm import tqdm


async def main() -> int:
    """The script; returns its exit status."""
    arguments = parse()
    given = job_input(arguments, text_of(arguments), format_of(arguments.output))
    check_folder(arguments.output)
    async with endpoint() as server:
        async with job(server, given, arguments.timeout) as job_id:
            say(f"job {job_id}")
            with tqdm(unit="chunk", desc="IN_QUEUE") as bar:
                waiting = server.wait(job_id, arguments.poll, lambda state: show(bar, state))
                output = await within(arguments.timeout, waiting)
                show(bar, {"status": "COMPLETED", "output": output})
        audio = await server.audio(output)
    Path(arguments.output).write_bytes(audio)
    say(f"{arguments.output}: {output['duration']:.2f} s of sound, seed {output['seed']}")
    for warning in output["warnings"]:
        say(f"warning: {warning}")
    return 0


def show(bar: tqdm[Any], state: Json) -> None:
    """Moves the bar to where a status says the job is; the worker tells chunks as they are done."""
    bar.set_description(str(state.get("status")), refresh=False)
    output = state.get("output")
    if isinstance(output, dict) and "chunks_processed" in output:
        bar.n = int(output["chunks_processed"])
        bar.total = int(output.get("chunks_total", bar.n))
    bar.refresh()


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Submits a text and writes the sound file.")
    parser.add_argument("text", help="what to say; - reads standard input")
    parser.add_argument("-o", "--output", required=True, help="the file; its ending is the format")
    parser.add_argument("--voice", help="a voice of the library")
    add_job_arguments(parser, timeout_s=1800, poll_s=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(main()))
