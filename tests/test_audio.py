"""Sound files of every kind in, aligned and gain-free features out."""

import math
import wave
from pathlib import Path

import numpy as np
import pytest

from render.files import InputError
from thnerf import audio

soundfile = pytest.importorskip("soundfile")


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def speechlike(seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Noise bursts of 0.3 s with pauses of 0.2 s over a faint hiss."""
    rng = np.random.default_rng(seed)
    n = int(seconds * audio.RATE)
    gate = (np.arange(n) / audio.RATE) % 0.5 < 0.3
    return (rng.normal(size=n) * (0.1 * gate + 1e-5)).astype(np.float32)


def encode(path: Path, samples: np.ndarray, rate: int, codec: str) -> None:
    """Write a compressed file with PyAV."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM"])
def test_wav_of_any_sample_format(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype=subtype)
    loaded = audio.load_audio(tmp_path / "a.wav")
    assert loaded.dtype == np.float32 and loaded.ndim == 1
    assert np.abs(loaded[:16000] - tone(16000)).max() < {"PCM_U8": 0.01, "ULAW": 0.03, "MS_ADPCM": 0.1}.get(subtype, 1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_16k_without_delay(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    loaded = audio.load_audio(tmp_path / "a.wav")
    assert len(loaded) == math.ceil(len(tone(rate)) * 16000 / rate)
    inner = slice(800, 15000)
    assert np.abs(loaded[inner] - tone(16000)[inner]).max() < 1e-3


def test_resampling_removes_what_would_alias():
    assert np.abs(audio.resample(tone(48000, frequency=11000), 48000)[500:-500]).max() < 1e-3


def test_resampling_in_blocks_equals_one_pass():
    samples = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    whole = audio.resample(samples, 44100)
    blocks = np.split(samples, np.sort(np.random.default_rng(1).integers(0, len(samples), 30)))
    parts = np.concatenate(list(audio.resample_blocks(blocks, 44100, 16000)))
    assert len(whole) == math.ceil(300_000 * 160 / 441)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_stereo_is_averaged_and_the_standard_library_writes_readable_files(tmp_path):
    left = (tone(22050) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as stream:
        stream.setnchannels(2), stream.setsampwidth(2), stream.setframerate(22050)
        stream.writeframes(np.stack([left, np.zeros_like(left)], 1).tobytes())
    assert np.abs(audio.load_audio(tmp_path / "a.wav", 22050) - tone(22050) / 2).max() < 1e-3


@pytest.mark.parametrize("name,codec", [("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mkv", "aac")])
def test_what_libsndfile_cannot_read_goes_through_av(tmp_path, name, codec):
    encode(tmp_path / name, tone(44100, 2.0), 44100, codec)
    loaded = audio.load_audio(tmp_path / name)
    assert abs(len(loaded) - 32000) < 3000
    spectrum = np.abs(np.fft.rfft(loaded[8000:24000]))
    assert np.argmax(spectrum) == 440


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.ogg"])
def test_compressed_files(tmp_path, name):
    if name[2:].upper() not in soundfile.available_formats():
        pytest.skip(f"this libsndfile does not write {name[2:]}")
    soundfile.write(tmp_path / name, tone(44100, 2.0), 44100)
    spectrum = np.abs(np.fft.rfft(audio.load_audio(tmp_path / name)[8000:24000]))
    assert np.argmax(spectrum) == 440


def bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not sound at all, however long this sentence becomes\n" * 50)
    elif kind == "no_samples":
        soundfile.write(path, np.zeros(0, np.float32), 16000)
    elif kind in ("nan", "inf"):
        soundfile.write(path, np.where(np.arange(9000) == 5000, float(kind), 0.1), 16000, subtype="FLOAT")
    elif kind == "header_only":
        soundfile.write(path, tone(16000), 16000)
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "folder":
        path.mkdir()
    elif kind == "picture_only":
        import av

        path = path.with_suffix(".mp4")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 32
            for packet in [*stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))), *stream.encode(None)]:
                container.mux(packet)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "no_samples", "nan", "inf", "header_only", "folder", "picture_only"])
