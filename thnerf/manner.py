"""What is typical of a face in motion: its neutral expression, how far its mouth opens, how it holds its head.

Direction and transfer both measure from here, so that "more" and "less" mean the same for every subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.model import MorphableModel
from recon.track import Track
from render.rotations import relative_to_frontal

CLOSED = 0.1
"""Share of the frames, those with the lips closest, whose median is the neutral mouth."""
LIMIT = 3.0  # of statistical components
_INNER_LIPS = (13, 14)  # MediaPipe landmarks: middle of the upper and of the lower inner lip
_LIDS = ("eyeBlinkLeft", "eyeBlinkRight")


def mouth_columns(names: tuple[str, ...]) -> np.ndarray:
    """Indices of the coefficients that move the mouth: jaw, lips and tongue; all but eyes and brows where they have no such names."""
    found = [i for i, n in enumerate(names) if n.startswith(("jaw", "mouth", "tongue"))]
    return np.array(found or [i for i, n in enumerate(names) if not n.startswith(("eye", "brow", "neck"))], int)


def brow_columns(names: tuple[str, ...]) -> np.ndarray:
    """Indices of the brow coefficients."""
    return np.array([i for i, n in enumerate(names) if n.startswith("brow")], int)


def lid_columns(names: tuple[str, ...]) -> np.ndarray:
    """Indices of the eyelid coefficients, left and right."""
    return np.array([names.index(n) for n in _LIDS if n in names], int)


def lip_opening(names: tuple[str, ...], model: MorphableModel | None) -> np.ndarray:
    """How far each coefficient opens the lips, (E,) mm per unit; without a model that has inner lips jawOpen counts 30 mm."""
    if model is not None and model.expression_names == names and "mediapipe478" in model.landmarks:
        upper, lower = model.points(model.expression_basis.astype(np.float64), "mediapipe478")[:, _INNER_LIPS].swapaxes(0, 1)
        return (upper - lower)[:, 1]
    return np.array([30.0 * (n == "jawOpen") for n in names])


def expression_bounds(names: tuple[str, ...], model: MorphableModel | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each coefficient, (E,): ARKit weights lie in [0, 1], statistical ones in ±3, angles where their model says."""
    if "jawOpen" in names:
        return np.zeros(len(names)), np.ones(len(names))
    low, high = np.full(len(names), -LIMIT), np.full(len(names), LIMIT)
    if model is not None and model.bounds is not None and model.expression_names == names:
        low, high = np.minimum(low, model.bounds[:, 0]), np.maximum(high, model.bounds[:, 1])
    return low, high


@dataclass(frozen=True)
class Manner:
    """names (E,); neutral (E,): relaxed, lips closed, eyes open; opening (E,) mm of lip gap per unit; low, high (E,) bounds.

    reach: 95th percentile of the lip gap above neutral, mm. brows: standard deviation of the brow coefficients. lids: how far a whole blink
    goes beyond the open lid. centre (6,), spread (6,), least and most (6,): median, 1st-to-99th-percentile width and range of
    [rotation against frontal (rad), translation (mm)]. gaze (2,2) median rad; gaze_least and gaze_most (2,2) its range.
    """

    names: tuple[str, ...]
    neutral: np.ndarray
    opening: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reach: float
    brows: float
    lids: float
    centre: np.ndarray
    spread: np.ndarray
    least: np.ndarray
    most: np.ndarray
    gaze: np.ndarray
    gaze_least: np.ndarray
    gaze_most: np.ndarray

    @classmethod
    def of(cls, track: Track, model: MorphableModel | None = None) -> "Manner":
        """Measure the valid frames of a track (all of them when none is valid). model: its face model, where at hand. Raises ValueError without frames."""
        if not len(track):
            raise ValueError("a track without frames has no manner")
        seen = track.valid if track.valid.any() else np.ones(len(track), bool)
        names, x = track.expression_names, track.expression[seen].astype(np.float64)
        opening = lip_opening(names, model)
        gap = x @ opening
        closed = np.argsort(gap, kind="stable")[: max(1, round(CLOSED * len(x)))]
        neutral, mouth, lids = np.median(x, 0), mouth_columns(names), lid_columns(names)
        neutral[mouth] = np.median(x[closed][:, mouth], 0)
        lid = x[:, lids].mean(1) if len(lids) else np.zeros(len(x))
        pose = pose_of(track)[seen]
        gaze = track.gaze[seen].astype(np.float64)
        brows = brow_columns(names)
        return cls(
            names, neutral, opening, *expression_bounds(names, model), reach=max(float(np.percentile(gap, 95) - neutral @ opening), 0.5),
            brows=float(np.sqrt(x[:, brows].var(0).mean())) if len(brows) else 0.0, lids=_blink(lid),
            centre=np.median(pose, 0), spread=np.percentile(pose, 99, axis=0) - np.percentile(pose, 1, axis=0), least=pose.min(0), most=pose.max(0),
            gaze=np.median(gaze, 0), gaze_least=gaze.min(0), gaze_most=gaze.max(0))

    def gap(self, expression: np.ndarray) -> np.ndarray:
        """Lip gap above neutral of coefficients (T,E) → (T,) mm, linear."""
        return (np.asarray(expression, np.float64) - self.neutral) @ self.opening

    def bounded(self, expression: np.ndarray) -> np.ndarray:
        """Coefficients (T,E) within bounds, mouthClose at most jawOpen (beyond it the lips would cross); a copy."""
        out = np.clip(expression, self.low, self.high)
        if {"mouthClose", "jawOpen"} <= set(self.names):
            i, j = self.names.index("mouthClose"), self.names.index("jawOpen")
            out[:, i] = np.minimum(out[:, i], out[:, j])
        return out


def _blink(lid: np.ndarray) -> float:
    """How far lids (T,) close, beyond where they mostly are: the upper end of those frames in which they are more than half closed."""
    rest = float(np.median(lid))
    return float(np.percentile(lid[lid >= rest + 0.5 * (lid.max() - rest)], 90)) - rest


def pose_of(track: Track) -> np.ndarray:
    """(T,6) float64: rotation against frontal (rad) and translation (mm); may be averaged."""
    return np.concatenate([relative_to_frontal(track.rotation), track.translation.astype(np.float64)], 1)


def within(x: np.ndarray, low: np.ndarray, high: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Values as they are inside [low, high]; beyond, ever more slowly up to `margin` further."""
    over, under = np.maximum(x - high, 0), np.maximum(low - x, 0)
    return np.clip(x, low, high) + margin * np.tanh(over / margin) - margin * np.tanh(under / margin)
