"""What a user may send as a recording, and what is said to one who sends something else."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from worker.audio.decode import read_audio
from worker.audio.encode import encode_audio
from worker.errors import InvalidReference

RATE = 44_100


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> NDArray[np.float32]:
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def file_of(waveform: NDArray[np.float32], rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=container, subtype=subtype)
    return file.getvalue()


def av_file_of(waveform: NDArray[np.float32], rate: int, container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        sample_format = stream.format.name
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for converted in av.AudioResampler(format=sample_format).resample(frame):
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def pitch(waveform: NDArray[np.float32], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * rate / len(waveform))


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "PCM_U8"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_common_recordings_are_read_and_resampled(container: str, subtype: str) -> None:
    data = file_of(tone(rate=48_000), 48_000, container, subtype)
    waveform = read_audio(data, RATE)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) == pytest.approx(RATE, abs=2)
    assert pitch(waveform, RATE) == pytest.approx(440, abs=2)
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("ipod", "aac"), ("mp4", "aac"), ("adts", "aac"), ("webm", "libopus")],
)
def test_recordings_of_telephones_and_browsers_are_read(container: str, codec: str) -> None:
    waveform = read_audio(av_file_of(tone(rate=48_000), 48_000, container, codec), RATE)
    assert len(waveform) / RATE == pytest.approx(1.0, abs=0.05)
    assert pitch(waveform, RATE) == pytest.approx(440, abs=2)


def test_a_stereo_mp3_at_48_khz_becomes_mono_at_44100_hz() -> None:
    left, right = tone(rate=48_000), tone(rate=48_000) / 2
    data = file_of(np.stack([left, right], axis=1), 48_000, "MP3", "MPEG_LAYER_III")
    waveform = read_audio(data, RATE)
    assert waveform.shape == (RATE,)
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.3, abs=0.02)


def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "voice.raw"
    path.write_bytes(encode_audio(tone(), RATE, "flac").data)
    np.testing.assert_allclose(read_audio(path, RATE), tone(), atol=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a transcript, not a recording " * 50,
        np.random.default_rng(0).bytes(20_000),
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        encode_audio(tone(), RATE, "flac").data[:2000],
    ],
    ids=["empty", "text", "noise", "picture", "cut off"],
)
def test_what_is_not_audio_is_refused_with_what_is(data: bytes) -> None:
    with pytest.raises(InvalidReference, match="not audio that can be read") as caught:
        read_audio(data, RATE)
    assert "wav, flac, mp3, ogg, m4a" in caught.value.message


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXTINF:9,\nfile://{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"],
)
def test_a_playlist_cannot_name_a_file_of_the_worker(tmp_path: Path, playlist: str) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode_audio(tone(), RATE, "wav").data)
    with pytest.raises(InvalidReference, match="not audio"):
        read_audio(playlist.format(secret).encode(), RATE)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidReference, match=r"gone\.wav cannot be read: No such file"):
        read_audio(tmp_path / "gone.wav", RATE)


def test_a_recording_without_samples_is_refused() -> None:
    data = file_of(np.zeros(0, np.float32), RATE, "WAV", "PCM_16")
    with pytest.raises(InvalidReference, match="0 samples"):
        read_audio(data, RATE)


@pytest.mark.parametrize("format", ["wav", "flac", "aac"])
def test_a_recording_over_the_limit_is_refused_and_the_limit_named(format: str) -> None:
    data = encode_audio(tone(3.0), RATE, format).data
    with pytest.raises(InvalidReference, match=r"longer than 2 s"):
        read_audio(data, RATE, max_seconds=2.0)


def test_hours_of_audio_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = 3600 * 8000  # one, at 8 kHz
    header = struct.pack("<4sI4s", b"RIFF", hours * 2 + 36, b"WAVE")
    header += struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    data = header + struct.pack("<4sI", b"data", hours * 2) + bytes(hours * 2)
    decoded = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: object, **kwargs: object) -> object:
        block = read(self, *args, **kwargs)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(InvalidReference, match="longer than 120 s"):
        read_audio(data, RATE)
    assert sum(decoded) < 200 * 8000


def test_a_cut_off_mp3_gives_its_beginning_and_nothing_made_up() -> None:
    whole = encode_audio(tone(4.0), RATE, "mp3").data
    waveform = read_audio(whole[: len(whole) // 2], RATE)
    assert 0 < len(waveform) < 3 * RATE
    assert np.abs(waveform).max() < 0.5


@pytest.mark.parametrize(("rate", "channels"), [(4000, 1), (400_000, 1), (44_100, 12)])
def test_odd_rates_and_channel_counts_are_refused_by_name(rate: int, channels: int) -> None:
    data = file_of(np.zeros((1000, channels), np.float32), rate, "WAV", "PCM_16")
    with pytest.raises(InvalidReference, match=r"sample rate|channels"):
        read_audio(data, RATE)
