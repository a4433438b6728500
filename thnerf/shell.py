"""Where the head may be: a shell around the tracked mesh, wider where the mattes show hair, and the density it starts from.

Samples are taken only in the shell. Its inside starts out opaque (the density prior), without which small head rotations
leave the depth open and the face becomes a fog. Towards the border of the shell the prior falls to nothing, so that what
reaches the border fades out instead of being cut into steps; the prior is part of the field, and every renderer has it.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from render.march import Volume, dilate
from thnerf.field import UNIT_MM

PRIOR = 3.0
"""Logarithm of the density inside (+) and outside (−) of the mesh."""
FADE = 24.0
"""What the prior loses at the border of the shell: e^−24 is less than any density that the networks could make visible."""
SKIN_MM, HAIR_MM, LOOSE_MM = 12.0, 25.0, 62.0
"""Reach of the shell around the mesh; above the eyes; and beside the visible head as far as the mattes show a person there."""
_MARGIN = 2  # cells around what the mattes show; the outermost fade


def head_volume(meshes: np.ndarray, faces: np.ndarray, jaws: np.ndarray, eyes_y: float, cells: int, step_mm: float,
                person: Callable[[np.ndarray], np.ndarray] | None = None) -> tuple[Volume, np.ndarray]:
    """The shell around a head and its density prior.

    meshes (N,V,3) mm: the subject's head in several expressions, the first one typical. faces (F,3). jaws (N,17,3): jaw
    lines from ear to ear by the chin (iBUG 1–17). eyes_y: height of the eyes, mm. person: share (n,) of the footage in which points
    (n,3) mm lie in front of or inside of the person as its matte shows it; None: not known. Returns the volume and prior (cells³)
    float32, which is +PRIOR inside the typical mesh and −PRIOR outside, with a soft border, less FADE at the border of the shell.
    The shell ends under the jaw: a collar hides the neck, which therefore belongs to the torso's layer.
    """
    from scipy.ndimage import distance_transform_edt

    chin_y = jaws[0, 8, 1]
    face_height = eyes_y - chin_y
    points = meshes[0]
    in_face = points[(points[:, 1] > chin_y) & (points[:, 1] < eyes_y + 0.5 * face_height)]
    low, high = in_face.min(0), in_face.max(0)
    centre_x, half = (low[0] + high[0]) / 2, (high[0] - low[0]) / 2
    lower = np.array([centre_x - 1.35 * half, jaws[:, 8, 1].min() - 0.2 * face_height, high[2] - 1.6 * face_height], np.float32)
    upper = np.array([centre_x + 1.35 * half, eyes_y + 1.35 * face_height, high[2] + 0.15 * face_height], np.float32)
    surface = np.zeros((len(meshes),) + (cells,) * 3, bool)
    for grid, vertices in zip(surface, meshes):
        rasterise_surface(grid, vertices, faces, lower, upper)
    extent = (upper - lower) / cells
    axes = [lower[k] + (np.arange(cells) + 0.5) * extent[k] for k in range(3)]
    hair = axes[1] > eyes_y + 0.15 * face_height
    shell = distance_transform_edt(~surface.any(0), sampling=extent) <= SKIN_MM
    away = distance_transform_edt(~surface[0], sampling=extent)
    shell[:, hair] |= (away <= HAIR_MM)[:, hair]
    if person is not None:
        # Hair beside the head lies about as deep as the head's outline: further in depth counts threefold. Before the head none stands off so far.
        beside = ~surface[0].any(2, keepdims=True) & (axes[1] > chin_y + 0.5 * face_height)[:, None]
        loose = (distance_transform_edt(~surface[0], sampling=extent * [1, 1, 3]) <= LOOSE_MM) & beside
        share = np.zeros(shell.shape, np.float32)
        asked = shell | loose
        share[asked] = person(np.stack(np.meshgrid(*axes, indexing="ij"), -1)[asked])
        shell = (shell | dilate(loose & (share > 0.3), _MARGIN)) & dilate(share > 0.05, _MARGIN)
    prior, front = _front_prior(surface[0])
    # Nothing behind the visible side is ever seen: keep a few cells behind the front of each column and its neighbours; but under the jaw, where
    # the view goes past the front, all.
    for _ in range(2):
        front = np.minimum.reduce([_shift(front, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    head = axes[1][:, None] > _under_jaw(jaws, axes[2]) - 0.1 * face_height
    shell &= head
    prior -= FADE * (1 - _inside(shell | (prior > 0) & head))  # what lies deeper than the shell is no border of it
    z = np.arange(cells)
    shell &= (z > front[:, :, None] - 4) | (front[:, :, None] >= cells) | (axes[1] < chin_y + 0.1 * face_height)[:, None]
    return Volume(lower, upper, shell, step_mm, density_unit=UNIT_MM), np.ascontiguousarray(prior, np.float32)


def _inside(shell: np.ndarray) -> np.ndarray:
    """0 outside of a shell (G,G,G) bool and at its border, 1 from about two cells inside; smooth, so that the cells do not show."""
    from scipy.ndimage import gaussian_filter

    # Cells at the faces of the box end there, too.
    soft = gaussian_filter(shell.astype(np.float32), 1.0, mode="constant")
    x = np.clip((soft - 0.6) / 0.35, 0, 1)  # a cell at a flat border has 0.69, the next one 0.93
    return x * x * (3 - 2 * x)


def _under_jaw(jaws: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Height (G,) of the underside of the jaw at depths z (G,): the line from the lowest chin through the corners of the jaw."""
    chin = jaws[jaws[:, 8, 1].argmin(), 8]
    corner = jaws[0, [4, 12]].mean(0)
    slope = np.clip((corner[1] - chin[1]) / min(corner[2] - chin[2], -1e-3), -2, 0)
    return chin[1] + slope * (np.minimum(z, chin[2]) - chin[2])


