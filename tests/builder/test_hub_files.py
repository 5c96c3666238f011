"""`.runpod/`: what RunPod's Hub reads, against the fields that its publishing guide documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builder.dockerfile import ROOT, read_dockerfile
from worker.config import VARIABLES, load_settings
from worker.schema import parse_job
from worker.settings import Settings

HUB: dict[str, Any] = json.loads((ROOT / ".runpod/hub.json").read_text(encoding="utf-8"))
TESTS: dict[str, Any] = json.loads((ROOT / ".runpod/tests.json").read_text(encoding="utf-8"))
CONFIG = HUB["config"]
ENTRIES = {entry["key"]: entry for entry in CONFIG["env"]}

# From the guide: field → type; those with a star must be there.
HUB_FIELDS = {
    "title*": str, "description*": str, "type*": str, "category*": str, "iconUrl": str,
    "config*": dict,
}  # fmt: skip
CONFIG_FIELDS = {
    "runsOn*": str, "containerDiskInGb*": int, "gpuCount*": int, "gpuIds*": str,
    "allowedCudaVersions": list, "env": list, "presets": list,
}  # fmt: skip
INPUT_FIELDS = {
    "name*": str, "type*": str, "description*": str, "default": (str, int, float, bool),
    "advanced": bool, "options": list, "min": (int, float), "max": (int, float),
    "trueValue": str, "falseValue": str, "required": bool,
}  # fmt: skip
TEST_FIELDS = {"name*": str, "input*": dict, "timeout": int}
TEST_CONFIG_FIELDS = {
    "gpuTypeId*": str, "gpuCount*": int, "env": list, "allowedCudaVersions": list
}  # fmt: skip
CATEGORIES = ("audio", "embedding", "language", "video", "image")
INPUT_TYPES = {"string": str, "number": (int, float), "boolean": bool, "huggingface": str}
# Pools of GPUs that compute in bfloat16 and have the memory for several slots (docs/memory.md).
POOLS = {
    "AMPERE_16", "AMPERE_24", "ADA_24", "ADA_32_PRO", "AMPERE_48", "ADA_48_PRO", "AMPERE_80",
    "ADA_80_PRO", "HOPPER_141",
}  # fmt: skip


def check_fields(value: dict[str, Any], fields: dict[str, Any]) -> None:
    kinds = {name.rstrip("*"): kind for name, kind in fields.items()}
    assert {name[:-1] for name in fields if name.endswith("*")} <= value.keys() <= kinds.keys()
    for name, content in value.items():
        assert isinstance(content, kinds[name]), name
        if isinstance(content, bool):  # which Python counts among the numbers
            assert kinds[name] is bool or name == "default", name


def values_of(entry: dict[str, Any]) -> Iterator[str]:
    """Every value that a form can give a variable, as the environment will hold it."""
    field = entry["input"]
    yield from (option["value"] for option in field.get("options", []))
    yield from (str(field[name]) for name in ("min", "max") if name in field)
    yield from (field[name] for name in ("trueValue", "falseValue") if name in field)
    if field["type"] != "boolean":
        yield str(field["default"])


def test_the_hubs_files_have_the_documented_fields() -> None:
    check_fields(HUB, HUB_FIELDS)
    check_fields(CONFIG, CONFIG_FIELDS)
    check_fields({key: TESTS[key] for key in TESTS}, {"tests*": list, "config": dict})
    check_fields(TESTS["config"], TEST_CONFIG_FIELDS)
    for test in TESTS["tests"]:
        check_fields(test, TEST_FIELDS)


def test_the_listing_is_a_serverless_worker_for_audio_on_one_gpu() -> None:
    assert (HUB["type"], HUB["category"], CONFIG["runsOn"]) == ("serverless", "audio", "GPU")
    assert HUB["category"] in CATEGORIES
    assert CONFIG["gpuCount"] == TESTS["config"]["gpuCount"] == 1
    assert set(CONFIG["gpuIds"].split(",")) <= POOLS
    # Some 10 GB of image, the cache of compiled kernels, and results on their way.
    assert 15 <= CONFIG["containerDiskInGb"] <= 40


def test_the_cuda_versions_are_those_that_run_what_the_image_holds() -> None:
    versions = CONFIG["allowedCudaVersions"]
    assert versions == TESTS["config"]["allowedCudaVersions"]
    base = next(stage.base for stage in read_dockerfile() if "/" in stage.base)
    major, minor = re.findall(r":(\d+)\.(\d+)\.", base)[0]
    assert f"{major}.{minor}" in versions
    assert all(re.fullmatch(rf"{major}\.\d+", version) for version in versions)
    assert min(int(version.split(".")[1]) for version in versions) == int(minor)


@pytest.mark.parametrize("key", ENTRIES)
def test_every_variable_is_one_of_ours_and_takes_what_its_form_can_give(key: str) -> None:
    entry = ENTRIES[key]
    assert set(entry) == {"key", "input"}
    field = entry["input"]
    check_fields(field, INPUT_FIELDS)
    assert isinstance(field["default"], INPUT_TYPES[field["type"]])
    assert key in VARIABLES
    for value in values_of(entry):
        load_settings({key: value})


def test_the_forms_show_the_defaults_that_the_worker_has() -> None:
    settings = Settings()
    for key, entry in ENTRIES.items():
        default = entry["input"]["default"]
        if key == "PRELOAD_VOICES" or default == "":
            continue
        have: Any = settings
        for name in VARIABLES[key].split("."):
            have = getattr(have, name)
        assert have == default, key


def test_every_preset_has_a_name_and_sets_variables_that_the_form_has() -> None:
    for preset in CONFIG["presets"]:
        check_fields(preset, {"name*": str, "defaults*": dict})
        assert preset["defaults"].keys() <= ENTRIES.keys()
        load_settings({key: str(value) for key, value in preset["defaults"].items()})


def test_the_preloaded_voices_are_in_the_image() -> None:
    for voice in ENTRIES["PRELOAD_VOICES"]["input"]["default"].split(","):
        assert (ROOT / "voices" / voice / "voice.yaml").is_file()


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: str(test["name"]))
def test_every_test_of_the_hub_is_a_valid_job(test: dict[str, Any]) -> None:
    job = parse_job(test["input"], Settings().generation)
    assert 10_000 <= test["timeout"] <= 600_000  # ms
    if job.voice_id is not None:
        assert (ROOT / "voices" / job.voice_id / "voice.yaml").is_file()


def test_the_hub_finds_what_it_asks_of_a_repository() -> None:
    assert all(Path(ROOT, name).is_file() for name in ("handler.py", "Dockerfile", "README.md"))
