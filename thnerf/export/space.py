"""The axes and units of exported worlds, and the way back.

The exported world has its origin at the footage's camera, which looks along -z with y up, as cameras of glTF, USD and Maya do; the head
stands before it. Local coordinates of the head are model space. With z up both are turned by +90° about x, so that a head
that looks into the camera has no rotation in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recon.model import gaze_rotation
from render.camera import Camera
from render.files import InputError
from render.rotations import FRONTAL, axis_angle_to_matrix, matrix_to_axis_angle

_TURN = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # +90° about x: y up becomes z up


@dataclass(frozen=True)
class Space:
    """scale: units per mm. up: 'y' or 'z'."""

    scale: float
    up: Literal["y", "z"] = "y"

    @property
    def local(self) -> np.ndarray:
        """(3,3): model axes → axes of the exported head."""
        return _TURN if self.up == "z" else np.eye(3)

    @property
    def world(self) -> np.ndarray:
        """(3,3): axes of recon's world (OpenCV) → axes of the exported world."""
        return self.local @ FRONTAL

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points or offsets (…,3) mm in model space → the exported head's own coordinates (…,3) float64."""
        return np.asarray(points, np.float64) @ self.local.T * self.scale

    def head(self, rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A Track's rotation and translation (T,3) → rotation matrices (T,3,3) and positions (T,3) of the exported head."""
        return self.world @ axis_angle_to_matrix(rotation) @ self.local.T, np.asarray(translation, np.float64) @ self.world.T * self.scale

    def head_back(self, matrix: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `head`: rotation (T,3) rad and translation (T,3) mm of a Track."""
        return self.rotation_back(matrix), np.asarray(position, np.float64) @ self.world / self.scale

    def rotation_back(self, matrix: np.ndarray) -> np.ndarray:
        """Rotation matrices (T,3,3) of the exported head → a Track's rotation (T,3) rad."""
        return matrix_to_axis_angle(self.world.T @ matrix @ self.local)

    def eyes(self, gaze: np.ndarray) -> np.ndarray:
        """Gaze (T,2,2) rad → rotation matrices (T,2,3,3) of the eyeballs in the exported head's coordinates."""
        return self.local @ gaze_rotation(gaze) @ self.local.T

    def gaze_back(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `eyes`; a roll of the eyeballs is lost."""
        forward = (self.local.T @ matrix @ self.local)[..., :, 2]
        return np.stack([np.arctan2(forward[..., 0], forward[..., 2]), np.arcsin(np.clip(forward[..., 1], -1, 1))], -1)

    def camera(self, camera: Camera) -> np.ndarray:
        """Camera → world (T,4,4) of the exported camera, which looks along its own -z with y up."""
        back = np.linalg.inv(camera.world_to_camera)
        out = np.repeat(np.eye(4)[None], len(camera), 0)
        out[:, :3, :3] = self.world @ back[:, :3, :3] @ FRONTAL
        out[:, :3, 3] = back[:, :3, 3] @ self.world.T * self.scale
        return out

    def camera_back(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `camera`: world_to_camera (T,4,4) in mm."""
        back = np.repeat(np.eye(4)[None], len(matrix), 0)
        back[:, :3, :3] = self.world.T @ matrix[:, :3, :3] @ FRONTAL
        back[:, :3, 3] = matrix[:, :3, 3] @ self.world / self.scale
        return np.linalg.inv(back)


def to_euler(matrix: np.ndarray, order: str) -> np.ndarray:
    """Rotation matrices (T,3,3) → angles (T,3) in degrees, one for each letter of `order`, without jumps of 360° between frames.

    order as in SciPy: 'xyz' turns about fixed axes, x first (Maya's and Houdini's default), 'ZXY' about moving ones, z first (BVH).
    """
    from scipy.spatial.transform import Rotation

    return np.rad2deg(np.unwrap(Rotation.from_matrix(matrix).as_euler(order), axis=0)) if len(matrix) else np.zeros((0, 3))


def from_euler(angles: np.ndarray, order: str) -> np.ndarray:
    """The inverse of `to_euler`: degrees (T,3) → rotation matrices (T,3,3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler(order, np.asarray(angles, np.float64).reshape(-1, 3), degrees=True).as_matrix()


def checked_rotation(matrix: np.ndarray, what: str) -> np.ndarray:
    """The rotation in matrices (T,3,3) of a file, free of a scale and of rounding. Raises InputError where there is none (zero, mirrored, not finite)."""
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).all() or np.abs(matrix).max(initial=0) > 1e12:
        raise InputError(f"{what} has a rotation that is not finite; export it again")
    if (np.linalg.det(matrix) <= 1e-12).any():
        raise InputError(f"{what} has a transform that is flat or mirrored, which no head pose is; remove negative or zero scales and export it again")
    U, _, Vt = np.linalg.svd(matrix)
    return U @ Vt
