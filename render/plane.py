"""Pictures that hang in space: where the pixels of one camera's picture lie in another camera's."""

from __future__ import annotations

import numpy as np

from render.camera import Camera


def plane_homography(source: Camera, target: Camera, frame: int = 0, depth: float = np.inf) -> np.ndarray:
    """(3,3) float64 that maps pixels of `source` to pixels of `target` for points of the plane z = depth (mm, in source's axes).

    Hartley & Zisserman, Multiple View Geometry, equation 13.2: K' (R + t nᵀ / d) K⁻¹ with n = (0, 0, 1). `frame` picks the pose
    of both cameras. At infinite depth only the rotation between them counts.
    """
    between = target.world_to_camera[frame] @ np.linalg.inv(source.world_to_camera[min(frame, len(source) - 1)])
    flat = between[:3, :3].copy()
    flat[:, 2] += between[:3, 3] / depth
    out = target.K @ flat @ np.linalg.inv(source.K)
    return out / out[2, 2]


def place(homography: np.ndarray) -> tuple[int, int, float] | None:
    """(x, y, scale) when the homography is a scaling and a shift by whole pixels, else None."""
    scale = homography[0, 0]
    shift = homography[:2, 2]
    straight = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    if scale <= 0 or not np.allclose(homography, straight, atol=1e-6) or np.abs(shift - np.round(shift)).max() > 1e-3:
        return None
    return int(round(shift[0])), int(round(shift[1])), float(scale)


def hang(image: np.ndarray, homography: np.ndarray, width: int, height: int, fall: float = 0.0) -> np.ndarray:
    """A picture (h,w,C) float32 seen through a homography of its pixels (centres at +0.5) → (height,width,C) float32.

    Beyond its border the border is repeated; where the picture is only shifted, columns beyond its sides fall by `fall` px a px. What lies behind the target camera shows nothing sensible.
    """
    import cv2

    at = place(homography)
    if at and round(at[2], 9) == 1:
        x, y, _ = at
        wanted = np.arange(width) - x
        columns = np.clip(wanted, 0, image.shape[1] - 1)
        drop = np.round(fall * np.abs(wanted - columns)).astype(int)
        return image[np.clip(np.arange(height)[:, None] - y - drop, 0, image.shape[0] - 1), columns]
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts pixel centres at whole numbers
    warp = np.linalg.inv(half) @ homography @ half
    return cv2.warpPerspective(np.ascontiguousarray(image), warp, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
