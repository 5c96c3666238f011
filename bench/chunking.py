"""How long chunking takes: several 10,000-character texts at the smallest, usual and largest size.

    python -m bench.chunking

Prints a table of median milliseconds, and as its last line the same as JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from itertools import chain, cycle, islice

from worker.text import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, TextChunker

LENGTH = 10_000
REPEATS = 9
SIZES = (MIN_CHUNK_SIZE, 120, MAX_CHUNK_SIZE)

PROSE = (
    "Dr. Smith paid $3.50 at 7 p.m. and left. The night was clear, the road was empty, and nobody "
    "asked where he went. (sighs) I don't know either. Was it the money? It may have been; it may "
    "not. "
)
TEXTS = {
    "prose": PROSE,
    "dialogue": "[S1] Did you see that? [S2] (laughs) I did, and I still don't believe it. ",
    "short turns": "[S1] Yes. [S2] No. ",
    "one long quote": PROSE,
    "quotes": '"Go," he said. "Now." She stayed. ',
    "clauses only": "and then, when it was late, we went on; ",
    "no punctuation": "and then when it was late we went on through the valley ",
    "one-letter words": "a ",
    "no space": "abcdefghij",
    "Chinese": "你好，世界很大。好吗？",
    "emoji": "\U0001f600\U0001f44d\U0001f3fd",
    "combining marks": "e\u0323\u0331\u0301",
    "non-verbals": "(laughs)(clears throat) ",
    "parentheses": "(a ",
    "full stops": ".",
}


def example(name: str) -> str:
    """The text called `name`, repeated to its length."""
    text = "".join(islice(chain.from_iterable(cycle([TEXTS[name]])), LENGTH))
    return f'"{text}"' if name == "one long quote" else text


def milliseconds(text: str, chunk_size: int) -> float:
    """Median time to chunk `text`."""
    chunker = TextChunker()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        chunker.chunk_text_by_sentences(text, chunk_size)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    print(f"{'median ms':18}" + "".join(f"{size:>8}" for size in SIZES))
    results = {}
    for name in TEXTS:
        results[name] = {size: round(milliseconds(example(name), size), 2) for size in SIZES}
        print(f"{name:18}" + "".join(f"{value:8.1f}" for value in results[name].values()))
    print(json.dumps({"bench": "chunking", "characters": LENGTH, "median_ms": results}))


if __name__ == "__main__":
    main()
