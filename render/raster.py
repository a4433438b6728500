"""Z-buffer rasteriser of triangle meshes: on the CPU (numba, parallel over bands of rows, no compiler needed), or by PyTorch3D on CUDA where that is installed.

Conventions: OpenCV camera, pixel centres at +0.5, no anti-aliasing (render larger and average). A triangle is
front-facing when its vertices run counter-clockwise as seen from the camera in the y-up sense, which is to say when
its outward normal points to the camera. Triangles that reach behind the near plane are dropped whole.

Gradients with respect to vertices or attributes follow by interpolating again with the returned barycentric weights.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

import numba
import numpy as np

from render.camera import Camera
from render.files import InputError

NEAR = 1.0  # mm; nothing of a face is closer to a camera than this
BACKENDS = ("numba", "pytorch3d")
_BAND = 8  # rows a thread works on at a time


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees: face (H,W) int32 index or -1, barycentric (H,W,3) float32 perspective-correct
    weights of the face's vertices (zeros where nothing is), depth (H,W) float32 camera z in mm (inf where nothing is)."""

    face: np.ndarray
    barycentric: np.ndarray
    depth: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(H,W) bool, True where the mesh is."""
        return self.face >= 0


@functools.cache
def preferred() -> str:
    """The rasteriser that 'auto' means: PyTorch3D where it and a CUDA device are there, else numba."""
    if importlib.util.find_spec("pytorch3d") is None:
        return "numba"
    import torch

    return "pytorch3d" if torch.cuda.is_available() else "numba"


def rasterise(vertices: np.ndarray, faces: np.ndarray, camera: Camera, frame: int = 0, cull_back: bool = False, backend: str = "auto") -> Fragments:
    """Nearest triangle at every pixel centre.

    vertices (V,3) world mm, faces (F,3) int. `frame` picks camera.world_to_camera. cull_back drops triangles seen from
    behind. Where two triangles are equally near the lower index wins. Not differentiable. backend: one of BACKENDS, or 'auto' (see `preferred`).
    Raises ValueError on wrong shapes, InputError for a backend that is unknown or not installed.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"no rasteriser {backend!r}; choose one of {', '.join(BACKENDS)}")
    vertices, faces = np.asarray(vertices), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"rasterise takes vertices (V,3) and faces (F,3), got {vertices.shape} and {faces.shape}")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise ValueError(f"faces point at vertices 0 to {len(vertices) - 1} only, got {faces.min()} to {faces.max()}")
    pose = camera.world_to_camera[frame]
    local = vertices.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    homogeneous = local @ camera.K.T
    depth = np.ascontiguousarray(homogeneous[:, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.ascontiguousarray(homogeneous[:, :2] / depth[:, None])
    if (preferred() if backend == "auto" else backend) == "pytorch3d":
        from render.raster_pytorch3d import fill

        kept = _drawn(pixels, depth, faces, cull_back)
        face, barycentric, nearest = fill(pixels, depth, faces[kept], camera.width, camera.height)
        return Fragments(np.where(face >= 0, np.append(kept, -1)[face], -1).astype(np.int32), barycentric, nearest)
    face = np.full((camera.height, camera.width), -1, np.int32)
    barycentric = np.zeros((camera.height, camera.width, 3), np.float32)
    zbuffer = np.full((camera.height, camera.width), np.inf, np.float32)
    _fill(pixels, depth, np.ascontiguousarray(faces, np.int32), bool(cull_back), face, barycentric, zbuffer)
    return Fragments(face, barycentric, zbuffer)


def _drawn(pixels: np.ndarray, depth: np.ndarray, faces: np.ndarray, cull_back: bool) -> np.ndarray:
    """Indices of the faces that `_fill` draws: before the near plane, of some area, and facing the camera if the others are culled."""
    near = np.flatnonzero((depth[faces] > NEAR).all(1)) if len(faces) else np.zeros(0, np.int64)
    a, b, c = (pixels[faces[near, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    return near[area < 0 if cull_back else area != 0]


@numba.njit(parallel=True, cache=True, fastmath=False)
def _fill(pixels, depth, faces, cull_back, face_out, bary_out, depth_out):
    """Fill the three buffers. A band of rows belongs to one thread, so no two write the same pixel."""
    height, width = face_out.shape
    count = len(faces)
    top, bottom = np.empty(count, np.int32), np.empty(count, np.int32)  # rows whose centre a face may cover, half-open
    for f in numba.prange(count):
        a, b, c = faces[f]
        top[f], bottom[f] = 0, 0
        if depth[a] > NEAR and depth[b] > NEAR and depth[c] > NEAR:
            bx, by, cx, cy = pixels[b, 0] - pixels[a, 0], pixels[b, 1] - pixels[a, 1], pixels[c, 0] - pixels[a, 0], pixels[c, 1] - pixels[a, 1]
            area = bx * cy - cx * by
            if area < 0 or (area > 0 and not cull_back):
                low = min(pixels[a, 1], pixels[b, 1], pixels[c, 1])
                high = max(pixels[a, 1], pixels[b, 1], pixels[c, 1])
                top[f] = int(min(max(np.ceil(low - 0.5), 0), height))
                bottom[f] = int(min(max(np.floor(high - 0.5) + 1, 0), height))
    for band in numba.prange((height + _BAND - 1) // _BAND):
        first, last = band * _BAND, min(height, (band + 1) * _BAND)
        for f in range(count):
            if top[f] >= last or bottom[f] <= first:
                continue
            a, b, c = faces[f]
            ax, ay, bx, by, cx, cy = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1], pixels[c, 0], pixels[c, 1]
            inverse = 1.0 / ((bx - ax) * (cy - ay) - (cx - ax) * (by - ay))
            ia, ib, ic = 1.0 / depth[a], 1.0 / depth[b], 1.0 / depth[c]
            left = int(min(max(np.ceil(min(ax, bx, cx) - 0.5), 0), width))
            right = int(min(max(np.floor(max(ax, bx, cx) - 0.5) + 1, 0), width))
            for row in range(max(first, top[f]), min(last, bottom[f])):
                y = row + 0.5
                for column in range(left, right):
                    x = column + 0.5
                    wa = ((bx - x) * (cy - y) - (cx - x) * (by - y)) * inverse
                    wb = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) * inverse
                    wc = 1.0 - wa - wb
                    if wa < 0 or wb < 0 or wc < 0:
                        continue
                    wa, wb, wc = wa * ia, wb * ib, wc * ic  # 1 / z is linear on the screen
                    z = 1.0 / (wa + wb + wc)
                    if z < depth_out[row, column]:
                        depth_out[row, column] = z
                        face_out[row, column] = f
                        bary_out[row, column, 0], bary_out[row, column, 1], bary_out[row, column, 2] = wa * z, wb * z, wc * z


def interpolate(fragments: Fragments, faces: np.ndarray, attributes: np.ndarray, background: float = 0.0) -> np.ndarray:
    """Per-vertex attributes (V,C) → image (H,W,C) float32, `background` where nothing is."""
    attributes = np.ascontiguousarray(attributes, np.float32)
    out = np.empty(fragments.face.shape + (attributes.shape[1],), np.float32)
    _mix(fragments.face, fragments.barycentric, np.ascontiguousarray(faces, np.int32), attributes, np.float32(background), out)
    return out


@numba.njit(parallel=True, cache=True)
def _mix(face, barycentric, faces, attributes, background, out):
    """Weighted sum of the attributes of each pixel's face."""
    for row in numba.prange(face.shape[0]):
        for column in range(face.shape[1]):
            f = face[row, column]
            for k in range(out.shape[2]):
                if f < 0:
                    out[row, column, k] = background
                else:
                    out[row, column, k] = (
                        barycentric[row, column, 0] * attributes[faces[f, 0], k]
                        + barycentric[row, column, 1] * attributes[faces[f, 1], k]
                        + barycentric[row, column, 2] * attributes[faces[f, 2], k])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit outward normals (V,3) float32, faces weighted by area; zero at vertices without a face."""
    normals = np.zeros((len(vertices), 3))
    _accumulate(np.ascontiguousarray(vertices, np.float64), np.ascontiguousarray(faces, np.int32), normals)
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@numba.njit(cache=True)
def _accumulate(vertices, faces, normals):
    """Add twice the area vector of every face to its three vertices."""
    for f in range(len(faces)):
        a, b, c = faces[f]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for vertex in (a, b, c):
            normals[vertex, 0] += nx
            normals[vertex, 1] += ny
            normals[vertex, 2] += nz
