"""The hash encoding and its optimiser on CPU threads, compiled by numba at first use and cached on disk.

The plain loops here say what is computed; `numba_blocks` does the same 16 samples at a time and is used wherever its 32-bit
entries suffice, which is anywhere but in tables of gigabytes.
Races are avoided by construction: forward and position gradients run parallel over samples, the table
gradient parallel over levels. Gradients below TINY are skipped, since denormal arithmetic costs five times
the whole look-up.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import numba as nb
import numpy as np
import torch

from thnerf.encodings import numba_blocks as blocks
from thnerf.encodings.layout import HashGridLayout

TINY = 1e-11
_P1, _P2 = np.int64(2654435761), np.int64(805459861)
_CHUNK = 512


@nb.njit(cache=True, fastmath=True, inline="never")
def _entry(ix: int, iy: int, iz: int, resolution: int, entries: int, hashed: bool) -> int:
    """Entry of a grid corner; hashed levels hold a power of two, so the low bits of the hash are its remainder."""
    if hashed:
        return (ix ^ (iy * _P1) ^ (iz * _P2)) & (entries - 1)
    index = ix + resolution * (iy + resolution * iz)
    return index - entries if index >= entries else index


def _make_kernels(dimensions: int) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Forward, table gradient and position gradient for 2 or 3 axes (a 2D grid is the slice z = 0)."""
    corners = 1 << dimensions
    volume = dimensions == 3

    @nb.njit(parallel=True, fastmath=True, cache=True)
    def forward(x, which, tables, scales, resolutions, entries, hashed, offsets, out):
        n, one = x.shape[0], np.float32(1)
        for chunk in nb.prange((n + _CHUNK - 1) // _CHUNK):
            for level in range(scales.shape[0]):
                scale, resolution, size, is_hashed, base = scales[level], resolutions[level], entries[level], hashed[level], offsets[level]
                for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
                    px, py = x[i, 0] * scale + np.float32(0.5), x[i, 1] * scale + np.float32(0.5)
                    pz = x[i, 2] * scale + np.float32(0.5) if volume else np.float32(0)
                    ix, iy, iz = int(px), int(py), int(pz)
                    fx, fy, fz = px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz)
                    table = tables[which[i]]
                    a, b = np.float32(0), np.float32(0)
                    for c in range(corners):
                        w = (fx if c & 1 else one - fx) * (fy if c & 2 else one - fy) * (fz if c & 4 else one - fz)
                        e = base + _entry(ix + (c & 1), iy + ((c >> 1) & 1), iz + (c >> 2), resolution, size, is_hashed)
                        a += w * table[2 * e]
                        b += w * table[2 * e + 1]
                    out[i, 2 * level] = a
                    out[i, 2 * level + 1] = b

    @nb.njit(parallel=True, fastmath=True, cache=True)
    def backward_tables(x, which, gradient, scales, resolutions, entries, hashed, offsets, out):
        n, one = x.shape[0], np.float32(1)
        for level in nb.prange(scales.shape[0]):
            scale, resolution, size, is_hashed, base = scales[level], resolutions[level], entries[level], hashed[level], offsets[level]
            for i in range(n):
                ga, gb = gradient[i, 2 * level], gradient[i, 2 * level + 1]
                if abs(ga) + abs(gb) > TINY:
                    px, py = x[i, 0] * scale + np.float32(0.5), x[i, 1] * scale + np.float32(0.5)
                    pz = x[i, 2] * scale + np.float32(0.5) if volume else np.float32(0)
                    ix, iy, iz = int(px), int(py), int(pz)
                    fx, fy, fz = px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz)
                    table = out[which[i]]
                    for c in range(corners):
                        w = (fx if c & 1 else one - fx) * (fy if c & 2 else one - fy) * (fz if c & 4 else one - fz)
                        e = base + _entry(ix + (c & 1), iy + ((c >> 1) & 1), iz + (c >> 2), resolution, size, is_hashed)
                        table[2 * e] += w * ga
                        table[2 * e + 1] += w * gb

    @nb.njit(parallel=True, fastmath=True, cache=True)
    def backward_positions(x, which, gradient, tables, scales, resolutions, entries, hashed, offsets, out):
        n, one = x.shape[0], np.float32(1)
        for i in nb.prange(n):
            sx, sy, sz = np.float32(0), np.float32(0), np.float32(0)
            table = tables[which[i]]
            for level in range(scales.shape[0]):
                ga, gb = gradient[i, 2 * level], gradient[i, 2 * level + 1]
                if abs(ga) + abs(gb) > TINY:
                    scale, base = scales[level], offsets[level]
                    px, py = x[i, 0] * scale + np.float32(0.5), x[i, 1] * scale + np.float32(0.5)
                    pz = x[i, 2] * scale + np.float32(0.5) if volume else np.float32(0)
                    ix, iy, iz = int(px), int(py), int(pz)
                    fx, fy, fz = px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz)
                    for c in range(corners):
                        wx, wy, wz = fx if c & 1 else one - fx, fy if c & 2 else one - fy, fz if c & 4 else one - fz
                        e = base + _entry(ix + (c & 1), iy + ((c >> 1) & 1), iz + (c >> 2), resolutions[level], entries[level], hashed[level])
                        v = (ga * table[2 * e] + gb * table[2 * e + 1]) * scale
                        sx += v * wy * wz if c & 1 else -v * wy * wz
                        sy += v * wx * wz if c & 2 else -v * wx * wz
                        sz += v * wx * wy if c & 4 else -v * wx * wy
            out[i, 0], out[i, 1] = sx, sy
            if volume:
                out[i, 2] = sz

    return forward, backward_tables, backward_positions


