"""Reads a Dockerfile and a `.dockerignore`, as far as ours go."""

from __future__ import annotations

import fnmatch
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction, and the comment above it."""

    keyword: str
    arguments: str
    comment: str

    @property
    def words(self) -> list[str]:
        """The arguments without flags."""
        return [word for word in shlex.split(self.arguments) if not word.startswith("--")]

    def flag(self, name: str) -> str | None:
        found = re.search(rf"--{name}=(\S+)", self.arguments)
        return found[1] if found else None


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, *keywords: str) -> list[Instruction]:
        return [each for each in self.instructions if each.keyword in keywords]

    @property
    def copies(self) -> list[Instruction]:
        """What is copied from the build's context."""
        return [copy for copy in self.all("COPY", "ADD") if copy.flag("from") is None]

    @property
    def environment(self) -> dict[str, str]:
        pairs = [word.partition("=") for each in self.all("ENV") for word in each.words]
        return {name: value for name, _, value in pairs}


def read_instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    comment, pending = "", ""
    for line in text.splitlines():
        if line.startswith("#"):
            comment += line[1:]
        elif not line.strip():
            comment = "" if not pending else comment
        elif line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
        else:
            keyword, _, arguments = (pending + line).strip().partition(" ")
            found.append(Instruction(keyword, " ".join(arguments.split()), comment))
            comment, pending = "", ""
    return found


def read_dockerfile() -> list[Stage]:
    """The stages in their order."""
    stages: list[Stage] = []
    for each in read_instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if each.keyword == "FROM":
            base, _, name = each.arguments.partition(" AS ")
            stages.append(Stage(name, base))
        elif stages:
            stages[-1].instructions.append(each)
    return stages


def lineage(stages: list[Stage], name: str) -> list[Stage]:
    """A stage and those that it is built on, the oldest first."""
    by_name = {stage.name: stage for stage in stages}
    line = [by_name[name]]
    while line[0].base in by_name:
        line.insert(0, by_name[line[0].base])
    return line


def is_ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps a path, relative to the root, out of the build."""
    ignored = False
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        kept = line.startswith("!")
        if _matches(path, line.removeprefix("!")):
            ignored = not kept
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """A pattern holds for what it names and for everything below."""
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts)
    return any(
        head.count("/") == pattern.count("/") and fnmatch.fnmatchcase(head, pattern)
        for head in heads
    )


def files_of(copy: Instruction) -> list[Path]:
    """The files that a copy from the context takes, relative to the root."""
    found: list[Path] = []
    for source in copy.words[:-1]:
        place = ROOT / source
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        relative = [path.relative_to(ROOT) for path in inside if path.is_file()]
        found += [path for path in relative if not is_ignored(path.as_posix())]
    return found


def target_of(copy: Instruction, file: Path) -> Path:
    """Where in the working directory a copied file comes to lie."""
    *sources, target = copy.words
    for source in sources:
        if (ROOT / source).is_dir() and file.is_relative_to(source):
            return Path(target) / file.relative_to(source)
    return Path(target) / file.name if target.endswith("/") else Path(target)
