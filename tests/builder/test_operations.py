"""`docs/operations.md` and the README's section on it say what is so."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from builder.fetch_weights import _parser
from tests.builder.dockerfile import ROOT, read_dockerfile
from worker import errors, startup
from worker.schema import parse_job
from worker.settings import Settings

TEXT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEPLOY = README.partition("## Deploy on RunPod\n")[2].partition("\n## ")[0]


def table_under(heading: str) -> dict[str, str]:
    """The second column by what stands in backticks in the first."""
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {name: row[1].strip() for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def codes_of(base: type[errors.WorkerError]) -> set[str]:
    """The codes of every exception of a kind that is raised itself, not only its children."""
    children = base.__subclasses__()
    below = set().union(*(codes_of(child) for child in children)) if children else set()
    return below | {base.code}


def test_every_error_of_a_job_is_explained_with_whether_to_try_again() -> None:
    explained = table_under("When a job fails")
    raised = codes_of(errors.WorkerError) - codes_of(errors.SetupError)
    nobody_sees = {"worker_error", "invalid_job", "cancelled"}
    assert explained.keys() == raised - nobody_sees | {"internal_error"}
    for kind in (errors.JobTimeout, errors.OutOfMemory, errors.UnknownVoice):
        assert explained[kind.code] == ("yes" if kind.retryable else "no")


def test_every_reason_not_to_start_is_explained() -> None:
    explained = table_under("When a worker does not start")
    assert codes_of(errors.SetupError) - {"setup_error"} <= explained.keys()
    assert explained.keys() <= codes_of(errors.WorkerError)


def test_the_variables_of_the_image_are_those_of_the_dockerfile() -> None:
    last = read_dockerfile()[-1]
    assert table_under("Variables") == {
        name: f"`{value}`" for name, value in last.environment.items()
    }


def test_the_stages_of_a_cold_start_are_those_that_the_worker_logs() -> None:
    source = inspect.getsource(startup)
    for line in table_under("A cold start, stage by stage"):
        words = line.removeprefix("loaded ").partition("…")[0].strip()
        longest = max(re.split(r"\b[A-Z]{1,}\b|[()]", words), key=len).strip()
        assert longest == "" or longest in source, line


def test_the_files_that_are_linked_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_commands_that_are_shown_are_understood() -> None:
    shown = re.findall(r"python -m builder\.fetch_weights ([^\n`]+)", TEXT)
    assert len(shown) == 2
    for line in shown:
        _parser().parse_args(line.split())


@pytest.mark.parametrize("body", re.findall(r"-d '([^']+)'", DEPLOY))
def test_the_job_that_the_readme_submits_is_a_valid_one(body: str) -> None:
    assert parse_job(json.loads(body)["input"], Settings().generation).text


def test_the_readme_tells_the_way_and_links_the_rest() -> None:
    for words in ("docker build", "docker push", "/run ", "/status/", "docs/operations.md"):
        assert words in DEPLOY
