"""Refine a fit by the pixels: every frame is aligned to textures that all keyframes share.

Landmarks of a detector err by the same amount in all frames that look alike, and no smoothing removes that. A direct method
(Lucas & Kanade 1981; Irani & Anandan 1999) asks the pixels instead. Points of the mesh each get a texture, the robust mean of
what keyframes show there, and Gauss–Newton steps on pose and expression of a frame lower its difference to them. Landmarks stay
as a weaker prior. Brightness without the light of the moment has a say, too (`recon.shading`). The shape is left alone: textures slide along with it, so that pixels say less about it than landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np
from numba import njit

from recon.contrast import contrast_and_luma, look, visible
from recon.model import MorphableModel
from recon.problem import ROBUST, WEAK, expression_prior, jaw_pair
from recon.quadratic import apply_step, bounded_minimum, picture_gradient, project, robust_weights
from recon.shading import LUMA, STRENGTH, Shading, brightness_rows, harmonics, light_of
from render.raster import vertex_normals
from render.rotations import matrix_to_axis_angle

if TYPE_CHECKING:
    from recon.problem import Identity, Problem

IOD = 48.0  # interocular distance, px, that pictures are reduced to
SMALLEST = 20.0  # interocular distance, px, below which a picture shows too little to refine by
LEVELS = ((2.0, 4), (1.0, 4), (0.6, 3))  # deviation of the blur in px, steps of the keyframes
LATER = ((1.0, 2), (0.6, 1))  # the same for all frames, which find finished textures
SAMPLES, BOOST = 1500, 4.0  # points on the face; lips and lids are sampled this much more densely
FACING, FULLY = 0.25, 0.75  # cosine to the viewer at which a point begins to count, and counts fully
KERNEL = 5.0  # of the robust weights, in squared deviations
TRUST = 0.05  # weight of landmarks beside pixels
STIFF = 40.0  # expression prior against that of a fit by landmarks
NEAR = 12.0  # mm: skin of a model without regions is what lies so close to a landmark
CELL = 2.0  # px of the depth buffer
FARTHEST = np.deg2rad(10)  # a frame that turns farther from its landmarks has lost its way
BATCH = 32  # frames held at a time


@dataclass
class Texture:
    """What keyframes show at the points at one blur: value (N,C), deviation of a difference (C,), weight (N,)."""

    value: np.ndarray
    sigma: np.ndarray
    weight: np.ndarray


@dataclass
class View:
    """Part of a frame: feature (H,W,C,3); its px are those about the principal point less corner (2,), times scale."""

    feature: np.ndarray
    scale: float
    corner: np.ndarray


@dataclass
class Poses:
    """Some frames (K,) with R (K,3,3), t (K,3), e (K,E)."""

    frames: np.ndarray
    R: np.ndarray
    t: np.ndarray
    e: np.ndarray


def sample_surface(model: MorphableModel, count: int = SAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points spread by area over the skin of the face, BOOST times as densely on lips and lids: faces (N,), barycentric (N,3) and that density (N,); the same ones every time."""
    nothing = np.zeros(len(model.mean), bool)
    area = lambda *names: np.logical_or.reduce([model.regions.get(n, nothing) for n in names])  # noqa: E731
    if "face" in model.regions:
        skin = area("face") & ~area("mouth_inside", "teeth_upper", "teeth_lower", "tongue", "eye_left", "eye_right")
    else:
        from scipy.spatial import cKDTree

        skin = cKDTree(np.concatenate([model.points(model.mean, scheme) for scheme in model.landmarks])).query(model.mean)[0] < NEAR
    candidates = np.flatnonzero(skin[model.faces].all(1))
    corners = model.mean[model.faces[candidates]].astype(np.float64)
    weight = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    density = np.where(area("lips", "eyelids")[model.faces[candidates]].any(1), BOOST, 1.0)
    weight *= density
    rng = np.random.default_rng(0)
    at = (np.arange(count) + rng.random(count)) / count
    picked = np.searchsorted(np.cumsum(weight) / weight.sum(), at).clip(0, len(candidates) - 1)
    b = rng.random((count, 2))
    b = np.where(b.sum(1, keepdims=True) > 1, 1 - b, b)
    return candidates[picked], np.stack([1 - b.sum(1), b[:, 0], b[:, 1]], 1).astype(np.float32), density[picked]


