"""Animation curves with keys anywhere, sampled at frames, and head and eyes out of named channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

import numpy as np

from render.files import InputError
from thnerf.export.names import plain, swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.space import Space, checked_rotation, from_euler
from thnerf.export.text import MAX_FRAMES

AXES = "xyz"
STEPS = ("step", "stepnext")
FLATTENED = ("auto", "plateau", "clamped")  # tangents that do not overshoot


@dataclass
class Curve:
    """times, values (N,); kinds: how the curve leaves each key ('linear', 'step', or a spline's name); slopes (N,2): in and out, per unit of
    time, NaN where the neighbours decide."""

    times: np.ndarray
    values: np.ndarray
    kinds: Sequence[str]
    slopes: Optional[np.ndarray] = None

    def at(self, when: np.ndarray) -> np.ndarray:
        """Values at times (T,), held before the first and after the last key."""
        if len(self.times) > 1 and (np.diff(self.times) > 1e-9).all() and all(kind == "linear" for kind in self.kinds):
            return np.interp(when, self.times, self.values)
        order = np.argsort(self.times, kind="stable")
        t, v = self.times[order], self.values[order]
        keep = np.r_[np.diff(t) > 1e-9, True]
        t, v, order = t[keep], v[keep], order[keep]
        if len(t) == 1:
            return np.full(len(when), v[0])
        kinds = np.array([self.kinds[i] for i in order])
        out = np.interp(when, t, v)
        if (kinds[:-1] == "linear").all():
            return out
        slopes = self._slopes(t, v, kinds, order)
        i = np.clip(np.searchsorted(t, when, side="right") - 1, 0, len(t) - 2)
        width = t[i + 1] - t[i]
        s = np.clip((when - t[i]) / width, 0, 1)
        cubic = ((2 * s**3 - 3 * s**2 + 1) * v[i] + (s**3 - 2 * s**2 + s) * width * slopes[i, 1] + (3 * s**2 - 2 * s**3) * v[i + 1]
                 + (s**3 - s**2) * width * slopes[i + 1, 0])
        inside = (when >= t[0]) & (when <= t[-1])
        spline = inside & ~np.isin(kinds[i], ("linear", *STEPS))
        out[spline] = cubic[spline]
        step = inside & (kinds[i] == "step")
        out[step] = np.where(s < 1, v[i], v[i + 1])[step]
        ahead = inside & (kinds[i] == "stepnext")
        out[ahead] = np.where(s > 0, v[i + 1], v[i])[ahead]
        return out

    def _slopes(self, t: np.ndarray, v: np.ndarray, kinds: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Slopes (N,2) of each key: given, zero, or the mean direction to the neighbours; without overshoot for FLATTENED ones."""
        chord = np.diff(v) / np.diff(t)
        left, right = np.r_[0.0, chord], np.r_[chord, 0.0]
        middle = np.zeros(len(t))
        if len(t) > 2:
            middle[1:-1] = (v[2:] - v[:-2]) / (t[2:] - t[:-2])
        extreme = left * right <= 0
        limited = np.where(extreme, 0.0, np.sign(middle) * np.minimum(np.abs(middle), 3 * np.minimum(np.abs(left), np.abs(right))))
        slope = np.where(np.isin(kinds, FLATTENED), limited, np.where(kinds == "flat", 0.0, middle))
        out = np.stack([slope, slope], 1)
        if self.slopes is not None:
            given = self.slopes[order]
            out = np.where(np.isfinite(given), given, out)
        return out


def frame_range(curves: Mapping[str, Curve], start: Optional[float], end: Optional[float], what: str) -> np.ndarray:
    """The whole frames from the first to the last; `start` and `end` are the file's own. Raises InputError where there are none or too many."""
    if start is None or end is None or not end >= start:
        start = min((float(c.times.min()) for c in curves.values()), default=0.0)
        end = max((float(c.times.max()) for c in curves.values()), default=-1.0)
    if not (abs(start) < 1e9 and abs(end) < 1e9):
        raise InputError(f"{what} has keys at times that no animation has; export it again")
    first, last = int(np.ceil(start - 1e-3)), int(np.floor(end + 1e-3))
    count = last - first + 1
    if not curves or count < 1:
        raise InputError(f"{what} has no frames; export it again")
    if count > MAX_FRAMES or count * len(curves) > 3e7:
        raise InputError(f"{what} spans {count} frames, more than can be read; cut it into parts")
    return np.arange(first, last + 1, dtype=np.float64)


def assemble(fps: Optional[float], channels: Mapping[str, np.ndarray], nodes: Mapping[str, Mapping[str, np.ndarray]], space: Space, options: ExportOptions,
             what: str, order: str = "xyz", notes: Sequence[str] = ()) -> Imported:
    """What named channels mean.

    channels: weights (T,) by name. nodes: of each object its channels tx ty tz (file units), rx ry rz (degrees); missing angles are 0.
    Raises InputError when the channels are empty or their numbers are no motion.
    """
    frames = {len(v) for v in channels.values()} | {len(v) for node in nodes.values() for v in node.values()}
    if len(frames) != 1:
        raise InputError(f"{what} has channels of different lengths; export it again" if frames else f"{what} has no channels; export it again")
    T = frames.pop()
    head = pick(nodes, ("head",), fallback=True)
    rotation = translation = gaze = None
    if head is not None and any(f"r{a}" in head for a in AXES):
        rotation = space.rotation_back(checked_rotation(_turns(head, T, order, what), what))
    if head is not None and all(f"t{a}" in head for a in AXES):
        translation = np.stack([head[f"t{a}"] for a in AXES], 1) @ space.world / space.scale
    eyes = [pick(nodes, names) for names in (("eyeleft", "lefteye"), ("eyeright", "righteye"))]
    if options.sides == "viewer":
        eyes = eyes[::-1]
    if options.eyes == "rotation" and all(e is not None and any(f"r{a}" in e for a in AXES) for e in eyes):
        gaze = space.gaze_back(np.stack([_turns(e, T, order, what) for e in eyes], 1))
    names = tuple(swap_side(n) if options.sides == "viewer" else n for n in channels)
    weights = np.stack(list(channels.values()), 1) if channels else np.zeros((T, 0))
    return Imported(fps, names, weights, rotation, translation, gaze, None, tuple(notes))


def pick(nodes: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], fallback: bool = False) -> Optional[Mapping[str, np.ndarray]]:
    """The object with one of these names; with `fallback` the only one that turns, where none has."""
    for name, channels in nodes.items():
        if plain(name) in names:
            return channels
    turning = [c for n, c in nodes.items() if any(f"r{a}" in c for a in AXES) and "eye" not in plain(n)]
    return turning[0] if fallback and len(turning) == 1 else None


def _turns(node: Mapping[str, np.ndarray], frames: int, order: str, what: str) -> np.ndarray:
    """Rotation matrices (T,3,3) of an object. Raises InputError for angles that are none."""
    angles = np.stack([node.get(f"r{a.lower()}", np.zeros(frames)) for a in order], 1)
    if not (np.abs(angles) < 1e7).all():
        raise InputError(f"{what} has angles that are not finite; export it again")
    return from_euler(angles, order)
