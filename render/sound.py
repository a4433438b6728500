"""Sound of media files: decoding in blocks, resampling, exact lengths. `av` and `scipy` are imported on first use."""

from __future__ import annotations

import os
import warnings
from fractions import Fraction
from typing import Any, Iterator

import numpy as np

from render.files import InputError

PathLike = str | os.PathLike[str]
AUDIO_RATE = 48000


def resample_audio(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Band-limited, zero-phase resampling of (N,) samples → (ceil(N·to/rate),) float32."""
    if rate == to or not len(samples):
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly

    ratio = Fraction(int(to), int(rate))
    return resample_poly(np.asarray(samples, np.float32), ratio.numerator, ratio.denominator).astype(np.float32)


def fit_length(samples: np.ndarray, count: int) -> np.ndarray:
    """Cut (N,) samples, or pad them with zeros, to exactly (count,)."""
    return np.pad(samples[:count], (0, max(0, count - len(samples))))


class SoundFeed:
    """Sound as blocks of mono float32 at AUDIO_RATE, decoded as they are asked for; zeros after its end."""

    def __init__(self, audio: PathLike | tuple[np.ndarray, int]) -> None:
        self.position = 0
        self._held = np.zeros(0, np.float32)
        if isinstance(audio, tuple):
            self._held = np.nan_to_num(resample_audio(audio[0], audio[1], AUDIO_RATE), posinf=0.0, neginf=0.0)
            self._blocks: Iterator[np.ndarray] = iter(())
        else:
            self._blocks = self._decode(audio)
            self._held = next(self._blocks, self._held)  # fail before the first frame is written

    @staticmethod
    def _decode(path: PathLike) -> Iterator[np.ndarray]:
        import av

        try:
            source = av.open(str(path), metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"{path} is not a readable sound file ({reason(error)}); convert it to wav") from None
        with source:
            if not source.streams.audio:
                raise InputError(f"{path} has no sound; give a wav or mp3 file")
            stream = source.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", rate=AUDIO_RATE)
            for frame in decode(source, stream, path):
                frame.pts = None
                yield from (mono(part) for part in resampler.resample(frame))
            yield from (mono(part) for part in resampler.resample(None))

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples."""
        while len(self._held) < count and (block := next(self._blocks, None)) is not None:
            self._held = np.concatenate([self._held, block])
        out, self._held = fit_length(self._held, count), self._held[count:]
        self.position += count
        return np.clip(out, -1, 1)


def decode(source: Any, stream: Any, path: PathLike) -> Iterator[Any]:
    """Decoded frames; damaged packets are skipped and counted in one warning."""
    import av

    damaged, packet, packets = 0, None, source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            yield from packet.decode()
        except (av.error.FFmpegError, OSError):
            damaged += 1
            if packet is None or damaged > 1000:
                break
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged parts of the {stream.type} stream were skipped", stacklevel=2)


def sound_blocks(source: Any, stream: Any, path: PathLike) -> Iterator[tuple[np.ndarray, float | None]]:
    """Blocks of mono float32 samples at the stream's own rate, with their time in s (None where unknown)."""
    import av

    resampler = av.AudioResampler(format="fltp", rate=stream.rate)
    for frame in decode(source, stream, path):
        when = None if frame.pts is None else float(frame.pts * frame.time_base)
        blocks = [mono(part) for part in resampler.resample(frame)]
        if blocks:
            yield np.concatenate(blocks), when


def mono(frame: Any) -> np.ndarray:
    """Planar float audio frame → (N,) float32, mean of the channels."""
    return np.nan_to_num(frame.to_ndarray().astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).mean(0)


def reason(error: BaseException) -> str:
    """What went wrong, in lower case and without a full stop, to be put in brackets."""
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()


def scaling() -> Any:
    """Flags of an exact colour conversion in swscale."""
    from av.video.reformatter import Interpolation

    return Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
