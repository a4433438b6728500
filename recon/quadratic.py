"""The linear algebra of fitting: projections, poses and expressions of many frames at once.

Shapes: T frames, N landmarks, E expressions. A *head* here is the landmark part of a morphable model, (N,3) mm.
A pose is R (T,3,3), t (T,3): camera point = R @ model point + t. Pictures are px about the principal point.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from numba import njit

from render.rotations import axis_angle_to_matrix

_SYMMETRIC = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def project(points: np.ndarray, R: np.ndarray, t: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Model points (T,N,3) → camera points (T,N,3) and px about the principal point (T,N,2)."""
    camera = points @ np.swapaxes(R, -1, -2) + t[:, None]
    return camera, focal * camera[..., :2] / camera[..., 2:]


def picture_gradient(camera: np.ndarray, R: np.ndarray, focal: float) -> np.ndarray:
    """Derivative of px by the model point, (T,N,2,3)."""
    inverse = focal / camera[..., 2]
    ratio = camera[..., :2] / camera[..., 2:]
    return inverse[..., None, None] * (R[:, None, :2] - ratio[..., None] * R[:, None, 2:])


def pose_jacobian(camera: np.ndarray, t: np.ndarray, focal: float) -> np.ndarray:
    """Derivative of px by (left-multiplied rotation vector, translation), (T,N,2,6)."""
    arm = camera - t[:, None]
    J = np.zeros(camera.shape[:2] + (2, 6), camera.dtype)
    inverse = focal / camera[..., 2]
    for row in range(2):
        slope = -inverse * camera[..., row] / camera[..., 2]  # by depth
        J[..., row, 3 + row], J[..., row, 5] = inverse, slope
        axis = np.zeros(3)
        axis[row] = 1
        # d(w × arm) projected on the gradient (inverse·axis + slope·z): w · (arm × gradient)
        J[..., row, :3] = np.cross(arm, inverse[..., None] * axis + slope[..., None] * np.array([0, 0, 1.0]))
    return J


def robust_weights(residual: np.ndarray, scale: float) -> np.ndarray:
    """Geman & McClure's weights (1 / (1 + r²/s²))² of residuals (…,2), (…,)."""
    return (1 + (residual**2).sum(-1) / scale**2) ** -2


