"""Pictures as local contrast and brightness, and what of a mesh they show.

Light falls differently on a head that turns. In the logarithm soft shading and gain only add something smooth, so that a narrow band of
spatial frequencies, divided by its own local strength, hardly changes (Jarrett et al. 2009): brows, lids, lips, freckles and wrinkles stay.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SURROUND = 2.5  # the local mean is this much wider than the blur
FLOOR = (0.02, 0.01)  # contrast of log luma and log red/green that counts as noise
DARK = 16.0  # 8-bit steps added before logarithms
HIDDEN = 4.0  # mm behind the depth buffer at which a point is hidden


def contrast(picture: np.ndarray, blur: float) -> np.ndarray:
    """Local contrast and its slope: (H,W,3) RGB → (H,W,2,3) float32, [log luma, log red/green] × [value, d/dx, d/dy]."""
    return _with_slopes(_contrast(_logarithms(picture, blur), blur))


def contrast_and_luma(picture: np.ndarray, blur: float) -> np.ndarray:
    """The same with log luma itself as a third channel: (H,W,3) RGB → (H,W,3,3) float32."""
    flat = _logarithms(picture, blur)
    return _with_slopes(np.concatenate([_contrast(flat, blur), flat[..., :1]], -1))


def _logarithms(picture: np.ndarray, blur: float) -> np.ndarray:
    """Log luma and log red/green (H,W,2), blurred."""
    x = picture.astype(np.float32) + DARK
    return _smooth(np.log(np.stack([x @ np.array([0.3, 0.59, 0.11], np.float32), x[..., 0] / x[..., 1]], -1)), blur)


def _contrast(flat: np.ndarray, blur: float) -> np.ndarray:
    """A band of frequencies over its own local strength, (H,W,2)."""
    band = flat - _smooth(flat, SURROUND * blur)
    return band / (np.sqrt(_smooth(band * band, SURROUND * blur)) + np.array(FLOOR, np.float32))


def _smooth(picture: np.ndarray, deviation: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(picture, (0, 0), deviation)


def _with_slopes(values: np.ndarray) -> np.ndarray:
    """(H,W,C) → (H,W,C,3): value, d/dx, d/dy by central differences, 0 at the border."""
    out = np.zeros(values.shape + (3,), np.float32)
    out[..., 0] = values
    out[:, 1:-1, :, 1] = (values[:, 2:] - values[:, :-2]) / 2
    out[1:-1, :, :, 2] = (values[2:] - values[:-2]) / 2
    return out


@njit(cache=True, nogil=True)
def look(feature: np.ndarray, xy: np.ndarray, out: np.ndarray) -> None:
    """Bilinear look-up of feature (H,W,C,3) at xy (N,2) px (pixel centres at +0.5) → out (N,C,3)."""
    H, W, C, _ = feature.shape
    for i in range(len(xy)):
        x, y = min(max(xy[i, 0] - 0.5, 0.0), W - 1.001), min(max(xy[i, 1] - 0.5, 0.0), H - 1.001)
        a, b = int(x), int(y)
        u, v = x - a, y - b
        for c in range(C):
            for k in range(3):
                out[i, c, k] = (1 - v) * ((1 - u) * feature[b, a, c, k] + u * feature[b, a + 1, c, k]) \
                    + v * ((1 - u) * feature[b + 1, a, c, k] + u * feature[b + 1, a + 1, c, k])


@njit(cache=True, nogil=True)
def visible(camera: np.ndarray, px: np.ndarray, faces: np.ndarray, points: np.ndarray, at: np.ndarray, cell: float, out: np.ndarray) -> None:
    """Which points (N,3) in camera space, seen at (N,2) px, a mesh (camera (V,3), px (V,2), faces (F,3)) does not hide: out (N,) 0 or 1."""
    left, top = px[:, 0].min(), px[:, 1].min()
    width, height = int((px[:, 0].max() - left) / cell) + 2, int((px[:, 1].max() - top) / cell) + 2
    depth = np.full((height, width), np.inf)
    for f in range(len(faces)):
        a, b, c = faces[f]
        ax, ay, bx, by, cx, cy = (px[a, 0] - left) / cell, (px[a, 1] - top) / cell, (px[b, 0] - left) / cell, (px[b, 1] - top) / cell, \
            (px[c, 0] - left) / cell, (px[c, 1] - top) / cell
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area >= 0:  # seen from behind
            continue
        for row in range(int(np.ceil(min(ay, by, cy) - 0.5)), int(np.floor(max(ay, by, cy) - 0.5)) + 1):
            y = row + 0.5
            for column in range(int(np.ceil(min(ax, bx, cx) - 0.5)), int(np.floor(max(ax, bx, cx) - 0.5)) + 1):
                x = column + 0.5
                wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
                wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
                wc = 1 - wa - wb
                if wa >= 0 and wb >= 0 and wc >= 0:
                    z = wa * camera[a, 2] + wb * camera[b, 2] + wc * camera[c, 2]
                    if z < depth[row, column]:
                        depth[row, column] = z
    for i in range(len(points)):
        row, column = int((at[i, 1] - top) / cell), int((at[i, 0] - left) / cell)
        inside = 0 <= row < height and 0 <= column < width
        out[i] = 1.0 if not inside or points[i, 2] < depth[row, column] + HIDDEN else 0.0
