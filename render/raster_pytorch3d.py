"""The mesh rasteriser on PyTorch3D, for CUDA: the same fragments as `render.raster.rasterise`, from the same mesh and camera.

PyTorch3D (Ravi et al., 2020) has x to the left and y up, and normalised device coordinates (NDC) in which the shorter side of the picture runs from
−1 to 1 and the longer one farther, so that pixels are square. Its rasteriser takes vertices with x and y there and z in any unit. Near plane, culling and the
way of the faces are settled here, before it sees the mesh; what it counts as no hit (a pixel centre exactly on an edge) is let in by a
radius of a ten-thousandth of a pixel.
"""

from __future__ import annotations

import numpy as np
import torch

from render.files import InputError

EDGE = 1e-12  # squared radius, NDC


def to_ndc(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (N,2), centres at +0.5, x to the right and y down → NDC (N,2)."""
    return (np.array([width, height]) - 2 * pixels) / min(width, height)


def fill(pixels: np.ndarray, depth: np.ndarray, faces: np.ndarray, width: int, height: int, device: torch.device | str = "auto") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest face at every pixel centre: index (H,W) int32 or −1, weights (H,W,3) float32, depth (H,W) float32 (inf where nothing is).

    pixels (V,2), depth (V,) of vertices, finite where a face has them; faces (F,3), all of which are drawn. device: 'auto' is CUDA where there is some.
    Raises InputError when PyTorch3D is missing or was not built for the device.
    """
    try:
        from pytorch3d.renderer.mesh import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise InputError(f"the rasteriser 'pytorch3d' needs the package pytorch3d ({error}); install it as its INSTALL.md says, or use the rasteriser 'numba'") from None
    face, weights, far = np.full((height, width), -1, np.int32), np.zeros((height, width, 3), np.float32), np.full((height, width), np.inf, np.float32)
    if not len(faces):
        return face, weights, far
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    used, index = np.unique(faces, return_inverse=True)  # others may lie at infinity
    points = np.concatenate([to_ndc(pixels[used], width, height), depth[used, None]], 1).astype(np.float32)
    mesh = Meshes([torch.from_numpy(points).to(where)], [torch.from_numpy(index.reshape(-1, 3).astype(np.int64)).to(where)])
    try:
        found, z, barycentric, _ = rasterize_meshes(mesh, (height, width), blur_radius=EDGE, faces_per_pixel=1, perspective_correct=True, clip_barycentric_coords=True)
    except RuntimeError as error:
        raise InputError(f"PyTorch3D cannot rasterise on {where} ({error}); install a build for it, or use the rasteriser 'numba'") from None
    face[:] = found[0, :, :, 0].cpu().numpy()
    hit = face >= 0
    weights[hit], far[hit] = barycentric[0, :, :, 0].cpu().numpy()[hit], z[0, :, :, 0].cpu().numpy()[hit]
    return face, weights, far
