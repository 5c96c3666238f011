"""One file from a server that does what servers do."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from builder.connection import DownloadFailed, RemoteFile, shown
from builder.download import Patience, Received, download
from tests.builder.serving import Answer, Hub

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "/org/model/resolve/main/weights.bin"
QUICK = Patience(attempts=4, silence_s=0.3, pause_s=0.01, longest_pause_s=0.05)
TOKEN = "hf_notreal"


@pytest.fixture
def remote(hub: Hub) -> RemoteFile:
    hub.files[PATH] = CONTENT
    return RemoteFile(hub.url + PATH, len(CONTENT), SHA256)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "models" / "weights.bin"


def part_of(place: Path, content: bytes) -> Path:
    place.parent.mkdir(parents=True)
    part = place.with_name("weights.bin.part")
    part.write_bytes(content)
    return part


def is_whole(place: Path) -> bool:
    return place.read_bytes() == CONTENT and [*place.parent.iterdir()] == [place]


def test_a_file_arrives_whole_under_its_name_and_nothing_else_is_left(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    assert download(remote, place, QUICK) == Received(len(CONTENT), SHA256)
    assert is_whole(place)
    assert hub.ranges == [None]


def test_a_file_that_is_there_is_not_asked_for_again(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    download(remote, place, QUICK)
    download(remote, place, QUICK)
    assert len(hub.asked) == 1


def test_a_file_that_is_there_and_wrong_is_replaced(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, b"").unlink()
    place.write_bytes(b"\0" * len(CONTENT))
    download(remote, place, QUICK)
    assert is_whole(place)


def test_what_an_earlier_process_left_is_continued(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT[:1000])
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.ranges == ["bytes=1000-"]


def test_what_is_complete_but_for_its_name_is_only_checked(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT)
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.asked == []


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT)], ids=["some", "all"])
def test_a_wrong_beginning_is_thrown_away_and_the_file_asked_for_anew(
    hub: Hub, remote: RemoteFile, place: Path, left: bytes
) -> None:
    part_of(place, left)
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.ranges[-1] is None


def test_a_beginning_longer_than_the_file_is_thrown_away(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT + b"x")
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.ranges == [None]


def test_without_a_known_size_the_server_says_that_the_beginning_is_too_long(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT + b"x")
    download(RemoteFile(remote.url, sha256=SHA256), place, QUICK)
    assert is_whole(place)
    assert hub.ranges == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_server_that_knows_no_ranges_sends_everything_again(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT[:1000])
    hub.planned.append(Answer(ignore_range=True))
    download(remote, place, QUICK)
    assert is_whole(place)


def test_a_part_that_was_not_asked_for_is_not_appended(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    part_of(place, CONTENT[:1000])
    hub.planned.append(Answer(shift_range=10))
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("broken", [Answer(stop_after=3000), Answer(stall_after=3000)])
def test_a_connection_that_breaks_or_stalls_is_taken_up_where_it_was(
    hub: Hub, remote: RemoteFile, place: Path, broken: Answer
) -> None:
    hub.planned += [broken, broken]
    download(remote, place, QUICK)
    assert is_whole(place)
    assert hub.ranges == [None, "bytes=3000-", "bytes=6000-"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(
    hub: Hub, remote: RemoteFile, place: Path, status: int
) -> None:
    hub.planned += [Answer(status), Answer(status)]
    download(remote, place, QUICK)
    assert is_whole(place)


def test_pauses_grow_and_keep_to_what_the_server_asks_for_within_bounds() -> None:
    patience = Patience(pause_s=1, longest_pause_s=10)
    assert [patience.pause_before(attempt, 0) for attempt in (1, 2, 3, 9)] == [1, 2, 4, 10]
    assert patience.pause_before(1, asked_for=7) == 7
    assert patience.pause_before(1, asked_for=3600) == 10


def test_a_server_that_asks_for_time_gets_it(hub: Hub, remote: RemoteFile, place: Path) -> None:
    hub.planned.append(Answer(429, retry_after="3600"))  # cut to the longest pause
    download(remote, place, QUICK)
    assert is_whole(place)


def test_after_so_many_attempts_it_gives_up_in_one_line_and_keeps_what_came(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    hub.planned += [Answer(stop_after=1000)] * 4
    with pytest.raises(DownloadFailed) as caught:
        download(remote, place, QUICK)
    assert str(caught.value) == (
        f"{remote.url}: the connection ended after 4000 of {len(CONTENT)} bytes; "
        "given up after 4 attempts"
    )
    assert place.with_name("weights.bin.part").stat().st_size == 4000
    assert not place.exists()


def test_a_server_that_is_not_there_is_reported_after_the_attempts(
    hub: Hub, place: Path, remote: RemoteFile
) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DownloadFailed, match=r"refused; given up after 4 attempts"):
        download(remote, place, QUICK)


@pytest.mark.parametrize(("status", "words"), [(404, "HTTP 404"), (401, "HF_TOKEN"), (403, "HF_")])
def test_a_refusal_is_final_at_once(
    hub: Hub, remote: RemoteFile, place: Path, status: int, words: str
) -> None:
    hub.planned.append(Answer(status))
    with pytest.raises(DownloadFailed, match=words):
        download(remote, place, QUICK)
    assert len(hub.asked) == 1


def test_another_file_than_the_pinned_one_is_refused_with_both_hashes(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    other = b"y" * len(CONTENT)
    hub.files[PATH] = other
    with pytest.raises(DownloadFailed) as caught:
        download(remote, place, QUICK)
    assert str(caught.value) == (
        f"{remote.url}: expected {len(CONTENT)} bytes with sha256 {SHA256}, "
        f"found {len(other)} bytes with sha256 {hashlib.sha256(other).hexdigest()}"
    )
    assert [*place.parent.iterdir()] == []
    assert len(hub.asked) == 1


@pytest.mark.parametrize("other", [CONTENT + b"x", CONTENT[:-1]], ids=["longer", "shorter"])
def test_a_file_of_another_length_is_refused_too(
    hub: Hub, remote: RemoteFile, place: Path, other: bytes
) -> None:
    hub.files[PATH] = other
    with pytest.raises(DownloadFailed, match=f"expected {len(CONTENT)} bytes"):
        download(remote, place, QUICK)
    assert not place.exists()


def test_a_file_of_unknown_hash_is_taken_as_it_comes_and_measured(
    hub: Hub, remote: RemoteFile, place: Path
) -> None:
    hub.planned.append(Answer(stop_after=100))
    assert download(RemoteFile(remote.url), place, QUICK) == Received(len(CONTENT), SHA256)
    assert is_whole(place)


# The token


def test_the_token_goes_to_the_hub_and_not_where_the_hub_sends_us(
    hub: Hub, elsewhere: Hub, remote: RemoteFile, place: Path
) -> None:
    elsewhere.files["/large"] = CONTENT
    hub.planned.append(Answer(302, location=f"{elsewhere.url}/large?signature=secret"))
    part_of(place, CONTENT[:1000])
    download(RemoteFile(remote.url, len(CONTENT), SHA256, TOKEN), place, QUICK)
    assert is_whole(place)
    assert [asked.authorization for asked in hub.asked] == [f"Bearer {TOKEN}"]
    assert [(asked.authorization, asked.range) for asked in elsewhere.asked] == [
        (None, "bytes=1000-")
    ]


def test_the_token_stays_on_a_way_within_the_hub(hub: Hub, remote: RemoteFile, place: Path) -> None:
    hub.planned.append(Answer(302, location=PATH + "?again=1"))
    download(RemoteFile(remote.url, len(CONTENT), SHA256, TOKEN), place, QUICK)
    assert [asked.authorization for asked in hub.asked] == [f"Bearer {TOKEN}"] * 2


def test_nothing_that_is_said_holds_a_secret(
    hub: Hub, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    remote = RemoteFile(f"{hub.url}/gated?key=secret", 1, "0" * 64, TOKEN)
    hub.planned += [Answer(500), Answer(403)]
    with pytest.raises(DownloadFailed) as caught:
        download(remote, place, QUICK)
    said = f"{caught.value} {remote!r} {caplog.text}".replace(remote.url, "")
    assert TOKEN not in said and "secret" not in said
    assert shown("https://me:word@host:8/a/b?x=1#y") == "https://host:8/a/b"
