"""Motion as JSON lines, one object a frame, flushed: what live tracking and speech streaming write for other programs.

Keys: `time` (s), `expression` ({name: value}), `rotation` (axis-angle, rad) and `translation` (mm), model → world as in a Track,
`gaze` ([left, right] × [yaw, pitch], rad), `valid` (false where there is no face and the last motion is held).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping, TextIO

import numpy as np

from recon.track import Track
from render.files import InputError

DIGITS = 5  # after the point: 0.01 µm, 0.0006°


@dataclass(frozen=True)
class MotionFrame:
    """One frame of motion. time s, expression by name, rotation (3,) rad, translation (3,) mm, gaze (2,2) rad, valid."""

    time: float
    expression: Mapping[str, float]
    rotation: np.ndarray
    translation: np.ndarray
    gaze: np.ndarray
    valid: bool = True

    def line(self) -> str:
        """The JSON object, without the end of the line. Raises ValueError for values that are not finite."""
        arrays = {name: np.round(np.asarray(getattr(self, name), np.float64), DIGITS).tolist() for name in ("rotation", "translation", "gaze")}
        expression = {name: round(float(value), DIGITS) for name, value in self.expression.items()}
        return json.dumps({"time": round(float(self.time), 6), "expression": expression, **arrays, "valid": bool(self.valid)}, allow_nan=False)


def parse_line(line: str) -> MotionFrame:
    """The inverse of `MotionFrame.line`. Raises InputError for anything else."""
    try:
        data = json.loads(line)
        rotation, translation, gaze = (np.array(data[name], np.float64) for name in ("rotation", "translation", "gaze"))
        if rotation.shape != (3,) or translation.shape != (3,) or gaze.shape != (2, 2):
            raise ValueError("wrong number of values")
        return MotionFrame(float(data["time"]), {str(k): float(v) for k, v in data["expression"].items()}, rotation, translation, gaze, bool(data["valid"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"this is no line of motion ({error}); thnerf track writes such lines") from None


def write_lines(frames: Iterable[MotionFrame], stream: TextIO) -> int:
    """Write and flush each frame as soon as it comes. Returns how many."""
    count = 0
    for count, frame in enumerate(frames, 1):
        stream.write(frame.line() + "\n")
        stream.flush()
    return count


def track_lines(track: Track) -> Iterator[MotionFrame]:
    """The frames of a Track; time runs on over its clips."""
    for index in range(len(track)):
        expression = dict(zip(track.expression_names, track.expression[index].tolist()))
        yield MotionFrame(index / track.fps, expression, track.rotation[index], track.translation[index], track.gaze[index], bool(track.valid[index]))
