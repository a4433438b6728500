"""The hash encoding written for reading: plain torch, autograd does the gradients. The other backends are tested against it."""

from __future__ import annotations

import torch

from thnerf.encodings.layout import PRIMES, HashGridLayout


def encode(positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: torch.Tensor | None = None) -> torch.Tensor:
    """Look up and interpolate. positions (N,D) in [0,1]; tables (size,) or (B,size), of which sample i uses `which[i]` (0 if None).

    Returns (N, levels·features) float32 (float64 for float64 tables; half precision is widened); differentiable in
    positions and tables. Multilinear interpolation of the 2^D corners of each level's cell.
    """
    tables = tables.reshape(-1, layout.size)
    tables = tables.float() if tables.dtype in (torch.float16, torch.bfloat16) else tables
    device = positions.device
    table_index = torch.zeros(len(positions), dtype=torch.long, device=device) if which is None else which.long()
    features = tables.reshape(len(tables), -1, layout.features)
    out = []
    for level in range(layout.levels):
        grid = positions * float(layout.scales[level]) + 0.5
        cell = torch.floor(grid.detach()).long()
        fraction = grid - cell
        value = torch.zeros(len(positions), layout.features, dtype=tables.dtype, device=device)
        for corner in range(1 << layout.dimensions):
            bits = torch.tensor([(corner >> axis) & 1 for axis in range(layout.dimensions)], device=device)
            weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(-1)
            entry = corner_entry(cell + bits, level, layout)
            value = value + weight[:, None] * features[table_index, entry + int(layout.offsets[level])]
        out.append(value)
    return torch.cat(out, -1)


def corner_entry(corner: torch.Tensor, level: int, layout: HashGridLayout) -> torch.Tensor:
    """Integer grid corners (N,D) → entry within the level (N,). Corners past a dense level's edge wrap, as in tiny-cuda-nn."""
    resolution, entries = int(layout.resolutions[level]), int(layout.entries[level])
    if layout.hashed[level]:
        index = torch.zeros(len(corner), dtype=torch.long, device=corner.device)
        for axis in range(layout.dimensions):
            index = index ^ (corner[:, axis] * PRIMES[axis] & 0xFFFFFFFF)
    else:
        index = sum(corner[:, axis] * resolution**axis for axis in range(layout.dimensions))
    return index % entries


def blend(tables: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Σ_k coefficients[b,k] · tables[:,k]: tables (P,K), coefficients (B,K) → (B,P)."""
    return coefficients @ tables.T


def adam_step(tables: torch.Tensor, first: torch.Tensor, second: torch.Tensor, gradients: torch.Tensor, coefficients: torch.Tensor,
              rates: torch.Tensor, betas: tuple[float, float], step: int) -> None:
    """One Adam step in place on blended tables, only where a gradient arrived (see `BlendedTables.step`).

    tables, first (P,K); second (P,) is shared by the K tables: the mean square of the gradient of the blended
    parameter, so that all K move in proportion to the coefficients. gradients (B,P), coefficients (B,K), rates (K,).
    """
    touched = (gradients.abs() > 1e-11).any(0)
    g = gradients[:, touched]
    second[touched] = betas[1] * second[touched] + (1 - betas[1]) * g.square().sum(0)
    first[touched] = betas[0] * first[touched] + (1 - betas[0]) * (g.T @ coefficients)
    scale = torch.sqrt(second[touched] / (1 - betas[1] ** step)) + 1e-8
    tables[touched] -= rates * first[touched] / (1 - betas[0] ** step) / scale[:, None]
