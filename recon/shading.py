"""Shading in the refinement by the pixels: soft light says how a surface is turned, to which local contrast is blind.

The logarithm of brightness is that of albedo and of light. Light in the logarithm is taken as nine spherical harmonics of the normal, anew in every
frame, so that neither lamps nor exposure have to be known; what it leaves is albedo, which all frames share. A smile turns the cheeks' normals and a pucker those of
the upper lip, and with them their brightness (shape from shading; Horn & Brooks 1989): normals are followed to first order in the expression.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from numba import njit

from recon.model import MorphableModel
from render.light import sh_basis, sh_slopes
from render.raster import vertex_normals

LUMA = 2  # the channel of `contrast_and_luma` that light has a part in
STRENGTH = 0.5  # of brightness beside contrast; more of it takes jaws of footage away from their landmarks
RIDGE = 1e-3  # on all harmonics but the constant one, per weight: a face shows half of all normals
KERNEL = 5.0  # of the robust weights, in squared deviations
STEP = 0.25  # of an expression, by which normals are turned to see how fast they turn


class Shading:
    """How points on a face are turned. normals (N,3) of the resting face, bend (N,3,E): their slopes by expressions, weight (N,) of a point's brightness."""

    def __init__(self, normals: np.ndarray, bend: np.ndarray, weight: np.ndarray) -> None:
        self.normals, self.bend, self.weight = normals, np.ascontiguousarray(bend, np.float32), weight.astype(np.float32)

    @classmethod
    def of(cls, neutral: np.ndarray, model: MorphableModel, pick: Callable[[np.ndarray], np.ndarray], weight: np.ndarray) -> Shading:
        """That of a resting face neutral (V,3); pick takes arrays (V,3) of the vertices to the points, (N,3)."""

        def normals(vertices: np.ndarray) -> np.ndarray:
            found = pick(vertex_normals(vertices, model.faces))
            return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-6)

        rest = normals(neutral)
        return cls(rest, np.stack([(normals(neutral + STEP * moved) - rest) / STEP for moved in model.expression_basis], -1), weight)

    def turned(self, e: np.ndarray, R: np.ndarray) -> np.ndarray:
        """Unit normals (N,3) in camera space under expressions (E,) and a rotation (3,3)."""
        normals = self.normals + self.bend @ e.astype(np.float32)
        return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6) @ R.T


def light_of(basis: np.ndarray, missing: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The light (…,9) that adds up to what is missing (…,N), over the harmonics at points (…,N,9) with weights (…,N): robust ridge regression."""
    ridge = RIDGE * np.diag([0.0] + [1.0] * 8) + 1e-9 * np.eye(9)
    kept, seen = weight, weight >= 0.3 * weight.max(-1, keepdims=True)
    for _ in range(3):
        weighted = np.swapaxes(basis * kept[..., None], -1, -2)
        H = weighted @ basis + ridge * kept.sum(-1)[..., None, None] + 1e-9 * np.eye(9)
        light = np.linalg.solve(H, weighted @ missing[..., None])[..., 0]
        left = np.abs(missing - (basis @ light[..., None])[..., 0])
        deviation = 1.4826 * np.nanmedian(np.where(seen, left, np.nan), axis=-1, keepdims=True) + 1e-3
        kept = weight / (1 + (left / deviation) ** 2 / KERNEL) ** 2
    return light


@njit(cache=True, nogil=True)
def _rows(slopes, turn, bend, G, J):
    """J (N,6+E): how brightness changes, by slopes (N,3) along the motion G (3N,6+E) of points and by turn (N,3) along the bend (N,3,E) of normals."""
    for i in range(len(slopes)):
        for k in range(G.shape[1]):
            total = np.float32(0)
            for a in range(3):
                total += slopes[i, a] * G[3 * i + a, k]
            if k >= 6:
                for a in range(3):
                    total += turn[i, a] * bend[i, a, k - 6]
            J[i, k] = total


def brightness_rows(shading: Shading, e: np.ndarray, R: np.ndarray, light: np.ndarray, slopes: np.ndarray, sigma: float, weight: np.ndarray, G: np.ndarray) -> np.ndarray:
    """How the brightness without light, over its deviation sigma, changes with pose and expressions, (N,6+E), when the light is fitted anew (variable projection; Golub & Pereyra 1973).

    light (9,), slopes (N,3) of the picture's brightness by the points, in the model frame and over sigma; weight (N,); G (3N,6+E): how the points move. The turn of the whole head needs no
    rows of its own for the normals: harmonics turn among themselves, so light that is fitted anew undoes it.
    """
    normals = shading.turned(e, R)
    turn = np.einsum("k,nka->na", light, sh_slopes(normals)) / sigma
    turn = (turn - (turn * normals).sum(-1, keepdims=True) * normals) @ R
    J = np.empty((len(slopes), G.shape[1]), np.float32)
    _rows(slopes.astype(np.float32), turn.astype(np.float32), shading.bend, G, J)
    basis = (sh_basis(normals) / sigma).astype(np.float32)
    weighted = (basis * weight[:, None]).T
    return J - basis @ np.linalg.solve(weighted @ basis + RIDGE * np.eye(9, dtype=np.float32), weighted @ J)
