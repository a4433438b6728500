"""The head: a radiance field in the space of the face model (mm), where a moving head stands still.

Colour and density come from a small network behind a hash encoding. The encoding itself is handed in: with tables
blended by expression (`encodings.BlendedTables`) this module need not know about expressions at all.
Where to look and what starts out opaque comes from the tracked mesh (`thnerf.shell`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

UNIT_MM = 100.0  # densities are per this length
WARP_UNIT = 0.01  # of the unit cube: what a 1 in the tables of the warp means
WARP_NEIGHBOURS, WARP_BLUR_MM, WARP_REACH_MM = 24, 6.0, 20.0


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
        """Log-density prior (M,) at unit positions (M,3), trilinear between cell centres."""
        grid = (positions.flip(-1) * 2 - 1).view(1, 1, 1, -1, 3)  # grid_sample's x is the last axis of the volume
        return torch.nn.functional.grid_sample(self.prior[None, None], grid, padding_mode="border", align_corners=False).view(-1)


def mesh_warp(meshes: np.ndarray, psi: np.ndarray, columns: int, volume: Volume, points: int) -> np.ndarray:
    """What the tracked mesh says of the way back to the resting head: displacements (points³,3,K) in the unit cube by condition, x fastest.

    meshes (n,V,3) mm in the conditions psi (n,K); only the first `columns` conditions move the mesh. Displacements of vertices are fitted
    linearly to ψ, spread to the grid points (at (i − ½)/(points − 1), as in the hash grid) from the vertices around each, and fade out
    away from the surface.
    """
    x = np.concatenate([psi[:, :columns], np.ones((len(psi), 1))], 1).astype(np.float64)
    square = x.T @ x + 1e-3 * len(x) * np.diag([1.0] * columns + [0.0])
    moves = np.linalg.solve(square, x.T @ meshes.reshape(len(meshes), -1)).reshape(columns + 1, -1, 3)
    extent = (volume.upper - volume.lower).astype(np.float64)
    corner = (np.arange(points) - 0.5) / (points - 1)
    z, y, xs = np.meshgrid(corner, corner, corner, indexing="ij")
    at = np.stack([xs, y, z], -1).reshape(-1, 3) * extent + volume.lower
    rest, k = torch.from_numpy(moves[-1].astype(np.float32)), min(WARP_NEIGHBOURS, moves.shape[1])
    found = [torch.cdist(part, rest).topk(k, largest=False) for part in torch.from_numpy(at.astype(np.float32)).split(4096)]
    distance, near = (torch.cat(parts).numpy() for parts in zip(*found))
    weight = np.exp(-0.5 * (distance**2 - distance[:, :1] ** 2) / WARP_BLUR_MM**2)
    weight *= np.exp(-np.maximum(distance[:, :1] - WARP_REACH_MM, 0) / WARP_REACH_MM) / weight.sum(1, keepdims=True)
    out = np.zeros((len(at), 3, psi.shape[1]), np.float32)
    for column in range(columns):
        out[:, :, column] = -np.einsum("pn,pnd->pd", weight, moves[column][near]) / extent
    return out


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
        return _Attach.apply(self.forward(features), positions, which, lower, upper)


class _Attach(torch.autograd.Function):
    """Positions as they are; their gradient goes on to the corrections (B,6) of their frames."""

    @staticmethod
    def forward(ctx: Any, delta: torch.Tensor, positions: torch.Tensor, which: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(positions, which, lower, upper)
        ctx.frames = len(delta)
        return positions.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        positions, which, lower, upper = ctx.saved_tensors
        extent = upper - lower
        force = gradient / extent
        about = torch.cat([torch.linalg.cross(lower + positions * extent, force, dim=-1), force * UNIT_MM], 1)
        sums = torch.zeros(ctx.frames, 6, device=gradient.device).index_add_(0, which.long(), about)
        return sums, gradient if ctx.needs_input_grad[1] else None, None, None, None