@njit(cache=True, nogil=True)
def _normal(values, texture, sigma, weight, points, R, t, focal, M, v, kept, slopes):
    """M (N,3,3) and v (N,3) in the model frame: per point Σ_c w q qᵀ and Σ_c w r q of differences r = texture - value with slopes q by the point, of all channels but brightness, the last.

    kept (N,) receives the robust weights of all channels together, slopes (N,3) the q of brightness."""
    for i in range(len(values)):
        x = R[0, 0] * points[i, 0] + R[0, 1] * points[i, 1] + R[0, 2] * points[i, 2] + t[0]
        y = R[1, 0] * points[i, 0] + R[1, 1] * points[i, 1] + R[1, 2] * points[i, 2] + t[1]
        z = R[2, 0] * points[i, 0] + R[2, 1] * points[i, 1] + R[2, 2] * points[i, 2] + t[2]
        channels = values.shape[1]
        square = 0.0
        for c in range(channels):
            square += ((texture[i, c] - values[i, c, 0]) / sigma[c]) ** 2 / channels
        w = weight[i] / (1 + square / KERNEL) ** 2
        kept[i] = w
        for a in range(3):
            v[i, a] = 0
            for b in range(3):
                M[i, a, b] = 0
        for c in range(channels):
            r = (texture[i, c] - values[i, c, 0]) / sigma[c]
            gx, gy = values[i, c, 1] * focal / z / sigma[c], values[i, c, 2] * focal / z / sigma[c]
            gz = -(gx * x + gy * y) / z
            q = (R[0, 0] * gx + R[1, 0] * gy + R[2, 0] * gz, R[0, 1] * gx + R[1, 1] * gy + R[2, 1] * gz, R[0, 2] * gx + R[1, 2] * gy + R[2, 2] * gz)
            for a in range(3):
                if c == LUMA:
                    slopes[i, a] = q[a]
                    continue
                v[i, a] += w * r * q[a]
                for b in range(3):
                    M[i, a, b] += w * q[a] * q[b]


@njit(cache=True, nogil=True)
def _weighted(M, v, points, basis, G, U, g):
    """Rows G (3N,6+E): how points move by a turn, a shift (both in the model frame) and expressions, basis (N,3,E); U = M G, g += Gᵀ v."""
    for i in range(len(points)):
        p, columns = points[i], basis.shape[2]
        for a in range(3):
            for k in range(6):
                G[3 * i + a, k] = 0
            G[3 * i + a, 3 + a] = 1
            for j in range(columns):
                G[3 * i + a, 6 + j] = basis[i, a, j]
        G[3 * i + 1, 0], G[3 * i + 2, 0] = -p[2], p[1]
        G[3 * i, 1], G[3 * i + 2, 1] = p[2], -p[0]
        G[3 * i, 2], G[3 * i + 1, 2] = -p[1], p[0]
        for a in range(3):
            m0, m1, m2, pull = M[i, a, 0], M[i, a, 1], M[i, a, 2], v[i, a]
            for k in range(6 + columns):
                U[3 * i + a, k] = m0 * G[3 * i, k] + m1 * G[3 * i + 1, k] + m2 * G[3 * i + 2, k]
                g[k] += pull * G[3 * i + a, k]


