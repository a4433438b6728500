"""The face unrolled: what a picture shows of every spot of a fitted mesh, laid out the same way for everybody.

The mesh of the mean face is unrolled on an upright cylinder. Where a fit is right, eyes, lips and nostrils appear at the same place of the layout
whoever the person is and however the head is turned; where it is not, they appear beside it, and by how much is what `recon.corrector` reads off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recon.contrast import contrast, look, visible
from recon.model import MorphableModel
from recon.quadratic import project
from render.camera import Camera
from render.raster import rasterise, vertex_normals

SIDE = 112  # cells
AXIS, RADIUS = -80.0, 83.0  # mm: the cylinder's axis behind the eyes, and where it is as wide as the face
WIDTH, HEIGHT, MIDDLE = 224.0, 196.0, -30.0  # mm of the layout, and its centre above the eyes
FAR = 1e5  # mm: from there perspective is none
IOD, IOD_MM = 56.0, 92.0  # px that pictures are reduced to, for so many mm between the outer corners of the eyes
BLURS = (0.8, 2.5)  # px
MARGIN = 12  # px around the face
CELL = 2.0  # px of the depth buffer
CHANNELS = 7  # log luma and log red/green at either blur, cosine to the viewer, the normal to the right and down
STEPS = np.array([40, 40, 40, 40, 100, 100, 100], np.float32)  # of an unrolled face as int8, per unit


@dataclass(frozen=True)
class Atlas:
    """The layout: for every cell, row by row, three vertices of the mesh and their weights (SIDE²,3); landmarks (N,2) in cells, x first."""

    model: MorphableModel
    scheme: str
    corners: np.ndarray
    barycentric: np.ndarray
    landmarks: np.ndarray
    hull: np.ndarray  # (F,3) triangles that hide what is behind them

    def at_cells(self, values: np.ndarray) -> np.ndarray:
        """Values (V,C) of vertices → (SIDE²,C)."""
        out = np.empty((len(self.corners), values.shape[1]), np.float32)
        _blend(np.ascontiguousarray(values, np.float32), self.corners, self.barycentric, out)
        return out


@njit(cache=True, nogil=True)
def _blend(values: np.ndarray, corners: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(corners)):
        a, b, c = corners[i]
        for k in range(values.shape[1]):
            out[i, k] = weights[i, 0] * values[a, k] + weights[i, 1] * values[b, k] + weights[i, 2] * values[c, k]


def make_atlas(model: MorphableModel, scheme: str = "mediapipe478") -> Atlas:
    """The layout of a model that has regions and eyes. Raises KeyError for one without."""
    eyes = model.eye_centres.mean(0).astype(np.float64)
    outside = model.regions["skin"] | model.regions["eye_left"] | model.regions["eye_right"]
    triangles = np.flatnonzero(outside[model.faces].all(1))
    flat = _unrolled(model.mean, eyes)
    corners = flat[model.faces[triangles]]
    triangles = triangles[np.ptp(corners[..., 0], axis=1) < WIDTH / 2]  # not those that the cut goes through
    camera = Camera.simple(FAR * SIDE / WIDTH, SIDE, SIDE)
    scaled = np.stack([flat[:, 0], -flat[:, 1] * WIDTH / HEIGHT, FAR - flat[:, 2]], 1)
    seen = rasterise(scaled.astype(np.float32), model.faces[triangles], camera, backend="numba")
    points = _unrolled(model.points(model.mean, scheme), eyes)
    where = np.stack([points[:, 0] / WIDTH * SIDE + SIDE / 2, SIDE / 2 - points[:, 1] / HEIGHT * SIDE], 1)
    skin = model.regions["skin"]
    corners = model.faces[triangles[np.maximum(seen.face, 0).ravel()]]
    return Atlas(model, scheme, np.ascontiguousarray(corners, np.int32), np.ascontiguousarray(seen.barycentric.reshape(-1, 3), np.float32), where.astype(np.float32),
                 np.ascontiguousarray(model.faces[skin[model.faces].all(1)], np.int32))


def _unrolled(points: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Points (N,3) mm on the cylinder: mm along its girth and upwards from the middle of the layout, mm from its axis."""
    x, y, z = (np.asarray(points, np.float64) - eyes).T
    return np.stack([np.arctan2(x, z - AXIS) * RADIUS, y - MIDDLE, np.hypot(x, z - AXIS)], 1)


def unroll(atlas: Atlas, picture: np.ndarray, vertices: np.ndarray, R: np.ndarray, t: np.ndarray, focal: float) -> np.ndarray:
    """What a picture (H,W,3) uint8 shows of a mesh, vertices (V,3) mm under the pose R (3,3), t (3,): (CHANNELS,SIDE,SIDE) int8 in `STEPS`."""
    import cv2

    centre = np.array(picture.shape[1::-1]) / 2
    mesh, px = (a[0] for a in project(vertices[None].astype(np.float64), R[None], t[None], focal))
    camera, at = atlas.at_cells(mesh), atlas.at_cells(px)
    scale = IOD / (IOD_MM * focal / t[2])
    margin = MARGIN / scale
    low, high = (np.array([edge(at[:, 0]), edge(at[:, 1])]) + centre for edge in (np.min, np.max))
    low, high = np.floor(low - margin).astype(int), np.ceil(high + margin).astype(int)
    part = _cut(picture, low, high)
    size = np.maximum(np.round(np.array(part.shape[1::-1]) * scale), 16).astype(int)
    part = cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    ratio = size / (high - low)
    here, mesh_here = ((a + centre - low) * ratio for a in (at, px))
    out = np.empty((CHANNELS, SIDE * SIDE), np.float32)
    values = np.empty((len(here), 2, 3), np.float32)
    for index, blur in enumerate(BLURS):
        look(contrast(part, blur), here, values)
        out[2 * index : 2 * index + 2] = values[..., 0].T
    shown = np.empty(len(here), np.float32)
    visible(mesh, mesh_here, atlas.hull, camera, here, CELL, shown)
    normals = atlas.at_cells(vertex_normals(vertices, atlas.model.faces)) @ R.T.astype(np.float32)
    length = lambda x: np.sqrt(np.einsum("ij,ij->i", x, x))  # noqa: E731 - several times as fast as numpy's norm along a short axis
    normals /= np.maximum(length(normals), 1e-6)[:, None]
    out[4] = -np.einsum("ij,ij->i", normals, camera) / length(camera)
    out[5:] = normals[:, :2].T
    out[:4] *= shown * (out[4] > 0)
    return np.clip(np.round(out * STEPS[:, None]), -127, 127).astype(np.int8).reshape(CHANNELS, SIDE, SIDE)


def _cut(picture: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The part of a picture from low to high (x, y), its edges repeated beyond them."""
    limit = np.array(picture.shape[1::-1])
    if (low >= 0).all() and (high <= limit).all():
        return picture[low[1] : high[1], low[0] : high[0]]
    columns, rows = (np.arange(a, b).clip(0, end - 1) for a, b, end in zip(low, high, limit))
    return picture[rows[:, None], columns]
