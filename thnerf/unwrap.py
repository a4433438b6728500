"""Texture coordinates of face models: where on a square picture each corner of each triangle lies.

The default model's skin has those of its base mesh, moved so that the head fills the square; eyeballs, teeth and tongue get patches of their own.
Other models are unrolled on a cylinder around the head, where folds (ears, nostrils, the inside of the mouth) overlap.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recon.assets import asset
from recon.model import DEFAULT_MODEL, SIDES, MorphableModel, load_model

# Where things go in the square, x0 y0 x1 y1 with y up. The head's patch is 1.9 times as wide as high; free spots beside it take the rest.
_HEAD = (0.005, 0.46, 0.995, 0.995)
_EYES = ((0.02, 0.02, 0.20, 0.20), (0.22, 0.02, 0.40, 0.20))
_TEETH = ((0.42, 0.12, 0.68, 0.20), (0.42, 0.02, 0.68, 0.10))
_TONGUE = (0.70, 0.02, 0.84, 0.20)
_BASE_HEAD = (0.63, 0.14)  # of the base mesh's square: x beyond and y above are the head's outside
_EXTRA = {  # other patches of the base mesh's skin: its box there → here
    "neck": ((0.24, 0.85, 0.52, 0.98), (0.02, 0.23, 0.42, 0.42)),
    "sockets": ((0.0, 0.54, 0.17, 0.64), (0.44, 0.23, 0.74, 0.42)),
    "mouth": ((0.74, 0.0, 0.94, 0.14), (0.76, 0.23, 0.98, 0.42)),
}


def texture_coordinates(model: MorphableModel) -> np.ndarray:
    """(F,3,2) float64 in [0,1] of a model's triangles, u to the right, v up."""
    default = load_model(DEFAULT_MODEL)
    if model.model_id == default.model_id and np.array_equal(model.faces, default.faces):
        return _default()
    return cylinder(model.mean.astype(np.float64), model.faces)


@lru_cache(maxsize=1)
def _default() -> np.ndarray:
    """Of the default model."""
    model = load_model(DEFAULT_MODEL)
    with np.load(asset("bust.npz"), allow_pickle=False) as data:
        skin = data["head_uv"].astype(np.float64)
    out = np.zeros((len(model.faces), 3, 2))
    out[: len(skin)] = _skin(skin)
    for name, box in zip(("teeth_upper", "teeth_lower"), _TEETH):
        _place(out, model, name, box, _arch)
    _place(out, model, "tongue", _TONGUE, _from_above)
    for side, box in zip(SIDES, _EYES):
        _place(out, model, f"eye_{side}", box, _ball)
    out.setflags(write=False)
    return out


def _skin(uv: np.ndarray) -> np.ndarray:
    """The base mesh's coordinates of the skin (N,3,2) → ours: the head lies on its side there."""
    out = np.empty_like(uv)
    middle = uv.mean(1)
    outside = (middle[:, 0] > _BASE_HEAD[0]) & (middle[:, 1] > _BASE_HEAD[1])
    turned = np.stack([uv[outside][..., 1], 1 - uv[outside][..., 0]], -1)
    out[outside] = _fit(turned, turned.reshape(-1, 2).min(0), turned.reshape(-1, 2).max(0), _HEAD)
    done = outside.copy()
    for (x0, y0, x1, y1), target in _EXTRA.values():
        inside = (middle[:, 0] > x0) & (middle[:, 0] < x1) & (middle[:, 1] > y0) & (middle[:, 1] < y1) & ~done
        out[inside] = _fit(uv[inside], uv[inside].reshape(-1, 2).min(0), uv[inside].reshape(-1, 2).max(0), target)
        done |= inside
    if not done.all():
        raise ValueError(f"{(~done).sum()} triangles of the skin lie in no patch; build assets/bust.npz again")
    return out


def _fit(uv: np.ndarray, low: np.ndarray, high: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """uv (…,2) between low and high → the middle of a box, as large as it goes without distortion."""
    corner, size = np.array(box[:2]), np.array(box[2:]) - box[:2]
    scale = (size / np.maximum(high - low, 1e-9)).min()
    return (uv - low) * scale + corner + (size - (high - low) * scale) / 2


def _place(out: np.ndarray, model: MorphableModel, region: str, box: tuple[float, float, float, float], unroll) -> None:
    """Fill in the triangles of one region, unrolled into a box."""
    rows = np.flatnonzero(model.regions[region][model.faces].all(1))
    corners = unroll(model.mean.astype(np.float64)[model.faces[rows]])
    low, high = corners.reshape(-1, 2).min(0), corners.reshape(-1, 2).max(0)
    out[rows] = (corners - low) / np.maximum(high - low, 1e-9) * (np.array(box[2:]) - box[:2]) + box[:2]


def _ball(corners: np.ndarray) -> np.ndarray:
    """An eyeball seen from the front, its back around that, the iris enlarged; the pole behind belongs to every triangle around it."""
    points = corners.reshape(-1, 3)
    centre = (points.min(0) + points.max(0)) / 2
    direction = (corners - centre) / np.linalg.norm(corners - centre, axis=-1, keepdims=True)
    polar = np.arccos(np.clip(direction[..., 2], -1, 1))
    around = np.arctan2(direction[..., 1], direction[..., 0])
    behind = polar > np.pi - 1e-3
    others = np.where(behind, 0, np.exp(1j * around)).sum(1, keepdims=True)
    around = np.where(behind, np.angle(others), around)
    radius = (polar / np.pi) ** 0.6
    return np.stack([radius * np.cos(around), radius * np.sin(around)], -1)


def _arch(corners: np.ndarray) -> np.ndarray:
    """A row of teeth, unrolled along the arch; fronts and backs share a place."""
    points = corners.reshape(-1, 3)
    middle = np.array([0, 0, points[:, 2].min() - 5])
    x, y, z = np.moveaxis(corners - middle, -1, 0)
    return np.stack([np.arctan2(x, z), y], -1)


def _from_above(corners: np.ndarray) -> np.ndarray:
    """The tongue from above; its underside shares the place."""
    return corners[..., [0, 2]]


def cylinder(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unroll points (V,3) around the vertical through their middle: (F,3,2) in [0,1], the face in the middle, the seam behind."""
    middle = (points.min(0) + points.max(0)) / 2
    angle = np.arctan2(points[:, 0] - middle[0], points[:, 2] - middle[2])[faces]
    # A triangle across the seam goes on beyond it.
    angle = np.where((np.ptp(angle, axis=1) > np.pi)[:, None] & (angle < 0), angle + 2 * np.pi, angle)
    height = points[:, 1][faces]
    low, high = np.array([angle.min(), height.min()]), np.array([angle.max(), height.max()])
    return (np.stack([angle, height], -1) - low) / np.maximum(high - low, 1e-9)
