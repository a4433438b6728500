"""Sound in, speech features out: any sound file → mono samples → log-mel energies, loudness and silence.

Time convention: sample n is at n / RATE seconds; feature frame j is centred at j / FEATURE_RATE
seconds (the signal is padded with zeros at both ends), so video frame i at 25 fps, shown from
i / 25 to (i + 1) / 25, is centred on feature frame 4 i + 2. All levels are dB re full scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np

from render.files import InputError

RATE = 16_000
"""Sample rate of all analysis, Hz."""
FEATURE_RATE = 100
"""Feature frames per second."""
WINDOW = 400
"""Analysis window, samples (25 ms)."""
BANDS = 80
LOWEST, HIGHEST = 60.0, 7600.0
"""Frequency range of the mel bands, Hz. Below are rumble and mains hum."""
QUIET = -70.0
"""A file whose speech level is below this (dB re full scale) is taken as silent rather than amplified."""
SPAN = 55.0
"""`normalised` keeps this many dB below the speech level; what is quieter is zero."""
PAUSE, REST = 0.3, 0.43
"""Seconds of silence after which a mouth may close, and after which it does: half a second, of which the rows at its ends still hear the words."""
DEEP = 50.0
"""dB below the speech level at which not even breath is left."""
_HOP = RATE // FEATURE_RATE
_FFT = 1024
_BLOCK = 1 << 18


def load_audio(path: str | Path, rate: int = RATE) -> np.ndarray:
    """Read any sound file, or the sound of a video, as mono float32 samples (n,) at `rate` Hz.

    Decodes and resamples block by block, so memory grows only with the result. libsndfile reads what it knows
    (wav of 8 to 32 bits or float, flac, ogg, mp3), PyAV the rest (m4a, mp4, webm …). Channels are averaged.
    Raises InputError when the file is missing, empty, not sound, without samples, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a sound file such as speech.wav")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); record or export it again")
    source, blocks = _open(path)
    if not 2_000 <= source <= 1_000_000:
        raise InputError(f"{path} claims a sample rate of {source} Hz, which is not sound; export it again at 16000 Hz or more")
    samples = np.concatenate([np.zeros(0, np.float32), *resample_blocks(_checked(path, blocks), source, rate)])
    if len(samples) == 0:
        raise InputError(f"{path} holds no sound samples; record or export it again")
    return samples


def _open(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """Sample rate and an iterator of mono float32 blocks. Raises InputError for a file that neither library reads."""
    import soundfile

    try:
        stream = soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, TypeError, ValueError):  # an unknown container, or a raw file that needs parameters
        return _open_av(path)

    def blocks() -> Iterator[np.ndarray]:
        with stream:
            for block in stream.blocks(_BLOCK, dtype="float32", always_2d=True):
                yield block.mean(1)

    return int(stream.samplerate), blocks()


