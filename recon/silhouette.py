"""What the outline of a person says about the shape of the head.

Landmarks on cheeks and jaw slide over the skin as a head turns, so that detectors place them by habit. The edge of the matte is where the skin really ends.
Where the fitted mesh turns away from the camera, it should lie on that edge; how far it is off along its normal in the picture is one residual a point
(occluding contours of faces: Keller, Knothe & Vetter 2007; where they run between vertices, by linear interpolation of n·v along edges: Hertzmann & Zorin 2000).
A soft matte is read as coverage: the edge is where it falls through one half. Where hair, shoulders or another part of the head lie behind the skin there is no edge nearby, and nothing is said.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Callable, Iterable

import numpy as np

from recon.model import MorphableModel
from recon.quadratic import picture_gradient, pose_jacobian, project, robust_weights
from render.raster import vertex_normals

if TYPE_CHECKING:
    from recon.problem import Problem

REACH = 3.0  # mm that the outline may be off before it is taken for that of something else
STEP = 0.25  # px between readings of the matte
INSIDE, OUTSIDE = 0.85, 0.15  # of the matte on either side of an edge
SOFT = 2.0  # px beside an edge at which the matte has to be that
POINTS = 96  # of an outline, at most
WEIGHT = 1.0  # of a point, beside a landmark's
KERNEL = 1.5  # of its robust weight, in hundredths of the interocular distance


@dataclass(frozen=True)
class Rows:
    """Residuals of T frames at up to P points (T,P), in hundredths of the interocular distance, their weights (T,P), slopes by pose (T,P,6) and by shape and log focal length (T,P,S+1)."""

    residual: np.ndarray
    weight: np.ndarray
    pose: np.ndarray
    shape: np.ndarray


class Outline:
    """The outline of some frames' mattes, and where a model has its own. Mattes are read by a thread until they are asked for."""

    def __init__(self, model: MorphableModel, mattes: Callable[[], Iterable[np.ndarray]], frames: np.ndarray) -> None:
        """mattes: gives those of all frames, (H,W) uint8. frames (T,): the ones that `rows` will be asked about, rising."""
        self.model, self.frames = model, frames
        wanted = set(frames.tolist())
        reader = ThreadPoolExecutor(1)
        self.reading = reader.submit(lambda: [matte for index, matte in enumerate(islice(mattes(), int(frames[-1]) + 1)) if index in wanted])
        reader.shutdown(wait=False)
        region = model.regions.get("face", np.ones(len(model.mean), bool))
        for name in ("lips", "eyelids", "mouth_inside"):
            region = region & ~model.regions.get(name, np.zeros(len(region), bool))
        near = model.faces[region[model.faces].any(1)]
        self.used, index = np.unique(near, return_inverse=True)  # vertices that the region's normals depend on
        self.faces = index.reshape(near.shape).astype(np.int32)
        self.basis = np.ascontiguousarray(model.shape_basis[:, self.used].transpose(1, 0, 2), np.float64)
        sides = np.unique(np.sort(np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]]), 1), axis=0)
        self.edges = sides[region[self.used][sides].all(1)]

    def rows(self, problem: Problem, shape: np.ndarray, focal: float, R: np.ndarray, t: np.ndarray, e: np.ndarray) -> Rows:
        """How far the model's outline is off under a fit: shape (S,), focal px, R (T,3,3), t (T,3), e (T,E)."""
        T, S, mattes = len(R), len(shape), self.reading.result()
        rows = Rows(np.zeros((T, POINTS)), np.zeros((T, POINTS)), np.zeros((T, POINTS, 6)), np.zeros((T, POINTS, S + 1)))
        centre = np.array([problem.width, problem.height]) / 2
        for k in range(T):
            vertices = self.model.vertices(shape, e[k])[self.used].astype(np.float64)
            normals = vertex_normals(vertices, self.faces) @ R[k].T
            facing = np.einsum("vi,vi->v", normals, vertices @ R[k].T + t[k])
            a, b = self.edges.T
            crossed = np.flatnonzero((facing[a] > 0) != (facing[b] > 0))
            if len(crossed) > POINTS:
                crossed = crossed[np.linspace(0, len(crossed) - 1, POINTS).astype(int)]
            if not len(crossed):
                continue
            a, b = a[crossed], b[crossed]
            share = (facing[a] / (facing[a] - facing[b]))[:, None]
            between = lambda x: (1 - share) * x[a] + share * x[b]  # noqa: B023, E731
            camera, px = project(between(vertices)[None], R[k : k + 1], t[k : k + 1], focal)
            D = picture_gradient(camera, R[k : k + 1], focal)[0]
            outward = between(normals)[:, :2]
            outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
            offset, found = edge_offsets(mattes[k], px[0] + centre, outward, REACH * focal / t[k, 2])
            n = len(a)
            along = np.einsum("pi,pij->pj", outward, D)
            rows.residual[k, :n] = offset / problem.unit
            rows.weight[k, :n] = found * WEIGHT * robust_weights(rows.residual[k, :n, None], KERNEL)
            rows.pose[k, :n] = np.einsum("pi,pij->pj", outward, pose_jacobian(camera, t[k : k + 1], focal)[0]) / problem.unit
            moved = (1 - share[..., None]) * self.basis[a, :S] + share[..., None] * self.basis[b, :S]
            rows.shape[k, :n, :S] = (moved @ along[..., None])[..., 0] / problem.unit
            rows.shape[k, :n, S] = (outward * px[0]).sum(1) / problem.unit
        return rows


def edge_offsets(matte: np.ndarray, at: np.ndarray, outward: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a matte (H,W) uint8 ends along rays from points (P,2) px outward (P,2): offsets (P,) px, negative inside, and whether there is a clear edge within reach px (P,)."""
    import cv2

    count = int(np.ceil((reach + SOFT) / STEP))
    steps = np.arange(-count, count + 1) * STEP
    where = (at[:, None] + steps[:, None] * outward[:, None] - 0.5).astype(np.float32)
    height, width = matte.shape
    values = cv2.remap(matte.astype(np.float32) / 255, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    soft = int(round(SOFT / STEP))
    falls = (values[:, :-1] >= 0.5) & (values[:, 1:] < 0.5)
    falls[:, :soft] = falls[:, len(steps) - 1 - soft :] = False
    distance = np.where(falls, np.abs(steps[:-1]), np.inf)
    best = distance.argmin(1)
    rows = np.arange(len(at))
    before, after = values[rows, best], values[rows, best + 1]
    offset = steps[best] + STEP * (before - 0.5) / np.maximum(before - after, 1e-6)
    clear = (values[rows, np.maximum(best - soft, 0)] > INSIDE) & (values[rows, np.minimum(best + soft, len(steps) - 1)] < OUTSIDE)
    inside = ((at > 1) & (at < np.array([width, height]) - 1)).all(1)
    good = np.isfinite(distance[rows, best]) & clear & inside
    return np.where(good, offset, 0.0), good