def apply_step(R: np.ndarray, t: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn and move poses by (T,6)."""
    return (axis_angle_to_matrix(step[:, :3]) @ R).astype(R.dtype), t + step[:, 3:]


def affine_pose(head: np.ndarray, picture: np.ndarray, weights: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """First guess by scaled orthography (DeMenthon & Davis 1995): head (N,3), picture (T,N,2), weights (N,) → R, t."""
    w = weights / weights.sum()
    centre, middle = w @ head, np.einsum("n,tnk->tk", w, picture)
    spread = head - centre
    solve = np.linalg.pinv(np.sqrt(w)[:, None] * spread) * np.sqrt(w)
    rows = np.einsum("in,tnk->tki", solve, picture - middle[:, None])  # (T,2,3), scale · first two rows of R
    U, s, Vt = np.linalg.svd(rows, full_matrices=False)
    first = U @ Vt
    R = np.concatenate([first, np.cross(first[:, 0], first[:, 1])[:, None]], 1)
    depth = focal / s.mean(1)
    t = np.concatenate([middle * depth[:, None] / focal, depth[:, None]], -1) - R @ centre
    return R, t


def refine_pose(points: np.ndarray | Callable[[np.ndarray], np.ndarray], picture: np.ndarray, R: np.ndarray, t: np.ndarray, focal: float, weights: np.ndarray, scale: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Newton on pose alone. points (T,N,3), or a function that gives them for R; weights (N,) or (T,N), scale: px of the robust kernel."""
    for _ in range(steps):
        camera, seen = project(points(R) if callable(points) else points, R, t, focal)
        residual = picture - seen
        w = weights * robust_weights(residual, scale)
        J = pose_jacobian(camera, t, focal).reshape(len(R), -1, 6)
        weighted = np.swapaxes(J * np.repeat(w, 2, axis=1)[..., None], 1, 2)
        H = weighted @ J
        H += (1e-6 * np.trace(H, axis1=1, axis2=2) / 6)[:, None, None] * np.eye(6)
        g = weighted @ residual.reshape(len(R), -1, 1)
        R, t = apply_step(R, t, np.linalg.solve(H, g)[..., 0])
    return R, t


class ExpressionSystem:
    """Normal equations of all expressions of many frames as one matrix product.

    A frame's Hessian Σ_n Bₙᵀ Mₙ Bₙ is linear in the symmetric (3,3) matrices Mₙ, so the outer products of the basis are
    formed once.
    """

    def __init__(self, basis: np.ndarray) -> None:
        """basis (E,N,3) mm."""
        E, N, _ = basis.shape
        self.count, self.flat = E, np.ascontiguousarray(basis.reshape(E, -1).T, np.float32)  # (3N,E)
        self.rows, self.columns = np.triu_indices(E)
        b = np.moveaxis(basis, 0, -1).astype(np.float32)  # (N,3,E)
        outer = np.empty((N, 6, len(self.rows)), np.float32)
        for k, (i, j) in enumerate(_SYMMETRIC):
            product = b[:, i, self.rows] * b[:, j, self.columns]
            outer[:, k] = product if i == j else product + b[:, j, self.rows] * b[:, i, self.columns]
        self.outer = outer.reshape(N * 6, -1)

    def normal(self, gradient: np.ndarray, weights: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H (T,E,E) and g (T,E) of ``Σ w |gradient · (basis · e) - target|²``: gradient (T,N,2,3), weights (T,N), target (T,N,2)."""
        T = len(gradient)
        D = gradient.astype(np.float32)
        W = weights.astype(np.float32)
        M = np.stack([(D[..., i] * D[..., j]).sum(-1) * W for i, j in _SYMMETRIC], -1).reshape(T, -1)
        packed = M @ self.outer
        H = np.empty((T, self.count, self.count), np.float32)
        H[:, self.rows, self.columns] = packed
        H[:, self.columns, self.rows] = packed
        pulled = ((target * weights[..., None]).astype(np.float32)[..., None] * D).sum(2).reshape(T, -1)
        return H, pulled @ self.flat


def bounded_minimum(H: np.ndarray, g: np.ndarray, start: np.ndarray, lower: np.ndarray, upper: np.ndarray, sweeps: int = 12) -> np.ndarray:
    """Minimise ``½ xᵀHx - gᵀx`` in a box for many small problems: H (T,E,E) positive definite, g, start, bounds (T,E) → (T,E).

    Projected Newton steps find the active set, coordinate descent (which cannot fail to descend) finishes.
    """
    x = np.clip(start, lower, upper)
    E = H.shape[-1]
    eye = np.eye(E, dtype=H.dtype)
    for _ in range(2):
        slope = np.matmul(H, x[..., None])[..., 0] - g
        held = ((x <= lower) & (slope > 0)) | ((x >= upper) & (slope < 0))
        free = (~held).astype(H.dtype)
        reduced = H * free[:, :, None] * free[:, None, :] + eye * held[:, None, :]
        trial = np.clip(x - np.linalg.solve(reduced, (slope * free)[..., None])[..., 0], lower, upper)
        better = _value(H, g, trial) < _value(H, g, x)
        x = np.where(better[:, None], trial, x)
    slope = np.matmul(H, x[..., None])[..., 0] - g
    _descend(np.ascontiguousarray(H), slope, x, lower, upper, sweeps)
    return x


@njit(cache=True, nogil=True)
def _descend(H: np.ndarray, slope: np.ndarray, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, sweeps: int) -> None:
    """Coordinate descent of each problem; x and its slope change in place."""
    T, E = x.shape
    for t in range(T):
        for _ in range(sweeps):
            for j in range(E):
                step = min(max(x[t, j] - slope[t, j] / H[t, j, j], lower[t, j]), upper[t, j]) - x[t, j]
                if step != 0:
                    x[t, j] += step
                    for k in range(E):
                        slope[t, k] += H[t, j, k] * step


def _value(H: np.ndarray, g: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.5 * (x * np.matmul(H, x[..., None])[..., 0]).sum(-1) - (g * x).sum(-1)
