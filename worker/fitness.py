"""Whether this device can do the work, found out before the first job asks.

Two questions: is the device of a kind that the weights' type runs on, and does a small generation
come out. The second also does, once and early, what a first job would otherwise wait for.
"""

from __future__ import annotations

import torch

from worker.codec.codec import Codec
from worker.dia.tokenizer import encode_text
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import DeviceUnfit, EngineError

TEXT = "[S1] Ready."
PROMPT_FRAMES = 8
NEW_FRAMES = 4  # some 20 steps, with the delay
PATIENCE_S = 300  # kernels that are compiled for the first time take their time
NATIVE_BFLOAT16 = (8, 0)  # compute capability


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Refuses a CUDA device that this build of torch, or the type, does not run on.

    Raises:
        DeviceUnfit: naming the device, and what would do.
    """
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    _check_architecture(name, capability, torch.cuda.get_arch_list())
    if dtype is torch.bfloat16 and capability < NATIVE_BFLOAT16:
        raise DeviceUnfit(
            f"{name} has no bfloat16 arithmetic (compute capability {_dotted(capability)}, and it "
            "begins at 8.0); choose a newer GPU, or MODEL_DTYPE=float32"
        )


def try_out(engine: EngineLoop, codec: Codec) -> None:
    """Generates and decodes a few frames.

    Raises:
        DeviceUnfit: if that does not come out.
    """
    config = engine.engine.config
    prompt = torch.zeros(PROMPT_FRAMES, config.decoder.channels, dtype=torch.long)
    ids = encode_text(TEXT, config.encoder.max_positions)
    try:
        sequence = engine.submit(Sequence(ids, prompt, NEW_FRAMES)).result(PATIENCE_S)
        assert sequence.codes is not None
        codes = torch.cat([prompt, sequence.codes])  # something, even where the model ended at once
        if not codec.decode(codes).isfinite().all():
            raise DeviceUnfit("a trial generation gave audio that is no sound")
    except (EngineError, TimeoutError) as error:
        raise DeviceUnfit(f"a trial generation failed: {error}") from error


def _check_architecture(name: str, capability: tuple[int, int], built_for: list[str]) -> None:
    """Code for one architecture runs on the later ones of its major version, and what is built as
    an intermediate language on all later ones."""
    known, portable = _numbered(built_for, "sm_"), _numbered(built_for, "compute_")
    if any(major == capability[0] and minor <= capability[1] for major, minor in known):
        return
    if any(version <= capability for version in portable):
        return
    raise DeviceUnfit(
        f"{name} has compute capability {_dotted(capability)}, and this torch {torch.__version__} "
        f"was built for {', '.join(map(_dotted, known)) or 'no CUDA device'}; choose another GPU "
        "or another build of torch"
    )


def _numbered(built_for: list[str], kind: str) -> list[tuple[int, int]]:
    """The versions among names such as sm_90a or compute_120."""
    names = [name.removeprefix(kind).rstrip("af") for name in built_for if name.startswith(kind)]
    return sorted((int(name[:-1]), int(name[-1])) for name in names)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
