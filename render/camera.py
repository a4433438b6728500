"""The pinhole camera shared by all stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """Pinhole camera without distortion. OpenCV axes, pixel centres at +0.5.

    K: (3,3) float64, px. world_to_camera: (T,4,4) float64, rigid (mm). width, height: px.
    Raises ValueError when shapes are wrong or values are not finite.
    """

    K: np.ndarray
    world_to_camera: np.ndarray
    width: int
    height: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "K", np.asarray(self.K, np.float64))
        object.__setattr__(self, "world_to_camera", np.asarray(self.world_to_camera, np.float64))
        object.__setattr__(self, "width", int(self.width))
        object.__setattr__(self, "height", int(self.height))
        if self.K.shape != (3, 3) or self.world_to_camera.ndim != 3 or self.world_to_camera.shape[1:] != (4, 4):
            raise ValueError(f"camera needs K (3,3) and world_to_camera (T,4,4), got {self.K.shape} and {self.world_to_camera.shape}")
        if not (np.isfinite(self.K).all() and np.isfinite(self.world_to_camera).all()):
            raise ValueError("camera contains values that are not finite")
        if self.K[0, 0] <= 0 or self.K[1, 1] <= 0 or self.width < 1 or self.height < 1:
            raise ValueError("camera needs positive focal lengths and a positive image size")

    @classmethod
    def simple(cls, focal: float, width: int, height: int, frames: int = 1) -> "Camera":
        """Square pixels, principal point in the image centre, identity extrinsics for `frames` frames."""
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        return cls(K, np.repeat(np.eye(4)[None], frames, 0), width, height)

    def __len__(self) -> int:
        return len(self.world_to_camera)

    def at(self, frames: slice | np.ndarray) -> "Camera":
        """The camera of some frames (same intrinsics)."""
        return Camera(self.K, self.world_to_camera[frames], self.width, self.height)

    def resized(self, width: int, height: int) -> "Camera":
        """The same view at another image size (px)."""
        s = np.diag([width / self.width, height / self.height, 1.0])
        return Camera(s @ self.K, self.world_to_camera, width, height)

    def extended(self, width: int, height: int) -> "Camera":
        """A view (width, height px) that shows all of this one, as large as it goes; what is left over shows more at both sides, or above.

        The picture of this camera lies in the middle of the lower edge, shifted by whole px, so that shoulders stay on the edge of the frame.
        """
        scale = min(width / self.width, height / self.height)
        inner_width, inner_height = round(self.width * scale), round(self.height * scale)
        inner = self.resized(inner_width, inner_height)
        shift = np.eye(3)
        shift[:2, 2] = (width - inner_width) // 2, height - inner_height
        return Camera(shift @ inner.K, self.world_to_camera, width, height)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (T,N,3) mm → pixels (T,N,2). Points at or behind the camera give NaN."""
        rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        camera = np.einsum("tij,tnj->tni", rotation, points) + translation[:, None]
        homogeneous = camera @ self.K.T
        depth = homogeneous[..., 2:]
        return homogeneous[..., :2] / np.where(depth > 0, depth, np.nan)

    def ray_directions(self) -> np.ndarray:
        """(H,W,3) float32 directions in camera axes with z = 1, through pixel centres."""
        v, u = np.mgrid[0 : self.height, 0 : self.width] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(self.K).T
        return rays.astype(np.float32)
