"""What can be set, section by section, and the defaults.

Knows every key and what it may hold; the ranges themselves are in `worker.limits`. Does not know
where values come from: `worker.config` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.limits import (
    BucketName,
    CfgFilterTopK,
    CfgScale,
    ChunkSize,
    Device,
    Dtype,
    Endpoint,
    Fraction,
    Generation,
    HandlerMode,
    KeyPrefix,
    MaxTokens,
    OutputFormat,
    PositiveInt,
    Region,
    RemoteTimeout,
    RepositoryId,
    Seconds,
    Secret,
    Seed,
    Switch,
    Temperature,
    Text,
    TopP,
    UrlExpiry,
    WeightsFilename,
)

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


def expanded(path: str | Path) -> Path:
    """The path with its `~` replaced."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's raises where there is no home


def _from_root(path: Path) -> Path:
    return REPOSITORY_ROOT / expanded(path)


Place = Annotated[Path, AfterValidator(_from_root)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Section):
    """Which Dia checkpoint, and how it runs.

    Attributes:
        source: What `DIA_MODEL` holds: `dia-tiny`, a folder or weights file, or org/name. Wins
            over `repo_id`.
        revision: Branch, tag or commit; `None` is the repository's default branch.
        device: `auto` is the first CUDA device, else the CPU.
        dtype: `auto` is bfloat16 on CUDA and float32 on the CPU.
        generation: Overrides what the model's `config.json` says.
    """

    source: Text | None = None
    repo_id: RepositoryId = "ttj/dia-1.6b-safetensors"
    weights_filename: WeightsFilename = "dia-v0_1_bf16.safetensors"
    revision: Text | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    generation: Generation | None = None


class CodecSettings(Section):
    """Which Descript Audio Codec; `path` is a folder and wins over `repo_id`."""

    repo_id: RepositoryId = "descript/dac_44khz"
    revision: Text | None = None
    path: Place | None = None


class VoiceLibrarySettings(Section):
    """Where the voices lie, how many stay in memory, and which are read at start."""

    path: Place = REPOSITORY_ROOT / "voices"
    max_cache_size: PositiveInt = 10
    preload_voices: tuple[Text, ...] = ()


class GenerationDefaults(Section):
    """What a job gets for the fields that it leaves out.

    Attributes:
        seed: `None` draws a new one for every job.
        max_tokens: Frames of one chunk; `None` works it out from the text.
    """

    enable_chunking: Switch = True
    chunk_size: ChunkSize = 120
    allow_multiple_speakers: Switch = True
    seed: Seed | None = 42
    cfg_scale: CfgScale = 3.0
    temperature: Temperature = 1.3
    top_p: TopP = 0.95
    cfg_filter_top_k: CfgFilterTopK = 35
    max_tokens: MaxTokens | None = None
    output_format: OutputFormat = "wav"


class GenerationLimits(Section):
    """What no job may exceed.

    Attributes:
        max_text_length: Characters of text.
        concurrent_requests: Jobs at the same time; never more than the engine has slots.
        timeout_s: Seconds of one job; `None` leaves it to the platform, which stops a job after 10
            minutes unless the endpoint or the job says otherwise.
        remote_references: Whether a clone's recording may lie elsewhere, at
            `reference_audio_url`. On, as it reaches nothing but hosts of the public internet, by
            https, and shows nobody what they send.
        remote_timeout_s: Seconds that its download may take.
    """

    max_text_length: PositiveInt = 10_000
    concurrent_requests: PositiveInt = 3
    timeout_s: Seconds | None = None
    remote_references: Switch = True
    remote_timeout_s: RemoteTimeout = 15.0


class GenerationSettings(Section):
    """Defaults and limits of a job."""

    defaults: GenerationDefaults = GenerationDefaults()
    limits: GenerationLimits = GenerationLimits()


class PerformanceSettings(Section):
    """Memory and batching.

    Attributes:
        memory_optimization: Whether a device's memory that is not in use is given back whenever
            the engine has nothing to do.
        slots: Chunks that are decoded side by side; `None` works it out from the device.
        cuda_graphs: Whether decode steps are recorded and played back on a CUDA device.
        reproducible: Whether a job gives the same codes whatever else runs beside it, to the last
            bit; every step then computes all slots.
        fused_kernels: Whether Triton kernels do what lies between the matrix products there.
    """

    memory_optimization: Switch = True
    cuda_memory_fraction: Fraction = 0.9
    slots: PositiveInt | None = None
    cuda_graphs: Switch = True
    fused_kernels: Switch = True
    reproducible: Switch = False


class BucketSettings(Section):
    """The S3 bucket for results. Address, name and keys go together; without them there is none.

    Attributes:
        region: `None` takes it from the address where that says it, else us-east-1.
        prefix: What the keys of all results begin with.
        url_expiry_s: Seconds for which the address of a result works.
    """

    endpoint_url: Endpoint | None = None
    name: BucketName | None = None
    region: Region | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    prefix: KeyPrefix = ""
    url_expiry_s: UrlExpiry = 24 * 3600


class DeliverySettings(Section):
    """How results leave the worker.

    Attributes:
        allow_private_endpoints: Whether a job's own `s3Config` may name a store without https, or
            one in this machine's own network.
        keep_in: A folder of this machine in which every result is kept as a file, beside being
            delivered; `None` keeps nothing.
    """

    keep_in: Place | None = None
    bucket: BucketSettings = BucketSettings()
    allow_private_endpoints: Switch = False


class PlatformSettings(Section):
    """What the environment says of the place where the worker runs; no key of the file.

    Attributes:
        on_runpod: Whether RunPod started this process.
        handler_mode: `job` answers a job once; `stream` sends its audio in pieces as well.
        hub_offline: Whether nothing may be downloaded.
        hub_cache: Where `huggingface_hub` keeps what it downloads.
    """

    on_runpod: Switch = False
    handler_mode: HandlerMode = "job"
    hub_offline: Switch = False
    hub_cache: Path = expanded("~/.cache/huggingface/hub")


class Settings(BaseSettings):
    """Everything that can be set. `load_settings` builds it; without arguments, the defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    codec: CodecSettings = CodecSettings()
    voice_library: VoiceLibrarySettings = VoiceLibrarySettings()
    generation: GenerationSettings = GenerationSettings()
    performance: PerformanceSettings = PerformanceSettings()
    delivery: DeliverySettings = DeliverySettings()
    platform: PlatformSettings = PlatformSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` passes: a stray variable called MODEL must set nothing."""
        return (init_settings,)
