"""What a job's audio is called, in a bucket or a folder."""

from __future__ import annotations

import hashlib
import re

from worker.audio.encode import FORMATS

MAX_NAME = 128  # characters of an id that is kept as it is; RunPod's have some 45


def name_of(job_id: str) -> str:
    """A name from a job's id: the same for the same id, another for any other.

    Ids of letters, digits, - and _ are their own names. From others everything else is taken out
    and a hash added, behind a dot, which no id that is its own name has. So no name leads out of
    its folder, and no two ids share one.
    """
    if re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}", job_id):
        return job_id
    kept = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:MAX_NAME] or "_"
    return f"{kept}.{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def file_name(job_id: str, format: str) -> str:
    """The name with the ending of its format."""
    return name_of(job_id) + FORMATS[format].extension


def key_of(prefix: str, job_id: str, format: str) -> str:
    """The key in a bucket; a prefix is a folder, whether or not it ends with a slash."""
    folder = prefix.strip("/")
    return f"{folder}/{file_name(job_id, format)}" if folder else file_name(job_id, format)
