"""Surfaces of volumes as triangle meshes (naive surface nets), and what such meshes need: smoothing, components, filling in colours."""

from __future__ import annotations

from typing import Any

import numpy as np


def surface_nets(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The surface between values above and below `level` on a grid (X,Y,Z): vertices (V,3) float64 in grid steps, faces (F,3) int64.

    One vertex in every cell the surface crosses, at the mean of the crossings of its edges (Gibson, Constrained Elastic Surface Nets, 1998);
    faces run counter-clockwise seen from below the level, so normals point outwards. Beyond the grid everything is below: the mesh is closed.
    Empty where nothing is above.
    """
    low = min(float(values.min()), level) - 1.0
    padded = np.pad(np.asarray(values, np.float64), 1, constant_values=low)
    inside = padded > level
    cells = np.array(padded.shape) - 1
    points, around, outward = [], [], []
    for axis in range(3):
        head, tail = (np.moveaxis(padded, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        crossing = np.moveaxis(np.moveaxis(inside, axis, 0)[:-1] != np.moveaxis(inside, axis, 0)[1:], 0, axis)
        at = np.argwhere(crossing)
        if not len(at):
            continue
        a, b = np.moveaxis(head, 0, axis)[crossing], np.moveaxis(tail, 0, axis)[crossing]
        point = at.astype(np.float64)
        # A crossing on a grid point would put vertices of different cells on one spot.
        point[:, axis] += np.clip((level - a) / (b - a), 0.02, 0.98)
        second, third = (axis + 1) % 3, (axis + 2) % 3
        corners = np.repeat(at[:, None], 4, 1)  # the four cells around the edge, turning from the second axis to the third
        corners[:, :, second] -= [1, 0, 0, 1]
        corners[:, :, third] -= [1, 1, 0, 0]
        points.append(point)
        around.append(corners @ np.array([cells[1] * cells[2], cells[2], 1]))
        outward.append(a > b)
    if not points:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    point, cell, keep = np.concatenate(points), np.concatenate(around), np.concatenate(outward)
    _, vertex = np.unique(cell, return_inverse=True)
    vertex = vertex.reshape(-1, 4)
    count = np.bincount(vertex.ravel())
    vertices = np.stack([np.bincount(vertex.ravel(), np.repeat(point[:, k], 4)) / count for k in range(3)], 1) - 1
    quads = np.where(keep[:, None], vertex, vertex[:, ::-1])
    diagonal = lambda i, j: np.linalg.norm(vertices[quads[:, i]] - vertices[quads[:, j]], axis=1)  # noqa: E731
    split = np.where((diagonal(0, 2) <= diagonal(1, 3))[:, None, None], quads[:, [[0, 1, 2], [0, 2, 3]]], quads[:, [[0, 1, 3], [1, 2, 3]]])
    return vertices, split.reshape(-1, 3)


def neighbours(faces: np.ndarray, count: int) -> Any:
    """Sparse (V,V) matrix that replaces a vertex by the mean of those it shares an edge with (itself where it has none)."""
    from scipy.sparse import coo_matrix, diags

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    matrix = (coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr() > 0).astype(np.float64)
    alone = np.asarray(matrix.sum(1)).ravel() == 0
    matrix = matrix + diags(alone.astype(np.float64))
    return diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix


def taubin(vertices: np.ndarray, faces: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Smoothed vertices (V,3) that do not shrink: a step in, a larger one out (Taubin, A Signal Processing Approach to Fair Surface Design, 1995)."""
    mean = neighbours(faces, len(vertices))
    for _ in range(rounds):
        for strength in (0.5, -0.53):
            vertices = vertices + strength * (mean @ vertices - vertices)
    return vertices


def largest_component(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected part with the most faces, its vertices counted anew."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return vertices, faces
    pairs = np.concatenate([faces[:, :2], faces[:, 1:]])
    label = connected_components(coo_matrix((np.ones(len(pairs)), pairs.T), (len(vertices),) * 2), directed=False)[1]
    kept = faces[label[faces[:, 0]] == np.bincount(label[faces[:, 0]]).argmax()]
    used, again = np.unique(kept, return_inverse=True)
    return vertices[used], again.reshape(-1, 3)


def fill_in(vertices: np.ndarray, faces: np.ndarray, values: np.ndarray, known: np.ndarray, rounds: int = 60) -> np.ndarray:
    """values (V,C) with those that are not `known` (V,) taken from the nearest known vertex and smoothed over the surface. All unknown: unchanged."""
    from scipy.spatial import cKDTree

    if known.all() or not known.any():
        return values
    out = np.array(values, np.float64)
    out[~known] = out[known][cKDTree(vertices[known]).query(vertices[~known])[1]]
    mean = neighbours(faces, len(vertices))
    for _ in range(rounds):
        out[~known] = (mean @ out)[~known]
    return out