def test_bad_files_are_refused_in_one_sentence(tmp_path, kind):
    path = bad(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        audio.load_audio(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_wav_gives_what_it_has(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000, 2.0), 16000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: 44 + 2 * 16000])
    assert 15000 <= len(audio.load_audio(tmp_path / "a.wav")) <= 16000


@pytest.mark.parametrize("when", [0.0, 0.31, 1.234, 1.99])
def test_a_click_peaks_in_the_frame_at_its_time(when):
    samples = np.zeros(32000, np.float32)
    samples[int(when * 16000)] = 1
    mel = audio.log_mel(samples)
    assert mel.shape == (201, audio.BANDS)
    assert abs(np.argmax(mel.sum(1)) - when * 100) <= 0.51
    assert np.argmax(audio.loudness(mel)) == pytest.approx(when * 100, abs=1.01)


def test_tones_climb_the_mel_bands():
    peaks = [np.argmax(audio.log_mel(tone(16000, frequency=f))[50]) for f in (100, 300, 1000, 3000, 7000)]
    assert peaks == sorted(set(peaks))
    centres = 700 * (10 ** (np.interp(peaks, [-1, audio.BANDS], 2595 * np.log10(1 + np.array([60, 7600]) / 700)) / 2595) - 1)
    np.testing.assert_allclose(centres, [100, 300, 1000, 3000, 7000], rtol=0.25)


def test_blocks_of_a_long_signal_join_without_a_seam():
    samples = speechlike(25.0)
    whole = audio.log_mel(samples)
    assert len(whole) == 2501
    start = 2040 * 160  # the block border of log_mel is at frame 2048
    part = audio.log_mel(samples[start : start + 32000])
    np.testing.assert_allclose(whole[2045:2100], part[5:60], atol=1e-3)


@pytest.mark.parametrize("gain", [0.01, 0.1, 4.0])
def test_gain_does_not_matter(gain):
    samples = speechlike()
    a, b = audio.log_mel(samples), audio.log_mel(samples * gain)
    np.testing.assert_allclose(audio.normalised(a), audio.normalised(b), atol=0.02)
    np.testing.assert_array_equal(audio.silence_mask(a), audio.silence_mask(b))
    assert audio.speech_level(b) - audio.speech_level(a) == pytest.approx(20 * np.log10(gain), abs=0.1)


def test_long_pauses_do_not_change_the_level():
    samples = speechlike()
    padded = np.concatenate([samples, np.zeros(60 * audio.RATE, np.float32)])
    assert audio.speech_level(audio.log_mel(padded)) == pytest.approx(audio.speech_level(audio.log_mel(samples)), abs=2)


@pytest.mark.parametrize("amplitude", [0.0, 1e-5])
def test_silence_stays_silence(amplitude):
    hiss = (amplitude * np.random.default_rng(0).normal(size=32000)).astype(np.float32)
    mel = audio.log_mel(hiss)
    assert audio.silence_mask(mel).all()
    assert audio.normalised(mel).mean() < 1


def test_silence_mask_finds_the_pauses():
    mask = audio.silence_mask(audio.log_mel(speechlike()))
    truth = (np.arange(len(mask)) / 100) % 0.5 >= 0.3
    assert (mask == truth).mean() > 0.85


def test_a_short_closure_is_not_a_pause():
    samples = speechlike(3.0)
    samples[:] = np.random.default_rng(0).normal(size=len(samples)) * 0.1
    samples[16000 : 16000 + 960] = 0  # 60 ms
    assert not audio.silence_mask(audio.log_mel(samples)).any()


@pytest.mark.parametrize("breath, patience, rests", [(0.0, 0.43, True), (0.0, 2.0, True), (0.003, 0.43, True), (0.003, 2.0, False)])
def test_half_a_second_is_a_rest_for_the_patient_too_where_not_even_breath_is_left(breath, patience, rests):
    samples = np.random.default_rng(0).normal(size=3 * audio.RATE).astype(np.float32) * 0.1
    samples[16000:24000] *= breath / 0.1
    rest = audio.hear(samples, 25, 75, patience=patience).rest
    assert not rest[:24].any() and not rest[39:].any()
    assert rest[30:32].min() > 0.99 if rests else not rest.any()
    assert not audio.hear(np.concatenate([samples[:22400], samples[24000:]]), 25, 70, patience=patience).rest.any()  # 0.4 s are none
