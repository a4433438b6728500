"""Marching rays through an occupancy grid, and compositing the samples they meet.

Samples are packed: all samples of ray 0, then of ray 1, …; `offsets` (N+1,) says where each ray begins.
Positions are in the unit cube of a box ``lower..upper``. Nothing here knows what is being rendered: `render_rays`
takes a function from positions to density and colour.

Emission–absorption model (Max 1995; Mildenhall et al., NeRF, ECCV 2020): a sample of density σ over a step δ has
opacity 1 − exp(−σ δ) and weight T·opacity, T being the transmittance in front of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import numba as nb
import numpy as np
import torch

_EMPTY = np.float32(-1)


@dataclass(frozen=True)
class Volume:
    """Where there is something to see: a box (lower, upper (3,) float32) and its occupancy (G,G,G) bool.

    Occupancy is indexed [x, y, z] over the box. step: distance between samples, in the units of the box.
    density_unit: the length that densities are per.
    """

    lower: np.ndarray
    upper: np.ndarray
    occupancy: np.ndarray
    step: float
    density_unit: float = 1.0

    @property
    def optical_step(self) -> float:
        """Length of a step in density units."""
        return self.step / self.density_unit

    def unit(self, points: np.ndarray) -> np.ndarray:
        """Points (…,3) → coordinates in the unit cube."""
        return (points - self.lower) / (self.upper - self.lower)


@dataclass(frozen=True)
class Samples:
    """Packed samples: positions (M,3) float32 in the unit cube, ray (M,) int32, offsets (N+1,) int64.

    Arrays here; tensors where another backend of `render.marching` made them.
    """

    positions: np.ndarray
    ray: np.ndarray
    offsets: np.ndarray


@nb.njit(cache=True, fastmath=True)
def clip_ray(ox, oy, oz, dx, dy, dz):
    """Entry and exit of a ray in the unit cube; exit < entry on a miss."""
    near, far = np.float32(0), np.float32(1e30)
    for o, d in ((ox, dx), (oy, dy), (oz, dz)):
        if abs(d) < np.float32(1e-12):
            if o < 0 or o > 1:
                return np.float32(0), _EMPTY
        else:
            t0, t1 = -o / d, (np.float32(1) - o) / d
            near, far = max(near, min(t0, t1)), min(far, max(t0, t1))
    return near, far


@nb.njit(parallel=True, cache=True, fastmath=True)
def _march(origins, directions, jitter, occupancy, step, limit, times, counts):
    G = occupancy.shape[0]
    for i in nb.prange(origins.shape[0]):
        ox, oy, oz = origins[i, 0], origins[i, 1], origins[i, 2]
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        t, far = clip_ray(ox, oy, oz, dx, dy, dz)
        t += jitter[i] * step[i]
        c = 0
        while t < far and c < limit:
            a, b, e = int((ox + t * dx) * G), int((oy + t * dy) * G), int((oz + t * dz) * G)
            if 0 <= a < G and 0 <= b < G and 0 <= e < G and occupancy[a, b, e]:
                times[i, c] = t
                c += 1
            t += step[i]
        counts[i] = c


@nb.njit(parallel=True, cache=True, fastmath=True)
def _pack(origins, directions, times, offsets, positions, ray):
    for i in nb.prange(origins.shape[0]):
        for c in range(offsets[i + 1] - offsets[i]):
            j = offsets[i] + c
            for k in range(3):
                positions[j, k] = min(max(origins[i, k] + times[i, c] * directions[i, k], np.float32(0)), np.float32(1))
            ray[j] = i


def march(origins: np.ndarray, directions: np.ndarray, volume: Volume, jitter: np.ndarray | float = 0.5, limit: int = 64) -> Samples:
    """Sample rays (N,3) in occupied cells, every `volume.step`, at most `limit` a ray.

    jitter (N,) or a number in [0,1): where within the first step sampling begins.
    """
    extent = (volume.upper - volume.lower).astype(np.float32)
    o = np.ascontiguousarray((origins - volume.lower) / extent, np.float32)
    d = np.ascontiguousarray(directions / extent, np.float32)
    step = (volume.step / np.linalg.norm(directions, axis=1)).astype(np.float32)
    start = np.broadcast_to(np.asarray(jitter, np.float32), (len(o),)).copy()
    times, counts = np.empty((len(o), limit), np.float32), np.zeros(len(o), np.int64)
    _march(o, d, start, volume.occupancy, step, limit, times, counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    positions, ray = np.empty((offsets[-1], 3), np.float32), np.empty(offsets[-1], np.int32)
    _pack(o, d, times, offsets, positions, ray)
    return Samples(positions, ray, offsets)


@nb.njit(parallel=True, cache=True, fastmath=True)
def _composite(density, colour, step, offsets, out, transmittance, weights):
    for i in nb.prange(out.shape[0]):
        T, r, g, b = np.float32(1), np.float32(0), np.float32(0), np.float32(0)
        for j in range(offsets[i], offsets[i + 1]):
            keep = np.float32(math.exp(-density[j] * step))
            w = T * (np.float32(1) - keep)
            weights[j] = w
            r += w * colour[j, 0]
            g += w * colour[j, 1]
            b += w * colour[j, 2]
            T *= keep
        out[i, 0], out[i, 1], out[i, 2] = r, g, b
        transmittance[i] = T


@nb.njit(parallel=True, cache=True, fastmath=True)
def _composite_backward(g_out, g_transmittance, density, colour, step, offsets, transmittance, weights, g_density, g_colour):
    for i in nb.prange(g_out.shape[0]):
        # What lies behind sample j, weighted by the loss: dL/dσ_j = δ (T_{j+1} q_j − behind_j).
        behind = transmittance[i] * g_transmittance[i]
        for j in range(offsets[i + 1] - 1, offsets[i] - 1, -1):
            q = g_out[i, 0] * colour[j, 0] + g_out[i, 1] * colour[j, 1] + g_out[i, 2] * colour[j, 2]
            for k in range(3):
                g_colour[j, k] = weights[j] * g_out[i, k]
            g_density[j] = -step * behind
            behind += weights[j] * q
        T = np.float32(1)
        for j in range(offsets[i], offsets[i + 1]):
            T *= np.float32(math.exp(-density[j] * step))
            q = g_out[i, 0] * colour[j, 0] + g_out[i, 1] * colour[j, 1] + g_out[i, 2] * colour[j, 2]
            g_density[j] += step * T * q


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: torch.Tensor, colour: torch.Tensor, step: float, offsets: np.ndarray) -> tuple[torch.Tensor, ...]:
        s, c = density.detach().contiguous().numpy(), colour.detach().contiguous().numpy()
        out, transmittance = np.empty((len(offsets) - 1, 3), np.float32), np.empty(len(offsets) - 1, np.float32)
        weights = np.empty(len(s), np.float32)
        _composite(s, c, np.float32(step), offsets, out, transmittance, weights)
        ctx.saved = (s, c, step, offsets, transmittance, weights)
        result = torch.from_numpy(out), torch.from_numpy(transmittance), torch.from_numpy(weights)
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    def backward(ctx: Any, g_out: torch.Tensor, g_transmittance: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        s, c, step, offsets, transmittance, weights = ctx.saved
        gs, gc = np.empty_like(s), np.empty_like(c)
        _composite_backward(g_out.contiguous().numpy(), g_transmittance.contiguous().numpy(), s, c, np.float32(step), offsets, transmittance, weights, gs, gc)
        return torch.from_numpy(gs), torch.from_numpy(gc), None, None


def composite(density: torch.Tensor, colour: torch.Tensor, step: float, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """density (M,), colour (M,3), float32 → colour (N,3) over black, transmittance (N,), weights (M,).

    Colour and transmittance are differentiable in density and colour; the weights carry no gradient.
    """
    return _Composite.apply(density, colour, step, offsets)


def composite_reference(density: torch.Tensor, colour: torch.Tensor, step: float, offsets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same as `composite` ray by ray, for reading and testing."""
    colours, transmittances, weights = [], [], []
    for a, b in zip(offsets[:-1], offsets[1:]):
        keep = torch.exp(-density[a:b] * step)
        T = torch.cumprod(torch.cat([keep.new_ones(1), keep]), 0)
        w = T[:-1] * (1 - keep)
        colours.append((w[:, None] * colour[a:b]).sum(0))
        transmittances.append(T[-1])
        weights.append(w)
    return torch.stack(colours), torch.stack(transmittances), torch.cat(weights)