def _open_av(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """As `_open`, through FFmpeg's libraries; corrupt packets are skipped."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError):
        raise InputError(f"{path} is not a sound file; give wav, mp3, m4a, flac or ogg") from None
    if not container.streams.audio:
        container.close()
        raise InputError(f"{path} has no sound track; give a sound file, or a video with sound")

    def blocks() -> Iterator[np.ndarray]:
        planar = av.AudioResampler(format="fltp")
        with container:
            try:
                for frame in container.decode(audio=0):
                    yield from (part.to_ndarray().mean(0) for part in planar.resample(frame))
            except av.InvalidDataError:
                raise InputError(f"{path} is damaged: its sound cannot be decoded; export it again") from None

    return int(container.streams.audio[0].rate), blocks()


def _checked(path: Path, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise InputError(f"{path} holds samples that are NaN or infinite; export it again as 16-bit wav")
        yield block


def resample_blocks(blocks: Iterable[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
    """Polyphase resampling of a stream of (n,) blocks from `source` to `target` Hz, whatever the block sizes.

    A linear-phase Kaiser low-pass (about 80 dB, no delay); n samples become ceil(n · target / source). Blocks are
    joined with enough context on either side that the result equals that of one pass.
    """
    if source == target:
        yield from (np.asarray(block, np.float32) for block in blocks)
        return
    from scipy.signal import firwin, resample_poly

    common = math.gcd(source, target)
    up, down = target // common, source // common
    half = 24 * max(up, down)
    low_pass = firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 8.0)).astype(np.float32)
    context = down * math.ceil((half // up + 1) / down)
    step = down * max(1, _BLOCK // down)
    held, before = np.zeros(0, np.float32), 0  # `before`: samples at the head of `held` that are context only

    def convert(block: np.ndarray, skip: int, keep: int | None) -> np.ndarray:
        out = resample_poly(block, up, down, window=low_pass)[skip * up // down :]
        return out[:keep].astype(np.float32)

    for block in blocks:
        held = np.concatenate([held, np.asarray(block, np.float32)])
        while len(held) >= before + step + context:
            yield convert(held[: before + step + context], before, step * up // down)
            cut = max(0, before + step - context)
            held, before = held[cut:], before + step - cut
    if len(held) > before:
        yield convert(held, before, math.ceil((len(held) - before) * up / down))


def resample(samples: np.ndarray, source: int, target: int = RATE) -> np.ndarray:
    """Samples (n,) at `source` Hz → (ceil(n · target / source),) float32 at `target` Hz."""
    return np.concatenate([np.zeros(0, np.float32), *resample_blocks([samples], source, target)])


@lru_cache(maxsize=4)
def mel_filters(bands: int = BANDS) -> np.ndarray:
    """(bands, _FFT // 2 + 1) float32 triangles, equally wide on the mel scale (O'Shaughnessy: 2595 log10(1 + f / 700))."""
    mel = lambda f: 2595 * np.log10(1 + np.asarray(f) / 700)  # noqa: E731 - a formula
    edges = 700 * (10 ** (np.linspace(mel(LOWEST), mel(HIGHEST), bands + 2) / 2595) - 1)
    frequency = np.arange(_FFT // 2 + 1) * RATE / _FFT
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((frequency - low) / (peak - low), (high - frequency) / (high - peak)), 0, None).astype(np.float32)


def log_mel(samples: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """Mono samples (n,) at RATE → (n // 160 + 1, bands) float32 mel-band power in dB; frame j is centred at sample 160 j.

    Works through long signals in blocks. A full-scale sine reads about −3 dB, digital silence −140 dB. A signal
    shorter than a window is padded; (0,) gives one silent frame.
    """
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise ValueError(f"log_mel takes mono samples (n,), got {samples.shape}")
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    scale = 2 / window.sum() ** 2  # a sine of amplitude 1 has power 1/2, spread over the window's main lobe
    filters = mel_filters(bands).T * np.float32(scale)
    count = len(samples) // _HOP + 1
    out = np.empty((count, bands), np.float32)
    for first in range(0, count, 2048):
        last = min(first + 2048, count)
        begin, end = first * _HOP - WINDOW // 2, (last - 1) * _HOP + WINDOW // 2
        part = np.pad(samples[max(begin, 0) : end], (max(-begin, 0), 0))
        part = np.pad(part, (0, end - begin - len(part)))
        frames = np.lib.stride_tricks.sliding_window_view(part, WINDOW)[::_HOP]
        spectrum = np.abs(np.fft.rfft(frames * window, _FFT)).astype(np.float32) ** 2
        out[first:last] = 10 * np.log10(np.maximum(spectrum @ filters, 1e-14))
    return out


def loudness(mel: np.ndarray) -> np.ndarray:
    """Total power of each log-mel frame, (F, bands) dB → (F,) dB, smoothed over 50 ms."""
    power = (10 ** (np.asarray(mel, np.float64) / 10)).sum(1)
    kernel = np.hanning(7)[1:-1] / np.hanning(7).sum()
    smooth = np.convolve(np.pad(power, 2, mode="edge"), kernel, "valid")
    return (10 * np.log10(np.maximum(smooth, 1e-14))).astype(np.float32)


def speech_level(mel: np.ndarray) -> float:
    """Typical loudness (dB) of the speech in (F, bands) log-mel: the median of the frames within 25 dB of the loudest 1 %.

    Shifts exactly with the gain and ignores pauses, however long. Never below QUIET.
    """
    level = loudness(mel)
    return max(QUIET, float(np.median(level[level >= np.percentile(level, 99) - 25])))


def normalised(mel: np.ndarray, level: float | None = None) -> np.ndarray:
    """(F, bands) dB → (F, bands) float32 ≥ 0 that do not depend on the recording's gain: tens of dB above (speech level − SPAN)."""
    level = speech_level(mel) if level is None else level
    return (np.maximum(mel - (level - SPAN), 0) / 10).astype(np.float32)


def silence_mask(mel: np.ndarray, level: float | None = None, shortest: float = 0.12) -> np.ndarray:
    """Where nobody speaks: (F, bands) dB → (F,) bool.

    Silent = 30 dB below the speech level, or within 6 dB of the noise floor where that is at least 15 dB below speech.
    Gaps shorter than `shortest` seconds (the closure of a plosive) count as speech, and so do no sounds shorter than 40 ms
    (clicks). The whole signal is silent when its level is below QUIET.
    """
    loud = loudness(mel)
    level = speech_level(mel) if level is None else level
    if level <= QUIET:
        return np.ones(len(mel), bool)
    floor = float(np.percentile(loud, 3))
    silent = loud < max(level - 30, min(floor + 6, level - 15))
    silent = _without_short_runs(silent, False, round(0.04 * FEATURE_RATE))
    return _without_short_runs(silent, True, round(shortest * FEATURE_RATE))


def _without_short_runs(mask: np.ndarray, value: bool, length: int) -> np.ndarray:
    """Flip runs of `value` that are shorter than `length`."""
    mask = mask.copy()
    edges = np.flatnonzero(np.diff(mask)) + 1
    for a, b in zip(np.r_[0, edges], np.r_[edges, len(mask)]):
        if mask[a] == value and b - a < length and (a > 0 or b < len(mask)):
            mask[a:b] = not value
    return mask


@dataclass(frozen=True)
class Heard:
    """A sound, as the networks see it: features (4 T + 1, bands), activity (T,) of the voice, pause and rest (T,) from 0 to 1,
    bilabial (T,) the probability of /p b m/ where it was asked for.

    In a rest the mouth is closed; in a pause only as far as this subject does that, who may be drawing breath.
    """

    features: np.ndarray
    pause: np.ndarray
    rest: np.ndarray
    activity: np.ndarray
    bilabial: np.ndarray | None = None


def hear(samples: np.ndarray, fps: float, frames: int, encode: Callable[[np.ndarray, float], np.ndarray] | None = None, patience: float = REST) -> Heard:
    """Listen to mono samples at RATE for `frames` video frames at fps; frame i is shown from i / fps to (i + 1) / fps.

    encode: (samples, speech level) → features at FEATURE_RATE, see `thnerf.encoders`; normalised log-mel by default. patience: s of silence
    that are a rest; of a silence DEEP below the speech, REST are.
    """
    mel = log_mel(samples)
    level, power = speech_level(mel), loudness(mel)
    silent, deep = silence_mask(mel, level), power < max(level - DEEP, QUIET - 30)
    loud = np.clip((power - level + 30) / 40, 0, 1.2) * ~silent
    rest = np.maximum(_pauses(silent, patience), _pauses(deep, REST))
    curves = [_smooth(_pauses(silent, PAUSE), 0.16), _smooth(rest, 0.16), _smooth(loud, 0.3)]
    middle = (np.arange(frames) + 0.5) / fps * FEATURE_RATE
    grid = np.arange(len(mel))
    at = np.arange(4 * frames + 1) * (FEATURE_RATE / (4 * fps))
    x = normalised(mel, level) if encode is None else encode(samples, level)
    if not np.allclose(at, np.arange(len(at))):
        low = np.clip(at.astype(int), 0, max(len(x) - 2, 0))
        x = x[low] + np.clip(at - low, 0, 1)[:, None].astype(np.float32) * (x[np.minimum(low + 1, len(x) - 1)] - x[low])
    x = np.pad(x[: len(at)], ((0, max(0, len(at) - len(x))), (0, 0)), mode="edge")
    return Heard(x.astype(np.float32), *(np.interp(middle, grid, c).astype(np.float32) for c in curves))


def _pauses(silent: np.ndarray, shortest: float) -> np.ndarray:
    """Silences of at least `shortest` seconds, less the moments in which lips still close and already open (they lead the sound)."""
    out = np.zeros(len(silent))
    edges = np.r_[0, np.flatnonzero(np.diff(silent)) + 1, len(silent)]
    for a, b in zip(edges, edges[1:]):
        if silent[a] and (b - a >= shortest * FEATURE_RATE or b - a == len(silent)):
            out[a + 6 if a else 0 : b - 10 if b < len(silent) else b] = 1
    return out


def _smooth(x: np.ndarray, seconds: float) -> np.ndarray:
    """Moving Hann average over `seconds` at the feature rate."""
    n = int(seconds * FEATURE_RATE) // 2
    kernel = np.hanning(2 * n + 3)[1:-1]
    return np.convolve(np.pad(x, n, mode="edge"), kernel / kernel.sum(), "valid")
