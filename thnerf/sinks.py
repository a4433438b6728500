"""Where streamed motion goes: JSON lines, frames in a file, raw frames in a pipe. Others (Live Link) have the same three methods.

A sink is a context manager with `send(motion)`, called with every `recon.lines.MotionFrame` in order. Where it has them, `show(track)` follows
with the same frame as a Track of one frame, and `hear(samples)` comes with every packet of sound, mono at audio.RATE, before its frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from recon.lines import MotionFrame
from recon.subject import Subject
from recon.track import Track
from render.outputs import open_output, output_kind, to_uint8
from render.sound import AUDIO_RATE
from thnerf.audio import RATE

_CONTEXT = 64  # samples on either side that the resampling filter sees


class LineSink:
    """One JSON object a frame, flushed."""

    def __init__(self, stream: TextIO) -> None:
        """stream: where the lines go; it is not closed."""
        self.stream = stream

    def send(self, motion: MotionFrame) -> None:
        """Write one line. Raises BrokenPipeError when nobody reads any more."""
        self.stream.write(motion.line() + "\n")
        self.stream.flush()

    def __enter__(self) -> "LineSink":
        return self

    def __exit__(self, *error: object) -> None:
        return None


class LiveSound:
    """Sound that grows: samples at RATE go in, blocks at AUDIO_RATE come out, as `render.sound.SoundFeed` gives them; zeros where there is none yet."""

    def __init__(self) -> None:
        """Silent so far."""
        self.position = 0  # samples taken, at AUDIO_RATE
        self.held, self.first = np.zeros(0, np.float32), 0  # samples from number `first` on, at RATE

    def push(self, samples: np.ndarray) -> None:
        """Samples (n,) at RATE."""
        self.held = np.concatenate([self.held, np.asarray(samples, np.float32)])

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples, float32 in [-1, 1]."""
        from scipy.signal import resample_poly

        up = AUDIO_RATE // RATE
        begin, end = self.position // up, -(-(self.position + count) // up)
        low = max(begin - _CONTEXT, 0)
        part = self.held[max(low - self.first, 0) : max(end + _CONTEXT - self.first, 0)]
        part = np.pad(part, (0, max(0, end + _CONTEXT - low - len(part))))
        out = resample_poly(part, up, 1)[self.position - low * up :][:count].astype(np.float32)
        self.position += count
        keep = max(0, self.position // up - _CONTEXT - self.first)
        self.held, self.first = self.held[keep:], self.first + min(keep, len(self.held))
        return np.clip(out, -1, 1)


class FrameSink:
    """Frames of the subject in a file of the kind its name says (see `render.outputs`), with the sound where it can hold one."""

    def __init__(self, path: str | Path, subject: Subject, renderer: Any) -> None:
        """renderer: of the subject. Raises InputError for a name of no known kind."""
        output_kind(path)
        self.sound, self.renderer = LiveSound(), renderer
        camera = subject.track.camera
        self.writer = open_output(path, camera.width, camera.height, subject.track.fps, audio=self.sound, synthetic=True)

    def hear(self, samples: np.ndarray) -> None:
        """Sound that belongs to the frames."""
        self.sound.push(samples)

    def send(self, motion: MotionFrame) -> None:
        """Lines carry less than a frame needs: `show` draws it."""

    def show(self, track: Track) -> None:
        """Draw and write one frame."""
        self.writer.write(self.renderer.frame(track, 0))

    def __enter__(self) -> "FrameSink":
        self.writer.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.writer.__exit__(kind, error, trace)


class RawSink:
    """Frames as bare RGB24 bytes, flushed, for a player or encoder at the other end of a pipe."""

    def __init__(self, stream: BinaryIO, renderer: Any) -> None:
        """stream: where the bytes go; it is not closed."""
        self.stream, self.renderer = stream, renderer

    def send(self, motion: MotionFrame) -> None:
        """Lines carry less than a frame needs: `show` draws it."""

    def show(self, track: Track) -> None:
        """Draw and write one frame. Raises BrokenPipeError when nobody reads any more."""
        self.stream.write(to_uint8(self.renderer.frame(track, 0)).tobytes())
        self.stream.flush()

    def __enter__(self) -> "RawSink":
        return self

    def __exit__(self, *error: object) -> None:
        return None