_KERNELS = {2: _make_kernels(2), 3: _make_kernels(3)}


def _grid(layout: HashGridLayout) -> tuple[np.ndarray, ...]:
    return layout.scales, layout.resolutions, layout.entries, layout.hashed, layout.offsets


def _fits(tables: np.ndarray) -> bool:
    """Whether entries of all tables (B,size) can be counted in 32 bits."""
    return tables.size // 2 < 2**31


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: np.ndarray) -> torch.Tensor:
        x, t = positions.detach().contiguous().numpy(), tables.detach().float().contiguous().numpy()
        out = np.empty((len(x), layout.channels), np.float32)
        if _fits(t):
            blocks.forward(x, which, t.reshape(-1, 2), layout.size // 2, *_grid(layout), out)
        else:
            _KERNELS[layout.dimensions][0](x, which, t, *_grid(layout), out)
        ctx.saved = (x, t, layout, which)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, t, layout, which = ctx.saved
        g = gradient.float().contiguous().numpy()
        dx = dt = None
        if ctx.needs_input_grad[0]:
            dx = np.empty_like(x)
            if _fits(t):
                blocks.backward_positions(x, which, g, t.reshape(-1, 2), layout.size // 2, *_grid(layout), dx)
            else:
                _KERNELS[layout.dimensions][2](x, which, g, t, *_grid(layout), dx)
        if ctx.needs_input_grad[1]:
            dt = np.zeros_like(t)
            if _fits(t):
                blocks.backward_tables(x, which, g, layout.size // 2, *_grid(layout), dt.reshape(-1, 2))
            else:
                _KERNELS[layout.dimensions][1](x, which, g, *_grid(layout), dt)
        return (None if dx is None else torch.from_numpy(dx)), (None if dt is None else torch.from_numpy(dt)), None, None


def encode(positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: torch.Tensor | None = None) -> torch.Tensor:
    """As `reference.encode`, on the CPU; tables in half precision are widened first. Raises ValueError unless a level has two features."""
    if layout.features != 2:
        raise ValueError(f"the numba hash grid holds 2 features per level, not {layout.features}; use the reference backend")
    index = np.zeros(len(positions), np.int32) if which is None else which.to(torch.int32).contiguous().numpy()
    return _Encode.apply(positions, tables.reshape(-1, layout.size), layout, index)


@nb.njit(parallel=True, fastmath=True, cache=True)
def _blend(tables, coefficients, out):
    count, width, batch = tables.shape[0], tables.shape[1], coefficients.shape[0]
    for chunk in nb.prange((count + _CHUNK - 1) // _CHUNK):
        for p in range(chunk * _CHUNK, min(count, (chunk + 1) * _CHUNK)):
            for b in range(batch):
                value = np.float32(0)
                for k in range(width):
                    value += tables[p, k] * coefficients[b, k]
                out[b, p] = value


@nb.njit(parallel=True, fastmath=True, cache=True)
def _adam(tables, first, second, gradients, coefficients, rates, beta1, beta2, correction1, correction2):
    count, width, batch = tables.shape[0], tables.shape[1], coefficients.shape[0]
    one = np.float32(1)
    for chunk in nb.prange((count + _CHUNK - 1) // _CHUNK):
        g = np.empty(width, np.float32)
        for p in range(chunk * _CHUNK, min(count, (chunk + 1) * _CHUNK)):
            square, touched = np.float32(0), False
            for b in range(batch):
                square += gradients[b, p] * gradients[b, p]
                touched = touched or abs(gradients[b, p]) > TINY
            if touched:
                second[p] = beta2 * second[p] + (one - beta2) * square
                scale = correction1 / (math.sqrt(second[p] * correction2) + np.float32(1e-8))
                g[:] = 0
                for b in range(batch):
                    for k in range(width):
                        g[k] += gradients[b, p] * coefficients[b, k]
                for k in range(width):
                    moment = beta1 * first[p, k] + (one - beta1) * g[k]
                    first[p, k] = moment
                    tables[p, k] -= rates[k] * moment * scale


def blend(tables: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """As `reference.blend`: tables (P,K), coefficients (B,K) → (B,P); not differentiable (see `BlendedTables.step`)."""
    out = np.empty((len(coefficients), len(tables)), np.float32)
    _blend(tables.numpy(), coefficients.contiguous().numpy(), out)
    return torch.from_numpy(out)


def adam_step(tables: torch.Tensor, first: torch.Tensor, second: torch.Tensor, gradients: torch.Tensor, coefficients: torch.Tensor,
              rates: torch.Tensor, betas: tuple[float, float], step: int) -> None:
    """As `reference.adam_step`, in place."""
    b1, b2 = betas
    _adam(tables.numpy(), first.numpy(), second.numpy(), gradients.contiguous().numpy(), coefficients.contiguous().numpy(), rates.numpy(),
          np.float32(b1), np.float32(b2), np.float32(1 / (1 - b1**step)), np.float32(1 / (1 - b2**step)))
