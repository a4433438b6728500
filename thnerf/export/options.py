"""What all formats share: the options of export and import, and what a reader returns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Optional

import numpy as np

from render.camera import Camera
from render.files import InputError

UNITS = {"mm": 1.0, "cm": 0.1, "m": 0.001}
"""Units per mm."""


@dataclass(frozen=True)
class ExportOptions:
    """How a file says what a Track says. Reading a file takes the options that it was written with."""

    fps: Optional[float] = None
    """Frames per second of the file, resampled; the track's own by default."""
    start_frame: Optional[int] = None
    """Number of the first frame; each format's habit by default."""
    timecode: Optional[str] = None
    """Timecode HH:MM:SS:FF of the first frame, instead of --start-frame."""
    units: Literal["auto", "mm", "cm", "m"] = "auto"
    """Unit of lengths; auto is what the format's programs expect (glTF is always in metres)."""
    up: Literal["y", "z"] = "y"
    """Which axis points up."""
    sides: Literal["subject", "viewer"] = "subject"
    """Whose left and right the names mean: the subject's (ARKit's convention), or the viewer's, which swaps all names that end in Left or Right."""
    eyes: Literal["rotation", "blendshape"] = "rotation"
    """What turns the eyeballs: rotations of their own, or the eyeLook weights."""
    signs: Literal["livelink", "subject"] = "livelink"
    """Signs of Live Link's angles: as the app writes them (yaw to the subject's left and pitch up are negative), or positive there."""
    bake: bool = False
    """Write every frame's vertices instead of blend shapes, where the format can (USD)."""
    albedo: bool = False
    """Take the light of the footage out of the texture, so that the other program's lights can fall on it."""

    def scale(self, default: str) -> float:
        """Units per mm; `default` is the format's own unit."""
        return UNITS[default if self.units == "auto" else self.units]

    def first_frame(self, fps: float, default: int = 0) -> int:
        """Number of the first frame. Raises InputError for a timecode that is none at this frame rate."""
        if self.timecode is not None:
            if self.start_frame is not None:
                raise InputError("--timecode and --start-frame both name the first frame; give one of them")
            return frame_of(self.timecode, fps)
        return default if self.start_frame is None else self.start_frame


@dataclass(frozen=True)
class Imported:
    """What a file says about T frames; whatever it does not say is None.

    fps: of the frames, None where the file carries none. names (K,) and weights (T,K): expressions as the file names them.
    rotation (T,3) axis-angle rad and translation (T,3) mm map model → world, gaze (T,2,2) rad: all as in a Track.
    camera: with T frames. notes: sentences for the user.
    """

    fps: Optional[float]
    names: tuple[str, ...]
    weights: np.ndarray
    rotation: Optional[np.ndarray] = None
    translation: Optional[np.ndarray] = None
    gaze: Optional[np.ndarray] = None
    camera: Optional[Camera] = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.weights)


def timecode(frame: int, fps: float) -> str:
    """HH:MM:SS:FF.mmm of a frame, non-drop: FF counts to the rounded fps; .mmm, the thousandths of a frame, is always 000."""
    base = max(1, int(round(fps)))
    seconds, part = divmod(int(frame), base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{part:02d}.000"


def frame_of(text: str, fps: float) -> int:
    """The inverse of `timecode`; the thousandths may be absent, and are rounded. Raises InputError for anything else."""
    base = max(1, int(round(fps)))
    match = re.fullmatch(r"(\d{1,4}):(\d{1,2}):(\d{1,2})[:;](\d{1,3})(\.\d+)?", text.strip(), re.ASCII)
    if not match or int(match[2]) > 59 or int(match[3]) > 59 or int(match[4]) >= base:
        raise InputError(f"{text!r} is no timecode at {fps:g} frames per second; write HH:MM:SS:FF, with FF below {base}")
    hours, minutes, seconds, part = (int(match[k]) for k in range(1, 5))
    return ((hours * 60 + minutes) * 60 + seconds) * base + part + int(float(match[5] or 0) >= 0.5)


def check_fps(fps: Optional[float]) -> None:
    """Raise InputError for a frame rate that cannot be."""
    if fps is not None and not 1 <= fps <= 1000:
        raise InputError(f"--fps must lie between 1 and 1000, not {fps:g}")
