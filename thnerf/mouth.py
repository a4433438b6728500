"""The mouth of one subject as a few numbers: principal modes of its expressions in mm on the face mesh, and what closes its lips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.subject import Subject
from render.files import InputError
from thnerf.pose import speech_columns

PATIENCE = (0.43, 0.8, 1.2, 2.0)
"""Seconds of silence after which a mouth may come to rest: steps of `patience`."""
REST_COST = 0.04
"""How much correlation with unseen footage a mouth at rest may cost: nobody listens to it, but one that hangs open is seen."""
_INNER_LIPS = (13, 14)  # MediaPipe landmarks: middle of the upper and of the lower inner lip


@dataclass(frozen=True)
class Modes:
    """Principal modes of the speech coefficients: y = mean + z @ back, z = (y − mean) @ forward.

    forward (E, K), back (K, E), scale (K,) standard deviations in mm, opening (K,) lip gap in mm per unit z / scale.
    """

    mean: np.ndarray
    forward: np.ndarray
    back: np.ndarray
    scale: np.ndarray
    opening: np.ndarray


def fit_modes(expression: np.ndarray, metric: np.ndarray, gap: np.ndarray, count: int) -> Modes:
    """PCA of (N, E) coefficients under the inner product `metric` (E, E); gap (E,) is the lip opening in mm per coefficient."""
    mean = expression.mean(0).astype(np.float64)
    size = len(metric)
    value, vector = np.linalg.eigh(metric + (1e-3 * np.trace(metric) / size + 1e-12) * np.eye(size))
    root, inverse = (vector * np.sqrt(value)) @ vector.T, (vector / np.sqrt(value)) @ vector.T
    _, s, modes = np.linalg.svd((expression - mean) @ root, full_matrices=False)
    scale = s / np.sqrt(len(expression))
    energy = np.cumsum(scale**2) / max((scale**2).sum(), 1e-12)
    k = int(min(count, np.searchsorted(energy, 0.995) + 1, (scale > 1e-6).sum() or 1))
    forward, back = root @ modes[:k].T, modes[:k] @ inverse
    return Modes(mean, forward, back, np.maximum(scale[:k], 1e-6), back @ gap * scale[:k])


def lip_metric(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """How much the speech coefficients move the face, (E, E) in mm² with the lips counting most, and the lip gap, (E,) in mm.

    Falls back to plain coefficients, with jawOpen as the gap, when the subject's face model is not at hand.
    """
    track = subject.track
    columns = speech_columns(track.expression_names)
    names = [track.expression_names[i] for i in columns]
    try:
        model = subject.model
    except InputError:
        model = None
    if model is None or model.expression_names != track.expression_names or "mediapipe478" not in model.landmarks:
        gap = np.array([float(n == "jawOpen") for n in names])
        return np.eye(len(columns)), gap if gap.any() else np.full(len(columns), 1 / len(columns))
    basis = model.expression_basis[columns].astype(np.float64)
    upper, lower = model.points(np.concatenate([model.mean[None], basis]), "mediapipe478")[:, _INNER_LIPS].swapaxes(0, 1)
    mouth = (upper[0] + lower[0]) / 2
    face = model.regions.get("face", np.ones(len(model.mean), bool))
    weight = face * (0.05 + np.exp(-((model.mean - mouth) ** 2).sum(1) / 30.0**2))
    flat = (basis * np.sqrt(weight / weight.sum())[:, None]).reshape(len(columns), -1)
    return flat @ flat.T, (upper - lower)[1:, 1]


def variance_gain(said: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (K,) that undo regression to the mean, and correlations (K,), on unseen speech; modes that are guessed stay small."""
    likeness = np.array([max(correlation(a, b), 0.0) for a, b in zip(said.T, truth.T)])
    ratio = truth.std(0) / np.maximum(said.std(0), 1e-6)
    return np.clip(1 + likeness * (ratio - 1), 0.8, 1.6), likeness


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, 0 where one is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 1e-9 and b.std() > 1e-9 else 0.0


def neutral(z: np.ndarray, opening: np.ndarray, paused: np.ndarray) -> np.ndarray:
    """The subject's closed mouth (K,): mean of the half of the pauses, or of the 5 % of all frames, in which the lips are closest."""
    gap = z @ opening
    pause = np.flatnonzero(paused > 0.9)
    pool, share = (pause, 0.5) if len(pause) >= 20 else (np.arange(len(z)), 0.05)
    return z[pool[np.argsort(gap[pool])[: max(1, int(share * len(pool)))]]].mean(0)


def closing(said: np.ndarray, truth: np.ndarray, pause: np.ndarray, neutral: float) -> float:
    """How far (0 to 1) this subject closes the mouth in short pauses, beyond what the network says.

    Least squares on unseen lip openings (in standard deviations), with a prior of 0.25 that weighs as much as some ten frames.
    """
    toward = pause * (neutral - said)
    return float(np.clip((toward @ (truth - said) + 0.25 * 10) / (toward @ toward + 10), 0, 1))


def patience(said: np.ndarray, truth: np.ndarray, neutral: float, rests: np.ndarray) -> float:
    """Seconds of silence, of PATIENCE, after which this subject's mouth comes to rest: the least that costs the lip opening `said` (N,) at most REST_COST of its correlation with
    the `truth` (N,) on unseen footage; the last where all of them do. Many speakers hold their lips apart for longer than half a second.

    rests: (N, number of PATIENCE) from 0 to 1, how far a mouth of each would be at rest, whose opening is `neutral`.
    """
    best = correlation(said, truth)
    for seconds, rest in zip(PATIENCE, rests.T):
        if correlation(said + rest * (neutral - said), truth) >= best - REST_COST:
            return seconds
    return PATIENCE[-1]


def shutting(z: np.ndarray, opening: np.ndarray) -> tuple[np.ndarray, float]:
    """How this subject shuts its lips: direction (K,) in modes (N, K) that changes the gap z · opening by one unit, and the shut gap.

    The direction is the regression of the modes on the gap over the narrower half of the frames; shut are the narrowest 2 %.
    """
    gap = z @ opening
    narrow = gap <= np.median(gap)
    x = gap[narrow] - gap[narrow].mean()
    slope = x @ (z[narrow] - z[narrow].mean(0)) / max(float(x @ x), 1e-9)
    along = float(slope @ opening)
    slope = slope / along if along > 1e-3 else opening / max(float(opening @ opening), 1e-9)
    return slope, float(np.percentile(gap, 2))