def rasterise_surface(grid: np.ndarray, vertices: np.ndarray, faces: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Mark the cells that the triangles pass through, by points spread over each of them."""
    steps = 7
    i, j = np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij")
    inside = i + j < steps
    a, b = (i[inside] + 1 / 3) / steps, (j[inside] + 1 / 3) / steps
    weights = np.stack([a, b, 1 - a - b], -1).astype(np.float32)
    points = np.einsum("wc,fcd->fwd", weights, vertices[faces].astype(np.float32)).reshape(-1, 3)
    cell = np.floor((points - lower) / (upper - lower) * len(grid)).astype(int)
    cell = cell[((cell >= 0) & (cell < len(grid))).all(1)]
    grid[tuple(cell.T)] = True


def _front_prior(surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density prior (G,G,G) float32 and, by column, the z index of the surface that faces the camera (a large one where there is none)."""
    cells = len(surface)
    grown = dilate(surface, 1)
    front = np.where(grown.any(2), cells - 1 - np.argmax(grown[:, :, ::-1], 2), 999)
    solid = (np.arange(cells) <= front[:, :, None] - 1) & (front[:, :, None] < cells)
    prior = np.where(solid, PRIOR, -PRIOR).astype(np.float32)
    for _ in range(2):
        for axis in range(3):
            p = np.concatenate([prior.take([0], axis), prior, prior.take([-1], axis)], axis)
            n = prior.shape[axis]
            prior = (p.take(range(n), axis) + 2 * prior + p.take(range(2, n + 2), axis)) / 4
    return np.ascontiguousarray(prior, np.float32), front


def _shift(grid: np.ndarray, i: int, j: int) -> np.ndarray:
    """A 2D grid moved by (i, j) cells, its border repeated."""
    n, m = grid.shape
    return grid[np.clip(np.arange(n) + i, 0, n - 1)][:, np.clip(np.arange(m) + j, 0, m - 1)]
