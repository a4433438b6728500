"""Points on surfaces, and one head laid over another: what correspondence between face models needs."""

from __future__ import annotations

from typing import Callable

import numpy as np

from recon.model import Embedding

NEIGHBOURS = 8  # vertices around a point whose triangles are tried


def similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None, scaled: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3,3), translation (3,) with ``target ≈ scale · R @ source + t`` (Umeyama 1991). Points (N,3), weights (N,)."""
    w = np.full(len(source), 1 / len(source)) if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    a, b = w @ source, w @ target
    x, y = source - a, target - b
    U, s, Vt = np.linalg.svd((y * w[:, None]).T @ x)
    flip = np.array([1, 1, np.sign(np.linalg.det(U @ Vt))])
    R = (U * flip) @ Vt
    scale = float((s * flip).sum() / (w @ (x**2).sum(1))) if scaled else 1.0
    return scale, R, b - scale * R @ a


def closest_points(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None = None) -> tuple[Embedding, np.ndarray]:
    """The nearest points (N,3) have on a mesh, as faces and barycentrics, and their distances (N,).

    normals (N,3): triangles that face away from them are taken only when there is nothing else (lips that touch). Exact where the nearest point lies on a triangle of one of the point's nearest vertices, as it does on meshes of even size.
    """
    from scipy.spatial import cKDTree

    points, vertices, faces = np.asarray(points, np.float64), np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    used = np.unique(faces)
    _, near = cKDTree(vertices[used]).query(points, k=min(NEIGHBOURS, len(used)))
    near = used[near.reshape(len(points), -1)]
    order = np.argsort(faces.ravel(), kind="stable")
    begin = np.searchsorted(faces.ravel()[order], np.arange(len(vertices) + 1))
    degree = np.diff(begin)[near]
    pair = np.repeat(np.arange(near.size), degree.ravel())
    within = np.arange(len(pair)) - np.repeat(np.cumsum(degree.ravel()) - degree.ravel(), degree.ravel())
    triangle, point = order[begin[near.ravel()[pair]] + within] // 3, pair // near.shape[1]
    bary = _nearest_on_triangles(points[point], vertices[faces[triangle]])
    distance = np.linalg.norm((vertices[faces[triangle]] * bary[..., None]).sum(1) - points[point], axis=1)
    rank = distance
    if normals is not None:
        edges = vertices[faces[triangle]][:, 1:] - vertices[faces[triangle]][:, :1]
        rank = distance + 1e6 * ((np.cross(edges[:, 0], edges[:, 1]) * normals[point]).sum(1) <= 0)
    best = np.full(len(points), -1)
    ranked = np.lexsort((triangle, rank))[::-1]  # the last write wins, so the nearest comes last
    best[point[ranked]] = ranked
    return Embedding(triangle[best].astype(np.int64), bary[best].astype(np.float32)), distance[best]


def _nearest_on_triangles(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentrics (N,3) of the nearest point of triangles (N,3,3): the foot on the plane if inside, else the best of the edges."""
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    ap = points - a
    d00, d01, d11 = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    d20, d21 = (ap * ab).sum(1), (ap * ac).sum(1)
    area = np.maximum(d00 * d11 - d01 * d01, 1e-12)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    foot = np.stack([1 - v - w, v, w], -1)
    inside = (foot >= 0).all(1)
    best, least = foot, np.where(inside, -1.0, np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, j] - corners[:, i]
        s = np.clip(((points - corners[:, i]) * edge).sum(1) / np.maximum((edge**2).sum(1), 1e-12), 0, 1)
        gap = ((corners[:, i] + s[:, None] * edge - points) ** 2).sum(1)
        on_edge = np.zeros_like(foot)
        on_edge[:, i], on_edge[:, j] = 1 - s, s
        better = gap < least
        best, least = np.where(better[:, None], on_edge, best), np.where(better, gap, least)
    return best


def warp(source: np.ndarray, target: np.ndarray, slack: np.ndarray | float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth map of space that takes anchors `source` (N,3) to `target` (N,3): a similarity, then a thin-plate spline for what remains.

    (Bookstein 1989.) slack: how loosely each anchor is held, mm-like; where the similarity is exact, the map is that similarity.
    """
    from scipy.interpolate import RBFInterpolator

    scale, R, t = similarity(source, target)
    moved = scale * np.asarray(source, np.float64) @ R.T + t
    bend = RBFInterpolator(moved, np.asarray(target, np.float64) - moved, kernel="linear", smoothing=slack, degree=1)

    def apply(points: np.ndarray) -> np.ndarray:
        at = scale * np.asarray(points, np.float64) @ R.T + t
        return at + bend(at)

    return apply
