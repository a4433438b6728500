"""The shoulders' own motion: a similarity and a few low-rank modes per frame, anchored to one reference frame."""

from __future__ import annotations

from typing import Iterable, Sequence

import numpy as np

from recon.smooth import whittaker

SIMILARITY = 4  # tx, ty (fractions of the width), log-scale, angle (rad)
_SIDE = 128  # px, resolution at which the flow is computed
_GRID = 4  # px between the points that the motion is fitted to
SMOOTHING = 1.5
"""Strength of the smoothing of the coefficients (`recon.smooth.whittaker` at 25 fps): what moves at 4 Hz keeps two fifths, at 2 Hz nine tenths."""


def track_torso(frames: Iterable[np.ndarray], mattes: Iterable[np.ndarray], chin_y: np.ndarray, clip_starts: Sequence[int] = (0,),
                train: np.ndarray | None = None, modes: int = 4, fps: float = 25.0) -> np.ndarray:
    """Motion of the torso against a reference frame, (T, 4 + modes) float32.

    frames (T,H,W,3) and mattes (T,H,W) uint8, arrays or streams (only small grey copies are kept); chin_y (T,) px. Columns: tx, ty
    (fractions of the width, of the torso's centre), log-scale, angle (rad), then principal modes of what a similarity leaves, scaled to unit
    deviation. Every frame is registered to the same reference (dense inverse search, Kroeger et al. 2016), so
    nothing drifts; a frame in which too little of the torso is seen gets its neighbours' values, and a subject
    whose torso never shows gets zeros. What is left of the registration's noise is smoothed without lag: shoulders move
    slowly, and their outline before the background trembles with the least of it. train: frames whose statistics define reference and modes (default all).
    """
    import cv2

    count = len(chin_y)
    train = np.arange(count) if train is None else np.asarray(train)
    out = np.zeros((count, SIMILARITY + modes), np.float32)
    if not len(train):
        return out
    small, people, scale = [], [], 1.0
    for frame, matte in zip(frames, mattes, strict=True):
        small.append(cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
        people.append(cv2.resize(matte, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
        scale = _SIDE / frame.shape[1]
    reference, mask = _reference(people, chin_y, train, scale)
    points = np.argwhere(mask[::_GRID, ::_GRID])[:, ::-1].astype(np.float64) * _GRID
    if len(points) < 20:
        return out
    texture = _texture(small[reference], points)
    flow, weight = _register(small, reference, points, people, chin_y * scale, texture)
    good = weight.sum(1) > 0.25 * texture.sum()
    if not good.any():
        return out
    similarity, residual = _fit_similarity(points, flow, weight)
    out[:, :SIMILARITY] = similarity / np.array([_SIDE, _SIDE, 1, 1])
    out[:, SIMILARITY:] = _low_rank(residual * np.sqrt(texture)[None, :, None], np.intersect1d(train, np.flatnonzero(good)), modes)
    return _fill(out, good, clip_starts, SMOOTHING * (fps / 25) ** 4).astype(np.float32)


def _reference(people: list[np.ndarray], chin_y: np.ndarray, train: np.ndarray, scale: float) -> tuple[int, np.ndarray]:
    """The training frame with the median chin height, and the torso pixels (side, side) bool that most frames show."""
    reference = int(train[np.argsort(chin_y[train])[len(train) // 2]])
    sample = train[np.unique(np.linspace(0, len(train) - 1, 60).astype(int))]
    share = np.mean([people[i] > 200 for i in sample], axis=0)
    mask = share > 0.9
    below = np.quantile(chin_y[train], 0.95) * scale + 0.04 * _SIDE  # clear of the chin at its lowest
    mask[: min(_SIDE, int(np.ceil(below)))] = False
    return reference, mask


def _texture(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How well motion can be seen at each point: the weaker eigenvalue of the structure tensor, in (0,1]."""
    import cv2

    strength = cv2.cornerMinEigenVal(image, 7)[points[:, 1].astype(int), points[:, 0].astype(int)]
    return np.clip(strength / (np.quantile(strength, 0.9) + 1e-12), 0.02, 1)


def _register(small: list[np.ndarray], reference: int, points: np.ndarray, people: list[np.ndarray], chin: np.ndarray,
              texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow (T,N,2) px of the reference's points in every frame, and their weights (T,N)."""
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    ix, iy = points[:, 0].astype(int), points[:, 1].astype(int)
    flow, weight = np.zeros((len(small), len(points), 2)), np.zeros((len(small), len(points)))
    anchor, previous = small[reference], None
    for t, image in enumerate(small):
        # The last flow only starts the search; the result is measured against the reference itself.
        dense = dis.calc(anchor, image, None if previous is None else previous.copy())
        previous = dense
        flow[t] = dense[iy, ix]
        target = points + flow[t]
        inside = (target > 0).all(1) & (target < _SIDE - 1).all(1)
        x, y = np.clip(target[:, 0], 0, _SIDE - 1).astype(int), np.clip(target[:, 1], 0, _SIDE - 1).astype(int)
        person = people[t][y, x] > 127
        alike = np.exp(-((image[y, x].astype(float) - anchor[iy, ix]) / 40.0) ** 2)
        weight[t] = texture * inside * person * alike * (target[:, 1] > chin[t])
    return flow, weight


def _fit_similarity(points: np.ndarray, flow: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust similarity about the points' centre for every frame (iteratively reweighted, Tukey's biweight).

    Returns (T,4): tx, ty (px), log-scale, angle; and the residual flow (T,N,2).
    """
    centred = points - points.mean(0)
    x, y = centred[:, 0], centred[:, 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = np.stack([np.stack([one, zero, x, -y], -1), np.stack([zero, one, y, x], -1)], 1)  # (N,2,4)
    current = weight + 1e-9
    for _ in range(6):
        normal = np.einsum("tn,nci,ncj->tij", current, rows, rows, optimize=True) + 1e-6 * np.eye(4)
        right = np.einsum("tn,nci,tnc->ti", current, rows, flow, optimize=True)
        solution = np.linalg.solve(normal, right[..., None])[..., 0]
        residual = flow - np.einsum("nci,ti->tnc", rows, solution)
        distance = np.linalg.norm(residual, axis=-1)
        current = weight * np.clip(1 - (distance / 4.0) ** 2, 0, 1) ** 2 + 1e-9
    a, b = 1 + solution[:, 2], solution[:, 3]
    return np.stack([solution[:, 0], solution[:, 1], 0.5 * np.log(a * a + b * b), np.arctan2(b, a)], -1), residual


def _low_rank(residual: np.ndarray, train: np.ndarray, modes: int) -> np.ndarray:
    """Principal coefficients (T,modes) of the residual flow, basis and unit deviation from the training frames."""
    flat = np.clip(residual, -4, 4).reshape(len(residual), -1)
    out = np.zeros((len(flat), modes))
    mean = flat[train].mean(0)
    _, strength, basis = np.linalg.svd(flat[train] - mean, full_matrices=False)
    kept = min(modes, int((strength > 1e-6 * max(1.0, strength[0])).sum()))
    coefficients = (flat - mean) @ basis[:kept].T
    out[:, :kept] = np.clip(coefficients / (coefficients[train].std(0) + 1e-9), -4, 4)
    return out


def _fill(values: np.ndarray, good: np.ndarray, clip_starts: Sequence[int], strength: float) -> np.ndarray:
    """Interpolate bad frames within their clip and smooth; a clip without a good frame gets zeros."""
    bounds = [*clip_starts, len(values)]
    for a, b in zip(bounds, bounds[1:]):
        seen = np.flatnonzero(good[a:b])
        if not len(seen):
            values[a:b] = 0
            continue
        for column in range(values.shape[1]):
            values[a:b, column] = np.interp(np.arange(b - a), seen, values[a:b, column][seen])
    return whittaker(values, strength, clip_starts)
