"""Zero-lag smoothing and gap filling that never cross the start of a clip."""

from __future__ import annotations

from typing import Sequence

import numpy as np


def clip_slices(clip_starts: Sequence[int], frames: int) -> list[slice]:
    """Frame range of each clip."""
    return [slice(a, b) for a, b in zip(clip_starts, [*clip_starts[1:], frames])]


def whittaker(values: np.ndarray, strength: float, clip_starts: Sequence[int] = (0,), weights: np.ndarray | None = None) -> np.ndarray:
    """Minimise ``Σ w (y - x)² + strength · Σ (second difference of y)²`` in each clip (Whittaker 1923; Eilers 2003).

    values (T,…), weights (T,) ≥ 0 (some above 0), strength ≥ 0. Returns (T,…) float64. The filter is symmetric in time, so
    it has no lag; with unit weights its gain at ω rad/frame is 1 / (1 + strength · (2 sin(ω/2))⁴). Straight lines pass unchanged.
    """
    from scipy.linalg import solveh_banded

    x = np.asarray(values, np.float64)
    out = x.copy()
    if strength <= 0:
        return out
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    for clip in clip_slices(clip_starts, len(x)):
        n = clip.stop - clip.start
        if n < 3:
            continue
        w = np.maximum(weights[clip], 1e-6)
        bands = np.zeros((3, n))  # upper form of diag(w) + strength · D'D with D the second difference
        bands[2] = w
        for offset, product in ((0, (1, 4, 1)), (1, (-2, -2)), (2, (1,))):
            for shift, value in enumerate(product):
                bands[2 - offset, offset + shift : offset + shift + n - 2] += strength * value
        flat = x[clip].reshape(n, -1)
        out[clip] = solveh_banded(bands, w[:, None] * flat).reshape(x[clip].shape)
    return out


def fill_gaps(values: np.ndarray, valid: np.ndarray, clip_starts: Sequence[int] = (0,)) -> np.ndarray:
    """Replace invalid frames: linear between valid neighbours of the clip, held at its ends.

    values (T,…), valid (T,). A clip without any valid frame takes the median of all valid ones. Returns (T,…) float64.
    Raises ValueError when nothing is valid.
    """
    valid = np.asarray(valid, bool)
    if not valid.any():
        raise ValueError("no frame is valid, so there is nothing to fill from")
    out = np.array(values, np.float64)
    median = np.median(out[valid], axis=0)
    for clip in clip_slices(clip_starts, len(out)):
        good = np.flatnonzero(valid[clip])
        bad = np.flatnonzero(~valid[clip])
        if not len(good):
            out[clip] = median
        elif len(bad):
            part = out[clip].reshape(clip.stop - clip.start, -1)
            part[bad] = np.stack([np.interp(bad, good, column) for column in part[good].T], -1) if part.shape[1] else part[bad]
            out[clip] = part.reshape(out[clip].shape)
    return out