class Refiner:
    """Aligns frames to textures that they share. lowest, highest (T,E): bounds of expressions; expected (T,E): what they are drawn to instead of 0, NaN for those that have nothing."""

    def __init__(self, problem: Problem, identity: Identity, model: MorphableModel, lowest: np.ndarray, highest: np.ndarray, expected: np.ndarray | None = None) -> None:
        self.problem, self.identity, self.model, self.pair = problem, identity, model, jaw_pair(problem.names)
        self.quadratic, linear = (TRUST * STIFF * part for part in expression_prior(problem, WEAK))
        expected = np.full(lowest.shape, np.nan) if expected is None else expected
        self.pull = np.nan_to_num(expected) @ self.quadratic - np.where(np.isfinite(expected), 0, linear)
        self.lowest, self.highest = lowest, highest
        self.faces_at, self.weights_at, density = sample_surface(model)
        S = len(identity.shape)
        self.neutral = (model.mean + np.tensordot(identity.shape, model.shape_basis[:S], 1)).astype(np.float32)
        self.rest = self._pick(self.neutral)
        self.shading = Shading.of(self.neutral, model, self._pick, 1 / density)
        bases = np.concatenate([self._pick(model.expression_basis), problem.expressions], 1)
        self.basis = np.ascontiguousarray(np.moveaxis(bases, 0, -1), np.float32)  # (N+L,3,E): points, then landmarks
        region = model.regions.get("skin", np.ones(len(model.mean), bool))
        self.faces = np.ascontiguousarray(model.faces[region[model.faces].all(1)], np.int32)
        self.shown = problem.base > 0
        self.side = int(1.3 * np.ptp(problem.picture[problem.valid][:, self.shown], axis=1).max()) + 8

    def _pick(self, arrays: np.ndarray) -> np.ndarray:
        """Vertex arrays (…,V,3) at the points, (…,N,3)."""
        return (arrays[..., self.model.faces[self.faces_at], :] * self.weights_at[..., None]).sum(-2)

    def view(self, picture: np.ndarray, frame: int, blur: float) -> View:
        """The face in the picture (H,W,3) uint8 of a frame, reduced to IOD."""
        import cv2

        height, width = picture.shape[:2]
        centre = np.array([width, height]) / 2
        points = self.problem.picture[frame][self.shown]
        corner = np.round((points.min(0) + points.max(0) - self.side) / 2 + centre).astype(int)
        rows, columns = ((np.arange(self.side) + corner[i]).clip(0, limit - 1) for i, limit in ((1, height), (0, width)))
        part = picture[rows[:, None], columns]
        size = min(self.side, int(round(self.side * IOD / (100 * self.problem.unit))))
        if size < self.side:
            part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
        return View(contrast_and_luma(part, blur), size / self.side, corner - centre)

    def points(self, e: np.ndarray) -> np.ndarray:
        """The points (N,3) mm under expressions (E,)."""
        return self.rest + self.basis[: len(self.rest)] @ e.astype(np.float32)

    def _place(self, view: View, points: np.ndarray, R: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points in camera space (N,3) and in the view (N,2) px."""
        camera, px = project(points[None].astype(np.float64), R[None], t[None], self.identity.focal)
        return camera[0], (px[0] - view.corner) * view.scale

    def sight(self, view: View, e: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
        """How well a frame shows each point (N,): by how much it faces the viewer, 0 where it is hidden."""
        vertices = self.neutral + np.tensordot(e.astype(np.float32), self.model.expression_basis, 1)
        normals = self._pick(vertex_normals(vertices, self.model.faces)) @ R.T
        mesh, mesh_px = self._place(view, vertices, R, t)
        camera, px = self._place(view, self.points(e), R, t)
        length = np.linalg.norm(camera, axis=-1) * np.maximum(np.linalg.norm(normals, axis=-1), 1e-6)
        out = np.empty(len(camera), np.float32)
        visible(mesh, mesh_px, self.faces, camera, px, CELL, out)
        return np.clip((-(normals * camera).sum(-1) / length - FACING) / (FULLY - FACING), 0, 1).astype(np.float32) * out

    def values(self, view: View, points: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
        """What a view shows at points (N,3) mm, (N,C,3)."""
        out = np.empty((len(self.rest), view.feature.shape[2], 3), np.float32)
        look(view.feature, self._place(view, points, R, t)[1], out)
        return out

    def texture(self, views: list[View], poses: Poses, sights: np.ndarray) -> tuple[Texture, float]:
        """Robust mean of what views show, points that look different from frame to frame with less weight; and the mean absolute difference of contrast to it."""
        seen = np.stack([self.values(view, self.points(poses.e[k]), poses.R[k], poses.t[k])[..., 0] for k, view in enumerate(views)])
        basis = np.stack([harmonics(self.shading.turned(e, R)) for e, R in zip(poses.e, poses.R)])
        w, albedo = sights, np.zeros(len(self.rest), np.float32)
        for _ in range(4):
            value = seen.copy()
            value[..., LUMA] += (basis @ light_of(basis, albedo - seen[..., LUMA], sights)[..., None])[..., 0]
            total = np.maximum(w.sum(0), 1e-6)
            mean = (w[..., None] * value).sum(0) / total[:, None]
            albedo, difference = mean[:, LUMA], value - mean
            sigma = 1.4826 * np.median(np.abs(difference[sights > 0.3]), axis=0) + 1e-3
            w = sights * (1 + ((difference / sigma) ** 2).mean(-1) / KERNEL) ** -2
        spread = np.sqrt((w[..., None] * difference**2).sum(0) / total[:, None] / sigma**2).mean(-1)
        weight = np.where(sights.sum(0) > min(2.0, 0.2 * len(views)), 1 / (0.5 + spread**2), 0)
        change = float(np.abs(difference[sights > 0.3][:, :LUMA]).mean())
        sigma[LUMA] /= STRENGTH
        return Texture(*(a.astype(np.float32) for a in (mean, sigma, weight))), change

    def _landmarks(self, poses: Poses) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Landmarks (K,L,3) mm in the model frame with what each asks for, M (K,L,3,3) and v (K,L,3)."""
        problem, focal = self.problem, self.identity.focal
        heads = problem.place(self.identity.head, poses.e, poses.R)
        camera, seen = project(heads, poses.R, poses.t, focal)
        D = picture_gradient(camera, poses.R, focal) / problem.unit
        r = (problem.picture[poses.frames] - seen) / problem.unit
        w = TRUST * problem.base * problem.certainty[poses.frames] * robust_weights(r, ROBUST)
        weighted = D * w[..., None, None]
        M = weighted[..., 0, :, None] * D[..., 0, None, :] + weighted[..., 1, :, None] * D[..., 1, None, :]
        return heads.astype(np.float32), M.astype(np.float32), (weighted * r[..., None]).sum(-2).astype(np.float32)

    def _systems(self, views: list[View], texture: Texture, sights: np.ndarray, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
        """H (K,6+E,6+E) and g (K,6+E) of frames: pixels and landmarks."""
        N, columns = len(self.rest), 6 + self.basis.shape[2]
        heads, M_landmarks, v_landmarks = self._landmarks(poses)
        H, g = np.empty((len(views), columns, columns)), np.empty((len(views), columns))
        everything = len(self.basis)
        M, v, points = np.empty((everything, 3, 3), np.float32), np.empty((everything, 3), np.float32), np.empty((everything, 3), np.float32)
        G, U = np.empty((3 * everything, columns), np.float32), np.empty((3 * everything, columns), np.float32)
        kept, slopes = np.empty(N, np.float32), np.empty((N, 3), np.float32)
        for k, view in enumerate(views):
            e, R, t = poses.e[k], poses.R[k], poses.t[k]
            points[:N], points[N:], M[N:], v[N:] = self.points(e), heads[k], M_landmarks[k], v_landmarks[k]
            out, sight, normals = self.values(view, points[:N], R, t), sights[k] * texture.weight, self.shading.turned(e, R)
            basis = harmonics(normals)
            light = light_of(basis[None], (texture.value[:, LUMA] - out[:, LUMA, 0])[None], sight[None])[0]
            out[:, LUMA, 0] += basis @ light
            _normal(out, texture.value, texture.sigma, sight, points[:N], R, t, self.identity.focal * view.scale, M, v, kept, slopes)
            pull = np.zeros(columns, np.float32)
            _weighted(M, v, points, self.basis, G, U, pull)
            weight = kept * self.shading.weight
            J = brightness_rows(self.shading, normals, basis, R, light, slopes, texture.sigma[LUMA], weight, G)
            missing = weight * (texture.value[:, LUMA] - out[:, LUMA, 0]) / texture.sigma[LUMA]
            H[k], g[k] = G.T @ U + J.T @ (weight[:, None] * J), pull + J.T @ missing
        return H, g

    def step(self, views: list[View], texture: Texture, sights: np.ndarray, poses: Poses) -> Poses:
        """One Gauss–Newton step of frames that do not depend on each other; expressions keep within their bounds, with the pose eliminated."""
        R, t, e = poses.R, poses.t, poses.e
        H, g = self._systems(views, texture, sights, poses)
        cross, corner = H[:, :6, 6:], H[:, :6, :6]
        corner = corner + 1e-4 * np.einsum("tii->ti", corner)[:, :, None] * np.eye(6)
        solved = np.linalg.solve(corner, np.concatenate([cross, g[:, :6, None]], -1))
        He = H[:, 6:, 6:] - np.swapaxes(cross, 1, 2) @ solved[..., :-1]
        ge = g[:, 6:] - (np.swapaxes(cross, 1, 2) @ solved[..., -1:])[..., 0] + (He @ e[..., None])[..., 0]
        lowest, highest = self.lowest[poses.frames], self.highest[poses.frames].copy()
        if self.pair is not None:
            close, jaw = self.pair
            highest[:, close] = np.minimum(highest[:, close], e[:, jaw] + 0.1)
        new = bounded_minimum((He + self.quadratic).astype(np.float32), (ge + self.pull[poses.frames]).astype(np.float32), e.astype(np.float32), lowest, highest)
        if self.pair is not None:
            new[:, close] = np.minimum(new[:, close], new[:, jaw])
        pose = (solved[..., -1] - (solved[..., :-1] @ (new - e)[..., None])[..., 0]).reshape(-1, 2, 3) @ np.swapaxes(R, 1, 2)
        return Poses(poses.frames, *apply_step(R, t, pose.reshape(-1, 6)), new.astype(np.float64))

    def _views(self, pictures: Sequence[np.ndarray], poses: Poses, blur: float) -> list[View]:
        return [self.view(picture, frame, blur) for picture, frame in zip(pictures, poses.frames)]

    def learn(self, poses: Poses, pictures: Sequence[np.ndarray]) -> tuple[Poses, dict[float, Texture], tuple[float, float]]:
        """Align keyframes to one another, coarse to fine: their poses, the textures of every blur, and the mean difference before and after."""
        before, textures = poses, {}
        for blur, steps in LEVELS:
            views = self._views(pictures, poses, blur)
            for index in range(steps):
                if index % 3 == 0:
                    sights = self._sights(views, poses)
                texture, _ = self.texture(views, poses, sights)
                poses = self.step(views, texture, sights, poses)
            textures[blur], after = self.texture(views, poses, sights)
        return poses, textures, (self.texture(views, before, self._sights(views, before))[1], after)

    def _sights(self, views: list[View], poses: Poses) -> np.ndarray:
        return np.stack([self.sight(view, poses.e[k], poses.R[k], poses.t[k]) for k, view in enumerate(views)])

    def follow(self, poses: Poses, pictures: Sequence[np.ndarray], textures: dict[float, Texture]) -> Poses:
        """Align frames to finished textures. A frame that gets lost keeps its landmarks' pose."""
        start = poses
        for blur, steps in LATER:
            views = self._views(pictures, poses, blur)
            if blur == LATER[0][0]:
                sights = self._sights(views, poses)
            for _ in range(steps):
                poses = self.step(views, textures[blur], sights, poses)
        turn = np.linalg.norm(matrix_to_axis_angle(poses.R @ np.swapaxes(start.R, 1, 2)), axis=-1)
        good = (turn < FARTHEST) & np.isfinite(poses.t).all(1)
        pick = lambda a, b: np.where(good.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)  # noqa: E731
        return Poses(poses.frames, pick(poses.R, start.R), pick(poses.t, start.t), pick(poses.e, start.e))
