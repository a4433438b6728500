"""The head: a radiance field in the space of the face model (mm), where a moving head stands still.

Colour and density come from a small network behind a hash encoding. The encoding itself is handed in: with tables
blended by expression (`encodings.BlendedTables`) this module need not know about expressions at all.
The tracked mesh says where to look: samples are taken only in a shell around it, thicker where hair is, and its
inside starts out opaque (`density prior`), without which small head rotations leave the depth open and the face
becomes a fog.
"""

from __future__ import annotations

import numpy as np
import torch

from render.march import Volume, dilate

PRIOR = 3.0
UNIT_MM = 100.0  # densities are per this length


def head_volume(meshes: np.ndarray, faces: np.ndarray, jaws: np.ndarray, eyes_y: float, cells: int, step_mm: float) -> tuple[Volume, np.ndarray]:
    """The shell around a head and its density prior.

    meshes (N,V,3) mm: the subject's head in several expressions, the first one typical. faces (F,3). jaws (N,17,3): jaw
    lines from ear to ear by the chin (iBUG 1–17). eyes_y: height of the eyes, mm. Returns the volume and prior (cells³)
    float32, which is +PRIOR inside the typical mesh and −PRIOR outside, with a soft border. The shell ends under the
    jaw: a collar hides the neck, which therefore belongs to the torso's layer.
    """
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
        _rasterise_surface(grid, vertices, faces, lower, upper)
    extent = (upper - lower) / cells
    shell = dilate(surface.any(0), 4)
    y = lower[1] + (np.arange(cells) + 0.5) * extent[1]
    hair = y > eyes_y + 0.15 * face_height
    shell[:, hair] |= dilate(surface[0], 9)[:, hair]
    prior, front = _front_prior(surface[0])
    # Nothing behind the visible side is ever seen: keep a few cells behind the front of each column and its neighbours.
    for _ in range(2):
        front = np.minimum.reduce([_shift(front, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    z = np.arange(cells)
    shell &= (z > front[:, :, None] - 4) | (front[:, :, None] >= cells)
    shell &= y[:, None] > _under_jaw(jaws, lower[2] + (z + 0.5) * extent[2]) - 0.1 * face_height
    return Volume(lower, upper, shell, step_mm, density_unit=UNIT_MM), prior


def _under_jaw(jaws: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Height (G,) of the underside of the jaw at depths z (G,): the line from the lowest chin through the corners of the jaw."""
    chin = jaws[jaws[:, 8, 1].argmin(), 8]
    corner = jaws[0, [4, 12]].mean(0)
    slope = np.clip((corner[1] - chin[1]) / min(corner[2] - chin[2], -1e-3), -2, 0)
    return chin[1] + slope * (np.minimum(z, chin[2]) - chin[2])


def _rasterise_surface(grid: np.ndarray, vertices: np.ndarray, faces: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
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


class HeadField(torch.nn.Module):
    """Encoded positions → density and colour: two hidden layers of ReLU, sigmoid colours, exponential density."""

    def __init__(self, channels: int, width: int, prior: np.ndarray) -> None:
        super().__init__()
        self.first = torch.nn.Linear(channels, width)
        self.second = torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, 4)
        with torch.no_grad():
            self.last.bias[0] = 1.0
        self.register_buffer("prior", torch.from_numpy(np.ascontiguousarray(prior, np.float32)))

    def forward(self, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features (M,C), positions (M,3) in the unit cube → density (M,) per UNIT_MM, colour (M,3) in [0,1]."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.training):
            y = self.last(torch.relu(self.second(torch.relu(self.first(features)))))
        y = y.float()
        return torch.exp((y[:, 0] + self.prior_at(positions)).clamp(-8, 8)), torch.sigmoid(y[:, 1:])

    def prior_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Log-density prior (M,) at unit positions (M,3), trilinear between cell centres, without gradient."""
        with torch.no_grad():
            grid = (positions.flip(-1) * 2 - 1).view(1, 1, 1, -1, 3)  # grid_sample's x is the last axis of the volume
            return torch.nn.functional.grid_sample(self.prior[None, None], grid, padding_mode="border", align_corners=False).view(-1)


class PoseCorrection(torch.nn.Module):
    """A small rigid correction of the tracked head pose, linear in features of the frame, so that unseen frames have one too.

    Head-space points move as x + w × x + d, with w (rad) and d (UNIT_MM) linear in (features, 1); zero at first.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(features + 1, 6))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (B,C) → (B,6): w, d."""
        return torch.cat([features, torch.ones(len(features), 1, device=features.device)], 1) @ self.weight

    @torch.no_grad()
    def apply_to_rays(self, features: np.ndarray, origins: np.ndarray, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correct ray origins (B,3) mm and the matrices (B,3,3) that turn camera directions into head space."""
        delta = self.forward(torch.from_numpy(features).to(self.weight.device)).cpu().numpy().astype(np.float64)
        moved = origins + np.cross(delta[:, :3], origins) + delta[:, 3:] * UNIT_MM
        turned = matrices + np.cross(delta[:, None, :3], matrices.swapaxes(1, 2)).swapaxes(1, 2)
        return moved.astype(np.float32), turned.astype(np.float32)

    def attach(self, features: torch.Tensor, positions: torch.Tensor, which: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Unit positions (M,3) already corrected, with the gradient of the correction attached; their values stay as they are."""
        delta = self.forward(features)
        delta = (delta - delta.detach())[which.long()]
        points = lower + positions * (upper - lower)
        shift = torch.cross(delta[:, :3], points, dim=-1) + delta[:, 3:] * UNIT_MM
        return positions + shift / (upper - lower)
