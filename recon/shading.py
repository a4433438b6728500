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
from render.light import sh_basis, sh_gradient
from render.raster import vertex_normals

LUMA = 2  # the channel of `contrast_and_luma` that light has a part in
STRENGTH = 0.5  # of brightness beside contrast; more of it takes jaws of footage away from their landmarks
RIDGE = 1e-3  # on all harmonics but the constant one, per weight: a face shows half of all normals
ROUNDS = 3  # of the robust regression
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
        """Unit normals (N,3) float32 in camera space under expressions (E,) and a rotation (3,3)."""
        normals = self.normals + (self.bend.reshape(-1, self.bend.shape[2]) @ e.astype(np.float32)).reshape(-1, 3)
        return normals / np.maximum(np.sqrt((normals**2).sum(-1, keepdims=True)), 1e-6) @ R.T.astype(np.float32)


def light_of(basis: np.ndarray, missing: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The lights (K,9) that add up to what is missing (K,N), over harmonics (K,N,9) with weights (K,N): robust ridge regression."""
    out = np.empty((len(basis), 9))
    _lights(basis, missing.astype(np.float32), weight.astype(np.float32), out)
    return out


@njit(cache=True, nogil=True, fastmath=True)
def _lights(basis, missing, weight, out):
    N = basis.shape[1]
    rows, weighted = np.empty((9, N), np.float32), np.empty((9, N), np.float32)
    left, kept = np.empty(N, np.float32), np.empty(N, np.float32)
    H, g = np.empty((9, 9)), np.empty(9)
    for k in range(len(basis)):
        for i in range(N):
            kept[i] = weight[k, i]
            for a in range(9):
                rows[a, i] = basis[k, i, a]
        least = 0.3 * weight[k].max()
        for _ in range(ROUNDS):
            ridge = RIDGE * kept.sum()
            for a in range(9):
                total = np.float32(0)
                for i in range(N):
                    weighted[a, i] = kept[i] * rows[a, i]
                    total += weighted[a, i] * missing[k, i]
                g[a] = total
                for b in range(a + 1):
                    total = np.float32(0)
                    for i in range(N):
                        total += weighted[a, i] * rows[b, i]
                    H[a, b] = H[b, a] = total
                H[a, a] += 1e-9 + (ridge if a else 0.0)
            light = np.linalg.solve(H, g)
            left[:] = missing[k]
            for a in range(9):
                for i in range(N):
                    left[i] -= np.float32(light[a]) * rows[a, i]
            count = 0
            for i in range(N):
                if weight[k, i] >= least:
                    kept[count] = abs(left[i])
                    count += 1
            deviation = np.float32(1.4826 * np.median(kept[:count]) + 1e-3)
            for i in range(N):
                kept[i] = weight[k, i] / (1 + (left[i] / deviation) ** 2 / np.float32(KERNEL)) ** 2
        out[k] = light


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


def harmonics(normals: np.ndarray) -> np.ndarray:
    """Those that light is made of, (N,9) float32, at normals (N,3)."""
    return sh_basis(normals).astype(np.float32)


def brightness_rows(shading: Shading, normals: np.ndarray, basis: np.ndarray, R: np.ndarray, light: np.ndarray, slopes: np.ndarray, sigma: float, weight: np.ndarray, G: np.ndarray) -> np.ndarray:
    """How the brightness without light, over its deviation sigma, changes with pose and expressions, (N,6+E), when the light is fitted anew (variable projection; Golub & Pereyra 1973).

    normals (N,3) in camera space with their harmonics basis (N,9), light (9,), slopes (N,3) of the picture's brightness by the points, in the model frame and over sigma; weight (N,); G (3N,6+E): how the points move. The turn of the whole head needs no
    rows of its own for the normals: harmonics turn among themselves, so light that is fitted anew undoes it.
    """
    turn = sh_gradient(light, normals) / sigma
    turn = (turn - (turn * normals).sum(-1, keepdims=True) * normals) @ R
    J = np.empty((len(slopes), G.shape[1]), np.float32)
    _rows(slopes.astype(np.float32), turn.astype(np.float32), shading.bend, G, J)
    basis = basis / np.float32(sigma)
    weighted = (basis * weight[:, None]).T
    return J - basis @ np.linalg.solve(weighted @ basis + RIDGE * np.eye(9, dtype=np.float32), weighted @ J)
