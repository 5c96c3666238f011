"""Settings: what the defaults are, who wins, and what a mistake is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, TypeAdapter, ValidationError

from worker import limits
from worker.config import VARIABLES, load_settings
from worker.errors import InvalidConfig
from worker.settings import REPOSITORY_ROOT, Settings

EXAMPLE = REPOSITORY_ROOT / "config.example.yaml"

# Variable, its text, the key it sets, and the value that the key then has
VARIABLE_CASES: list[tuple[str, str, str, Any]] = [
    ("DIA_MODEL", "dia-tiny", "model.source", "dia-tiny"),
    ("DIA_MODEL_REPO_ID", "nari-labs/Dia-1.6B", "model.repo_id", "nari-labs/Dia-1.6B"),
    ("DIA_MODEL_WEIGHTS_FILENAME", "dia-v0_1.pth", "model.weights_filename", "dia-v0_1.pth"),
    ("DIA_MODEL_REVISION", "v2", "model.revision", "v2"),
    ("DIA_MODEL_GENERATION", "0626", "model.generation", "0626"),
    ("MODEL_DEVICE", "cuda:1", "model.device", "cuda:1"),
    ("MODEL_DTYPE", "float16", "model.dtype", "float16"),
    ("DAC_MODEL", "someone/dac", "codec.repo_id", "someone/dac"),
    ("DAC_MODEL", "/models/dac", "codec.path", Path("/models/dac")),
    ("VOICE_LIBRARY_PATH", "/data/voices", "voice_library.path", Path("/data/voices")),
    ("VOICE_CACHE_SIZE", "3", "voice_library.max_cache_size", 3),
    ("PRELOAD_VOICES", "ann, ben,", "voice_library.preload_voices", ("ann", "ben")),
    ("DEFAULT_SEED", "7", "generation.defaults.seed", 7),
    ("DEFAULT_SEED", "null", "generation.defaults.seed", None),
    ("DEFAULT_CHUNK_SIZE", "200", "generation.defaults.chunk_size", 200),
    ("DEFAULT_ENABLE_CHUNKING", "false", "generation.defaults.enable_chunking", False),
    ("MAX_TEXT_LENGTH", "500", "generation.limits.max_text_length", 500),
    ("CONCURRENT_REQUESTS", "8", "generation.limits.concurrent_requests", 8),
    ("REMOTE_REFERENCES", "off", "generation.limits.remote_references", False),
    ("REMOTE_TIMEOUT_S", "40", "generation.limits.remote_timeout_s", 40.0),
    ("JOB_TIMEOUT_S", "90.5", "generation.limits.timeout_s", 90.5),
    ("MEMORY_OPTIMIZATION", "0", "performance.memory_optimization", False),
    ("CUDA_MEMORY_FRACTION", "0.5", "performance.cuda_memory_fraction", 0.5),
    ("ENGINE_SLOTS", "6", "performance.slots", 6),
    ("CUDA_GRAPHS", "false", "performance.cuda_graphs", False),
    ("FUSED_KERNELS", "no", "performance.fused_kernels", False),
    ("REPRODUCIBLE", "yes", "performance.reproducible", True),
    ("KEEP_RESULTS_IN", "/data/out", "delivery.keep_in", Path("/data/out")),
    ("BUCKET_ENDPOINT_URL", "https://s3.host", "delivery.bucket.endpoint_url", "https://s3.host"),
    ("BUCKET_NAME", "speech", "delivery.bucket.name", "speech"),
    ("BUCKET_REGION", "eu-west-1", "delivery.bucket.region", "eu-west-1"),
    ("BUCKET_ACCESS_KEY_ID", "AK", "delivery.bucket.access_key_id", SecretStr("AK")),
    ("BUCKET_SECRET_ACCESS_KEY", "SK", "delivery.bucket.secret_access_key", SecretStr("SK")),
    ("BUCKET_PREFIX", "speech/", "delivery.bucket.prefix", "speech/"),
    ("BUCKET_URL_EXPIRY_S", "60", "delivery.bucket.url_expiry_s", 60),
    ("ALLOW_PRIVATE_ENDPOINTS", "true", "delivery.allow_private_endpoints", True),
    ("RUNPOD_POD_ID", "abc", "platform.on_runpod", True),
    ("RUNPOD_ENDPOINT_ID", "abc", "platform.on_runpod", True),
    ("RUNPOD_WEBHOOK_GET_JOB", "http://host/job", "platform.on_runpod", True),
    ("RUNPOD_HANDLER_MODE", "stream", "platform.handler_mode", "stream"),
    ("HF_HUB_OFFLINE", "1", "platform.hub_offline", True),
    ("HF_HUB_CACHE", "/cache", "platform.hub_cache", Path("/cache")),
    ("HF_HOME", "/home/hf", "platform.hub_cache", Path("/home/hf/hub")),
    ("XDG_CACHE_HOME", "/xdg", "platform.hub_cache", Path("/xdg/huggingface/hub")),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_at(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def settings_from(text: str, environ: Mapping[str, str] | None = None) -> Settings:
    Path("config.yaml").write_text(text, encoding="utf-8")
    return load_settings(environ or {})


def complaint(text: str | None = None, **environ: str) -> str:
    """The message that a file or an environment is refused with: always one line."""
    with pytest.raises(InvalidConfig) as caught:
        settings_from(text, environ) if text is not None else load_settings(environ)
    assert "\n" not in caught.value.message
    return caught.value.message


# What you get


def test_without_a_file_or_variables_you_get_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({}).voice_library.path == REPOSITORY_ROOT / "voices"


def test_the_example_file_holds_every_key_at_its_default() -> None:
    def names(section: Any) -> set[str]:
        inner = {name: getattr(section, name) for name in type(section).model_fields}
        return {
            f"{name}.{key}" if key else name
            for name, value in inner.items()
            for key in (names(value) if hasattr(value, "model_dump") else [""])
        }

    def leaves(node: Any) -> set[str]:
        return {
            f"{name}.{key}" if key else name
            for name, value in node.items()
            for key in (leaves(value) if isinstance(value, dict) else [""])
        }

    given = leaves(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    assert given == {name for name in names(Settings()) if not name.startswith("platform.")}
    assert load_settings({}, EXAMPLE) == Settings()


def test_the_example_file_names_every_variable_and_explains_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    keys = [line for line in text.splitlines() if ": " in line and not line.startswith("#")]
    assert all("  # " in line for line in keys)
    assert all(name in text for name in VARIABLES if not name.startswith("HF_"))


@pytest.mark.parametrize(("name", "text", "key", "value"), VARIABLE_CASES)
def test_each_variable_sets_its_key(name: str, text: str, key: str, value: Any) -> None:
    assert value_at(load_settings({name: text}), key) == value
    assert value_at(load_settings({name: text}), key) != value_at(Settings(), key)


def test_the_cases_above_cover_every_variable() -> None:
    assert set(VARIABLES) <= {name for name, *_ in VARIABLE_CASES}


@pytest.mark.parametrize(("name", "key"), sorted({(n, k) for n, _, k, _ in VARIABLE_CASES}))
def test_an_empty_variable_counts_as_unset(name: str, key: str) -> None:
    for text in ("", "  "):
        assert load_settings({name: text}) == Settings()


def test_the_file_wins_over_the_defaults_and_the_environment_over_the_file() -> None:
    text = "generation: {defaults: {seed: 1, chunk_size: 80}, limits: {max_text_length: 50}}"
    settings = settings_from(text, {"DEFAULT_SEED": "2"})
    assert settings.generation.defaults.seed == 2
    assert settings.generation.defaults.chunk_size == 80
    assert settings.generation.limits.max_text_length == 50
    assert settings.generation.defaults.top_p == 0.95


def test_the_hub_cache_variable_wins_over_the_hub_home() -> None:
    settings = load_settings({"HF_HOME": "/home/hf", "HF_HUB_CACHE": "/cache"})
    assert settings.platform.hub_cache == Path("/cache")


def test_a_codec_repository_in_the_environment_wins_over_a_folder_in_the_file() -> None:
    settings = settings_from("codec: {path: /models/dac}", {"DAC_MODEL": "someone/dac"})
    assert (settings.codec.path, settings.codec.repo_id) == (None, "someone/dac")


def test_a_folder_that_looks_like_a_repository_is_taken_as_the_folder(elsewhere: Path) -> None:
    (elsewhere / "someone/dac").mkdir(parents=True)
    assert load_settings({"DAC_MODEL": "someone/dac"}).codec.path == elsewhere / "someone/dac"


def test_relative_paths_start_at_the_root_in_the_file_and_here_in_the_environment(
    elsewhere: Path,
) -> None:
    settings = settings_from("voice_library: {path: mine}\ncodec: {path: models/dac}")
    assert settings.voice_library.path == REPOSITORY_ROOT / "mine"
    assert settings.codec.path == REPOSITORY_ROOT / "models/dac"
    here = load_settings({"VOICE_LIBRARY_PATH": "mine"})
    assert here.voice_library.path == elsewhere / "mine"


def test_dia_config_names_the_file(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("model: {dtype: float32}")
    (elsewhere / "config.yaml").write_text("model: {dtype: float16}")
    assert load_settings({"DIA_CONFIG": "mine.yaml"}).model.dtype == "float32"
    assert load_settings({}).model.dtype == "float16"
    assert load_settings({"DIA_CONFIG": "mine.yaml"}, Path("config.yaml")).model.dtype == "float16"


def test_an_empty_file_and_an_empty_section_change_nothing() -> None:
    assert settings_from("") == Settings()
    assert settings_from("voice_library:\n") == Settings()


def test_a_variable_named_like_a_section_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "gpt")
    monkeypatch.setenv("PLATFORM", "linux")
    assert load_settings({}) == Settings() == load_settings({"MODEL": "gpt"})


def test_the_process_environment_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_SEED", "5")
    assert load_settings().generation.defaults.seed == 5


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({})
    with pytest.raises(ValidationError):
        settings.model.device = "cpu"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.model = settings.model  # type: ignore[misc]


# What a mistake is answered with


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [
        ("DIA_MODEL_REPO_ID", "dia", "org/name"),
        ("DIA_MODEL_REPO_ID", "a/..", "org/name"),
        ("DIA_MODEL_WEIGHTS_FILENAME", "dia.gguf", ".safetensors"),
        ("DIA_MODEL_GENERATION", "may", 'april or "0626"'),
        ("MODEL_DEVICE", "tpu", "auto, cpu, cuda or cuda:N"),
        ("MODEL_DTYPE", "int8", "auto, bfloat16, float16 or float32"),
        ("VOICE_CACHE_SIZE", "0", "a whole number, 1 or more"),
        ("DEFAULT_SEED", "-1", "a whole number from 0 to 4294967295"),
        ("DEFAULT_SEED", "4294967296", "a whole number from 0 to 4294967295"),
        ("DEFAULT_CHUNK_SIZE", "39", "a whole number from 40 to 500"),
        ("DEFAULT_CHUNK_SIZE", "501", "a whole number from 40 to 500"),
        ("DEFAULT_CHUNK_SIZE", "many", "a whole number from 40 to 500"),
        ("DEFAULT_ENABLE_CHUNKING", "perhaps", "true or false"),
        ("MAX_TEXT_LENGTH", "1.5", "a whole number, 1 or more"),
        ("CONCURRENT_REQUESTS", "null", "a whole number, 1 or more"),
        ("REMOTE_REFERENCES", "perhaps", "true or false"),
        ("REMOTE_TIMEOUT_S", "0.5", "a number from 1 to 120"),
        ("MEMORY_OPTIMIZATION", "2", "true or false"),
        ("CUDA_MEMORY_FRACTION", "0", "a number above 0, at most 1"),
        ("CUDA_MEMORY_FRACTION", "nan", "a number above 0, at most 1"),
        ("BUCKET_NAME", "arn:aws:s3:::speech", "a bucket's name, 3 to 63 characters"),
        ("BUCKET_PREFIX", "../speech", "names of letters, digits"),
        ("BUCKET_URL_EXPIRY_S", "604801", "a whole number from 1 to 604800"),
        ("HF_HUB_OFFLINE", "perhaps", "true or false"),
    ],
)
def test_a_bad_variable_is_named_with_what_it_may_hold(name: str, text: str, valid: str) -> None:
    message = complaint(**{name: text})
    assert message.startswith(f"{name}: {text!r} is not allowed; it must be {valid}") or (
        message.startswith(f"{name}: {text!r}") and valid in message
    )


@pytest.mark.parametrize(
    ("key", "given", "shown", "valid"),
    [
        ("generation.defaults.chunk_size", 700, "700", "a whole number from 40 to 500"),
        ("generation.defaults.chunk_size", "120", "'120'", "a whole number from 40 to 500"),
        ("generation.defaults.chunk_size", True, "true", "a whole number from 40 to 500"),
        ("generation.defaults.cfg_scale", 10.1, "10.1", "a number from 0 to 10"),
        ("generation.defaults.temperature", "hot", "'hot'", "a number from 0 to 2"),
        ("generation.defaults.top_p", 0, "0", "a number above 0, at most 1"),
        ("generation.defaults.cfg_filter_top_k", 1025, "1025", "a whole number from 1 to 1024"),
        ("generation.defaults.max_tokens", 3057, "3057", "a whole number from 1 to 3056 or null"),
        ("generation.defaults.output_format", "avi", "'avi'", "wav, flac, mp3, opus, aac or pcm"),
        ("generation.limits.max_text_length", None, "null", "a whole number, 1 or more"),
        ("performance.slots", 0, "0", "a whole number, 1 or more or null"),
        ("voice_library.preload_voices", "ann", "'ann'", "a list"),
        ("voice_library.path", 3, "3", "a path"),
        ("model.revision", "", "''", "text, not empty"),
        ("model.generation", 406, "406", 'april or "0626" (in YAML with the quotes)'),
        ("model", 3, "3", "a mapping of source, repo_id"),
    ],
)
def test_a_bad_value_in_the_file_is_named_with_its_key(
    key: str, given: Any, shown: str, valid: str
) -> None:
    nested: Any = given
    for name in reversed(key.split(".")):
        nested = {name: nested}
    message = complaint(yaml.safe_dump(nested))
    assert message.startswith(f"config.yaml: {key}: {shown} is not allowed; it must be {valid}")


def test_every_bad_value_of_a_file_is_named_at_once() -> None:
    message = complaint("generation: {defaults: {seed: -1, top_p: 2}}")
    assert "defaults.seed: -1" in message
    assert "defaults.top_p: 2" in message


def test_a_bad_item_of_a_list_is_named_with_its_place() -> None:
    assert "voice_library.preload_voices.1: 3" in complaint(
        "voice_library: {preload_voices: [ann, 3]}"
    )


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("modle: {}", "modle", "model"),
        ("model: {repo: a/b}", "model.repo", "model.repo_id"),
        (
            "generation: {defaults: {chunksize: 9}}",
            "generation.defaults.chunksize",
            "generation.defaults.chunk_size",
        ),
        ("chunk_size: 100", "chunk_size", "generation.defaults.chunk_size"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_key_that_was_meant(
    text: str, key: str, meant: str
) -> None:
    assert complaint(text) == f"config.yaml: {key}: no such key; did you mean {meant}?"


@pytest.mark.parametrize("text", ["zzz: 1", "1: x", "_env_file: x", "platform: {}"])
def test_an_unknown_key_is_answered_with_the_known_ones(text: str) -> None:
    assert complaint(text).endswith(
        "no such key; the known ones are model, codec, voice_library, generation, "
        "performance, delivery"
    )


def test_a_misspelt_variable_of_ours_is_answered_with_the_one_that_was_meant() -> None:
    message = complaint(DIA_MODEL_REPO="a/b")
    assert message == (
        "DIA_MODEL_REPO: no such environment variable; did you mean DIA_MODEL_REPO_ID?"
    )
    assert "the known ones are DIA_CONFIG, DIA_MODEL," in complaint(DIA_X="1")


def test_a_file_that_is_not_there_is_refused(elsewhere: Path) -> None:
    assert complaint(DIA_CONFIG="none.yaml").startswith("DIA_CONFIG: 'none.yaml' is no file")
    with pytest.raises(InvalidConfig, match=r"none\.yaml: cannot be read: No such file"):
        load_settings({}, elsewhere / "none.yaml")


def test_a_folder_in_place_of_the_file_is_refused(elsewhere: Path) -> None:
    (elsewhere / "config.yaml").mkdir()
    assert complaint().startswith("config.yaml: cannot be read:")


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tx", "x: !!python/object:os.system {}"])
def test_a_file_that_is_not_yaml_is_refused_with_the_place(text: str) -> None:
    message = complaint(text)
    assert message.startswith("config.yaml: is not YAML:")
    assert "line 1" in message


def test_a_file_that_is_not_text_is_refused(elsewhere: Path) -> None:
    (elsewhere / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert complaint().startswith("config.yaml: is not YAML:")


@pytest.mark.parametrize("text", ["- a", "word", "3"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "the whole file" in complaint(text)
    assert "it must be a mapping of model, codec" in complaint(text)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(complaint(MODEL_DEVICE="x" * 10_000)) < 200


# The ranges, as a job meets them


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (limits.ChunkSize, [40, 500], [39, 501, True, "40", 40.0, None]),
        (limits.Seed, [0, 2**32 - 1], [-1, 2**32, False, "1"]),
        (limits.CfgScale, [0, 3, 10.0], [-0.1, 10.1, True, "3", float("nan")]),
        (limits.Temperature, [0, 2], [-1, 2.1, False, float("inf")]),
        (limits.TopP, [0.01, 1], [0, 1.01, True]),
        (limits.CfgFilterTopK, [1, 1024], [0, 1025, True, 1.0]),
        (limits.MaxTokens, [1, 3056], [0, 3057, "1"]),
        (limits.Switch, [True, False], [0, 1, "true", None]),
        (limits.Device, ["cuda:0"], ["cuda:", "cuda:0\n", "CPU"]),
        (limits.OutputFormat, ["wav", "mp3"], ["WAV", "", None]),
    ],
)
def test_a_field_of_a_job_takes_its_range_and_nothing_that_only_looks_like_it(
    kind: Any, good: list[Any], bad: list[Any]
) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_the_words_for_a_type_say_what_it_allows() -> None:
    assert limits.valid_values(limits.Seed | None) == "a whole number from 0 to 4294967295 or null"
    assert limits.valid_values(list[limits.Text]) == "a list, each item text, not empty"
    assert limits.valid_values(Settings().model.__class__).startswith("a mapping with some of")
