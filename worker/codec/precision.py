"""Whether a codec may decode in half precision: its own weights are asked.

Knows a reference, random codes that every codec can decode, and how far a decoder in fewer bits
may be from itself in float32. How much the rounding is heard depends on the weights, so it is
measured where they are loaded, on the device that will run them, and not assumed.

Signal over error of the whole decoder in half precision, against float32:

                                          float16    bfloat16
    trained, 6.0 M, recorded speech    62 … 65 dB  44 … 46 dB
    the same, the reference here            61 dB       44 dB
    full size, untrained, reference         59 dB       41 dB
    dia-tiny's stand-in, untrained          32 dB       21 dB    stays in float32

On the speech, float16 is at most 0.0006 off, 0.05 dB in a log-mel spectrum, and in the quieter
half 1.3e-5 RMS, as much as rounding to 16 bits; bfloat16 0.005, 0.8 dB and 1.1e-4. Snake alone in
float32 gives 1 to 2 dB and doubles what its kernels move through memory, so it is rounded with the
rest. What is delivered loses more: aac leaves 33 dB of the same speech, mp3 25, opus 22.

Encoder and quantizer stay in float32 always: see `Codec`.
"""

from __future__ import annotations

import copy
import logging
import math

import torch
from torch import Tensor, nn

from worker.codec.codec import Codec
from worker.codec.network import Decoder

logger = logging.getLogger(__name__)

# The same speed and size on a GPU; float16 has three more bits of mantissa, bfloat16 the range.
HALF = (torch.float16, torch.bfloat16)
LEAST_SNR = 40.0  # dB; the error is then 7 dB below that of the best of the lossy formats

REFERENCE_FRAMES = 40  # twice the context and as much again: the inside and both ends
# How far below a type's largest value the reference must stay. Speech drove the trained codec's
# activations three times as far as random codes did.
HEADROOM = 64.0


def with_fast_decode(codec: Codec) -> Codec:
    """The codec with its decoder in half precision, if its weights allow it; float32 otherwise.

    For a GPU: on a CPU half precision is slower. Takes `codec` over; its decoder is cast in place,
    so that no second one stays in memory. Logs one line that says what was chosen and why.
    """
    errors: list[str] = []
    for dtype in HALF:
        error = decode_error(codec, dtype)
        errors.append(f"{_name(dtype)} {error:.0f} dB")
        if error >= LEAST_SNR:
            logger.info("codec decodes in %s: %s", _name(dtype), ", ".join(errors))
            return Codec(codec.network, codec.fingerprint, dtype, codec.frames_at_once)
    logger.info(
        "codec decodes in %s: signal over rounding error would be %s, and must be %.0f dB",
        _name(codec.decode_dtype),
        ", ".join(errors),
        LEAST_SNR,
    )
    return codec


@torch.inference_mode()
def decode_error(codec: Codec, dtype: torch.dtype) -> float:
    """Signal over error, in dB, of decoding the reference in `dtype` instead of as now.

    -inf if activations come within `HEADROOM` of the largest value of `dtype`, or the result is
    not finite. Copies the decoder for as long as it takes.
    """
    latent = codec.network.quantizer.from_codes(_reference(codec))
    exact, loudest = _with_loudest(codec.network.decoder, latent.to(codec.decode_dtype))
    if loudest * HEADROOM > torch.finfo(dtype).max:
        return -math.inf
    decoder = copy.deepcopy(codec.network.decoder).to(dtype)
    return _snr(exact, decoder(latent.to(dtype)))


def _reference(codec: Codec) -> Tensor:
    """Codes [1, K, REFERENCE_FRAMES], the same on every machine."""
    shape = (1, codec.codebooks, REFERENCE_FRAMES)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(codec.config.codebook_size, shape, generator=generator)
    return codes.to(codec.device)


def _with_loudest(decoder: Decoder, latent: Tensor) -> tuple[Tensor, float]:
    """The waveform [1, 1, N], and the largest magnitude that goes through any module."""
    peaks = [latent.abs().max()]

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        peaks.append(output.abs().max())

    hooks = [module.register_forward_hook(note) for module in decoder.modules()]
    try:
        waveform: Tensor = decoder(latent)
    finally:
        for hook in hooks:
            hook.remove()
    return waveform, float(torch.stack(peaks).max())


def _snr(exact: Tensor, rounded: Tensor) -> float:
    signal, error = exact.double(), rounded.double() - exact.double()
    ratio = float(signal.square().sum() / error.square().sum())
    if math.isnan(ratio) or ratio == 0:
        return -math.inf
    return 10 * math.log10(ratio) if math.isfinite(ratio) else math.inf


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
