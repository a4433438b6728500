"""Rotations as arrays: axis-angle (…,3) in radians and matrices (…,3,3), NumPy float64.

Matrices act on column vectors: ``y = R @ x``. FRONTAL maps model axes (y up, z out of the
face) to OpenCV camera axes for a head that looks straight into the camera. Its axis-angle
has norm π, where that chart wraps: average, filter and interpolate rotations through
``relative_to_frontal``, never through raw axis-angle differences.
"""

from __future__ import annotations

import numpy as np

FRONTAL = np.diag([1.0, -1.0, -1.0])


def axis_angle_to_matrix(axis_angle: np.ndarray) -> np.ndarray:
    """(…,3) rad → (…,3,3), Rodrigues' formula, exact at zero."""
    w = np.asarray(axis_angle, np.float64)
    theta2 = (w * w).sum(-1)[..., None, None]
    theta = np.sqrt(theta2)
    small = theta < 1e-6
    safe = np.where(small, 1.0, theta)
    a = np.where(small, 1 - theta2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - theta2 / 24, (1 - np.cos(safe)) / safe**2)
    k = skew(w)
    return np.eye(3) + a * k + b * (k @ k)


def skew(vector: np.ndarray) -> np.ndarray:
    """(…,3) → (…,3,3) with ``skew(a) @ b == cross(a, b)``."""
    v = np.asarray(vector, np.float64)
    out = np.zeros(v.shape[:-1] + (3, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    return out - np.swapaxes(out, -1, -2)


def matrix_to_axis_angle(matrix: np.ndarray) -> np.ndarray:
    """(…,3,3) → (…,3) rad with norm in [0, π], through SciPy's quaternion route (stable near π)."""
    from scipy.spatial.transform import Rotation

    m = np.asarray(matrix, np.float64)
    return Rotation.from_matrix(m.reshape(-1, 3, 3)).as_rotvec().reshape(m.shape[:-2] + (3,))


def relative_to_frontal(rotation: np.ndarray) -> np.ndarray:
    """Model→world axis-angle (…,3) → axis-angle of the same head against FRONTAL, in model axes.

    Near zero for a head that faces the camera, so it can be filtered. Inverse: `from_frontal`.
    """
    return matrix_to_axis_angle(FRONTAL.T @ axis_angle_to_matrix(rotation))


def from_frontal(relative: np.ndarray) -> np.ndarray:
    """Inverse of `relative_to_frontal`: (…,3) → model→world axis-angle (…,3)."""
    return matrix_to_axis_angle(FRONTAL @ axis_angle_to_matrix(relative))


def head_angles(rotation: np.ndarray) -> np.ndarray:
    """Model→world axis-angle (…,3) → (…,3) rad: yaw + to the subject's left, pitch + up, roll + towards the subject's left shoulder.

    The head matrix in model axes is ``Ry(yaw) @ Rx(-pitch) @ Rz(-roll)``. Inverse: `from_head_angles`.
    """
    m = FRONTAL.T @ axis_angle_to_matrix(rotation)
    yaw = np.arctan2(m[..., 0, 2], m[..., 2, 2])
    pitch = np.arcsin(np.clip(m[..., 1, 2], -1, 1))
    roll = -np.arctan2(m[..., 1, 0], m[..., 1, 1])
    return np.stack([yaw, pitch, roll], -1)


def from_head_angles(angles: np.ndarray) -> np.ndarray:
    """Inverse of `head_angles`: (…,3) yaw, pitch, roll in rad → model→world axis-angle (…,3)."""
    yaw, pitch, roll = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    zero = np.zeros_like(yaw)
    ry = axis_angle_to_matrix(np.stack([zero, yaw, zero], -1))
    rx = axis_angle_to_matrix(np.stack([-pitch, zero, zero], -1))
    rz = axis_angle_to_matrix(np.stack([zero, zero, -roll], -1))
    return matrix_to_axis_angle(FRONTAL @ ry @ rx @ rz)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Geodesic angle (…,) rad between two axis-angle arrays (…,3)."""
    d = np.swapaxes(axis_angle_to_matrix(a), -1, -2) @ axis_angle_to_matrix(b)
    return np.linalg.norm(matrix_to_axis_angle(d), axis=-1)


def interpolate(rotation: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Slerp a sequence (T,3) given at `times` (T,) to `at` (N,), clamped at the ends → (N,3)."""
    from scipy.spatial.transform import Rotation, Slerp

    rotation, times = np.asarray(rotation, np.float64), np.asarray(times, np.float64)
    if len(rotation) == 1:
        return np.repeat(rotation, len(at), axis=0)
    at = np.clip(at, times[0], times[-1])
    return Slerp(times, Rotation.from_rotvec(rotation))(at).as_rotvec()
