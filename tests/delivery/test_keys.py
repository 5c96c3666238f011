"""What a user finds a file under: the job's id, whatever that is."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from worker.delivery.keys import MAX_NAME, file_name, key_of, name_of

PLAIN = st.text("abcXYZ019_-", min_size=1, max_size=MAX_NAME)
ANY = st.text() | PLAIN | st.text("./\\ab_-", max_size=200)


@pytest.mark.parametrize(
    "job_id", ["sync-0a1b2c3d-e1", "3fa85f64-5717-4562-b3fc-2c963f66afa6-u1", "test_input", "A"]
)
def test_the_file_of_a_job_of_the_platform_is_called_as_the_job(job_id: str) -> None:
    assert file_name(job_id, "mp3") == f"{job_id}.mp3"


@given(PLAIN)
def test_an_id_of_plain_letters_is_its_own_name(job_id: str) -> None:
    assert name_of(job_id) == job_id


@given(ANY, ANY)
@example("a/b", "a_b")
@example("a/b", name_of("a/b"))
@example("", "_")
@example("a" * MAX_NAME, "a" * (MAX_NAME + 1))
@example("\ud800", "\ud801")
def test_two_jobs_never_share_a_file(one: str, other: str) -> None:
    assume(one != other)
    assert name_of(one) != name_of(other)
    assert name_of(name_of(one)) != name_of(other) or name_of(one) == other


@given(ANY, st.sampled_from(["", "speech", "speech/", "a/b/"]))
@example("../../etc/passwd", "")
@example("/etc/passwd", "a/")
@example("..", "")
def test_no_id_leads_out_of_the_folder(job_id: str, prefix: str) -> None:
    key = key_of(prefix, job_id, "wav")
    path = PurePosixPath(key)
    assert str(path.parent) == (prefix.strip("/") or ".")
    assert re.fullmatch(r"[A-Za-z0-9_-]+(\.[0-9a-f]{32})?\.wav", path.name)
    assert len(key.encode()) < 1024  # what S3 allows


@given(ANY)
def test_the_same_job_has_the_same_file_again(job_id: str) -> None:
    assert key_of("a", job_id, "flac") == key_of("a/", job_id, "flac")