def render_rays(origins: np.ndarray, directions: np.ndarray, volume: Volume,
                radiance: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], chunk: int = 16384, marching: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Render rays (N,3) with `radiance`: unit positions (M,3) → density (M,), colour (M,3).

    marching: a `render.marching.Marching`, for another backend or device. Returns colour (N,3) over black and opacity (N,).
    Rays go in chunks, so memory does not grow with N.
    """
    colours, opacities = [], []
    take, blend = (march, composite) if marching is None else (marching.march, marching.composite)
    for a in range(0, len(origins), chunk):
        samples = take(origins[a : a + chunk], directions[a : a + chunk], volume)
        density, colour = radiance(torch.as_tensor(samples.positions))
        out, transmittance, _ = blend(density, colour, volume.optical_step, samples.offsets)
        colours.append(out)
        opacities.append(1 - transmittance)
    return torch.cat(colours), torch.cat(opacities)


def dilate(grid: np.ndarray, cells: int) -> np.ndarray:
    """Grow a bool grid by `cells` steps along the axes (nothing wraps around)."""
    for _ in range(cells):
        grown = grid.copy()
        for axis in range(grid.ndim):
            view, source = np.moveaxis(grown, axis, 0), np.moveaxis(grid, axis, 0)
            view[1:] |= source[:-1]
            view[:-1] |= source[1:]
        grid = grown
    return grid
