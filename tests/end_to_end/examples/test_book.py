"""What `book.py` does when it is interrupted or refused: it goes on, and asks for nothing twice."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.examples.unreliable import (
    Ended,
    Unreliable,
    call,
    fail,
    speak,
    speaker,
    start,
    text_of,
    tone,
)
from tests.end_to_end.platform_queue import FINAL, Job


def read(book: Path, *arguments: object) -> tuple[object, ...]:
    """What `book.py` is called with."""
    return ("book.py", book, "-o", book.parent / "out", "--format", "wav", *arguments)


def files(book: Path) -> set[str]:
    return {file.stem for file in (book.parent / "out").glob("*.wav")}


def states(book: Path) -> Counter[str]:
    """How many parts are in which state, as `book.json` has it."""
    file = book.parent / "out" / "book.json"
    notes = json.loads(file.read_text()) if file.exists() else {}
    return Counter(note["state"] for note in notes.values())


def test_a_book_that_is_killed_goes_on_and_asks_for_nothing_twice(
    queue: Unreliable, book: Path
) -> None:
    process = start(queue, *read(book, "--concurrency", 2))
    queue.wait_until(lambda: states(book)["running"] == 2)
    for job in list(queue.jobs.values()):
        speak(job)
    queue.wait_until(lambda: states(book) == {"done": 2, "running": 2})
    process.kill()
    process.communicate()
    assert len(queue.jobs) == 4
    assert files(book) == {"1", "2"}
    for job in list(queue.jobs.values())[2:]:  # while nobody asks
        speak(job, tone(0.3))
    with speaker(queue):
        ended = call(queue, *read(book, "--concurrency", 2))
    assert ended.status == 0, ended.told
    assert "5 of 5 chapters are done" in ended.told
    assert [text_of(job)[-3:-1].strip() for job in queue.jobs.values()] == [
        "1",
        "2",
        "3",
        "4",
        "10",
    ]
    assert files(book) == {"1", "2", "3", "4", "10"}
    assert (book.parent / "out" / "3.wav").read_bytes() == tone(0.3)


def test_no_more_of_a_book_is_under_way_than_was_allowed(queue: Unreliable, book: Path) -> None:
    most = 0

    def watch(job: Job) -> None:
        nonlocal most
        time.sleep(0.1)
        most = max(most, sum(job.status not in FINAL for job in list(queue.jobs.values())))
        speak(job)

    with speaker(queue, watch):
        ended = call(queue, *read(book, "--concurrency", 3))
    assert ended.status == 0, ended.told
    assert most == 3


def test_a_chapter_that_failed_is_tried_again_by_the_same_command(
    queue: Unreliable, book: Path
) -> None:
    def stumble(job: Job) -> None:
        if "chapter 3" in text_of(job):
            fail(job)
        else:
            speak(job)

    with speaker(queue, stumble):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 3.01: the job ended as FAILED: out_of_memory" in ended.told
    assert "4 of 5 chapters are done" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 6
    assert files(book) == {"1", "2", "3", "4", "10"}


def test_a_chapter_whose_answer_was_lost_is_sent_again_only_if_one_says_so(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].append("lose")
    with speaker(queue):
        ended = call(queue, *read(book, "--concurrency", 1))
        assert ended.status == 1
        assert "failed: 1.01: the job may have been accepted" in ended.told
        cautious = call(queue, *read(book))
        assert cautious.status == 1
        assert "failed: 1.01: it was sent before, and may have been accepted" in cautious.told
        assert len(queue.jobs) == 5
        decided = call(queue, *read(book, "--resubmit"))
    assert decided.status == 0, decided.told
    assert len(queue.jobs) == 6


def test_a_book_that_is_killed_while_it_sends_a_chapter_does_not_send_it_again(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].append("hang")
    process = start(queue, *read(book, "--concurrency", 1))
    queue.wait_until(lambda: queue.asked["run"])
    process.kill()
    process.communicate()
    with speaker(queue):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 1.01: it was sent before, and may have been accepted" in ended.told
    assert len(queue.jobs) == 4
    assert files(book) == {"2", "3", "4", "10"}


def test_a_server_that_loses_every_answer_is_not_sent_the_whole_book(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].extend(["lose"] * 5)
    ended = call(queue, *read(book, "--concurrency", 1))
    assert ended.status == 1
    assert len(queue.jobs) == 3
    assert "not sent, after 3 jobs of which no answer came" in ended.told


def test_a_result_that_nobody_fetched_in_time_is_asked_for_again(
    queue: Unreliable, book: Path
) -> None:
    process = start(queue, *read(book, "--concurrency", 1))
    queue.wait_until(lambda: states(book)["running"] == 1)
    process.kill()
    process.communicate()
    queue.jobs.clear()
    with speaker(queue):
        ended = call(queue, *read(book))
    assert ended.status == 0, ended.told
    assert len(queue.jobs) == 5


def test_a_chapter_whose_address_has_expired_is_asked_for_again(
    queue: Unreliable, book: Path
) -> None:
    def upload(job: Job) -> None:
        job.output = {"audio_url": queue.base_url.replace("/v2", "/sounds/expired")}
        job.status = "COMPLETED"

    with speaker(queue, upload):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 1.01: the job or its file is not there, or not any more" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 10


def test_ctrl_c_leaves_a_book_on_the_server_to_be_fetched(queue: Unreliable, book: Path) -> None:
    process = start(queue, *read(book))
    queue.wait_until(lambda: states(book)["running"] == 4)
    process.send_signal(signal.SIGINT)
    ended = Ended(process)
    assert ended.status == 130
    assert "the same command fetches it" in ended.told
    assert queue.asked["cancel"] == 0


def test_a_chapter_that_takes_too_long_is_waited_for_the_next_time(
    queue: Unreliable, book: Path
) -> None:
    ended = call(queue, *read(book, "--concurrency", 5, "--timeout", 0.5))
    assert ended.status == 1
    assert "failed: 10.01: the job was not done within 0.5 s" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 5


def test_a_chapter_that_was_changed_is_spoken_anew_and_the_others_are_not(
    queue: Unreliable, book: Path
) -> None:
    with speaker(queue):
        call(queue, *read(book))
        (book / "2.txt").write_text("This is another chapter.")
        ended = call(queue, *read(book))
    assert ended.status == 0, ended.told
    assert [text_of(job) for job in queue.jobs.values()][5:] == ["This is another chapter."]


def test_a_key_that_is_refused_ends_a_book_at_once(queue: Unreliable, book: Path) -> None:
    queue.wrong["run"].extend(["401"] * 5)
    ended = call(queue, *read(book))
    assert ended.status == 1
    assert ended.told.splitlines()[-1] == "error: access is refused (status 401)"
    assert states(book) == {}


def test_two_commands_do_not_speak_the_same_book_at_once(queue: Unreliable, book: Path) -> None:
    process = start(queue, *read(book))
    queue.wait_until(lambda: states(book)["running"] == 4)
    ended = call(queue, *read(book))
    process.kill()
    process.communicate()
    assert ended.status == 1
    assert "error: another book.py works in " in ended.told


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "there is nothing to speak in"), (b"\xff\xfe\xff", "is not UTF-8")],
    ids=["empty", "not UTF-8"],
)
def test_a_book_that_cannot_be_read_is_told_before_anything_is_asked(
    queue: Unreliable, tmp_path: Path, content: bytes, words: str
) -> None:
    source = tmp_path / "book.txt"
    source.write_bytes(content)
    ended = call(queue, "book.py", source, "-o", tmp_path / "out")
    assert ended.status == 1
    assert words in ended.told
    assert not queue.asked
