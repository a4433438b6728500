"""The hash encoding and its optimiser on CUDA, as Triton kernels, which compile themselves at first use.

With TRITON_INTERPRET=1 in the environment the same kernels run on CPU tensors, slowly: that is how they are tested without a
GPU. Parameters may be float32, float16 or bfloat16; weights, sums, results and gradients are float32 (autograd then casts a
gradient to the type of its parameter). Table gradients are summed by atomic additions, so their last bits vary between runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from thnerf.encodings.layout import HashGridLayout
from thnerf.encodings.reference import blend

__all__ = ["adam_step", "blend", "encode"]

_BLOCK = 256


@triton.jit
def corner_entry(ix, iy, iz, resolution, entries, hashed):
    """Entry of a grid corner in its level: the hash of its coordinates, or its place in a dense grid, which wraps at the edge."""
    u, v, w = ix.to(tl.uint32), iy.to(tl.uint32), iz.to(tl.uint32)
    h = (u ^ (v * 2654435761) ^ (w * 805459861)) & (entries - 1).to(tl.uint32)
    dense = ix + resolution * (iy + resolution * iz)
    dense = tl.where(dense >= entries, dense - entries, dense)
    return tl.where(hashed != 0, h.to(tl.int32), dense)


@triton.jit
def _cell(x, i, inside, scale, AXES: tl.constexpr):
    """Integer corner and fractions of samples i in a level; a 2D grid is the slice z = 0."""
    px = tl.load(x + i * AXES, mask=inside, other=0.0) * scale + 0.5
    py = tl.load(x + i * AXES + 1, mask=inside, other=0.0) * scale + 0.5
    ix, iy = px.to(tl.int32), py.to(tl.int32)
    iz, fz = ix * 0, px * 0
    if AXES == 3:
        pz = tl.load(x + i * AXES + 2, mask=inside, other=0.0) * scale + 0.5
        iz = pz.to(tl.int32)
        fz = pz - iz.to(tl.float32)
    return ix, iy, iz, px - ix.to(tl.float32), py - iy.to(tl.float32), fz


@triton.jit
def _forward(x, which, tables, scales, levels, out, n, size, LEVELS: tl.constexpr, AXES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    scale = tl.load(scales + level)
    resolution, entries, hashed, base = tl.load(levels + 4 * level), tl.load(levels + 4 * level + 1), tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    ix, iy, iz, fx, fy, fz = _cell(x, i, inside, scale, AXES)
    table = tables + tl.load(which + i, mask=inside, other=0).to(tl.int64) * size
    a, b = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for c in tl.static_range(1 << AXES):
        wx = fx if c % 2 else 1 - fx
        wy = fy if c // 2 % 2 else 1 - fy
        wz = fz if c // 4 else 1 - fz
        e = (base + corner_entry(ix + c % 2, iy + c // 2 % 2, iz + c // 4, resolution, entries, hashed)).to(tl.int64)
        w = wx * wy * wz
        a += w * tl.load(table + 2 * e, mask=inside, other=0.0).to(tl.float32)
        b += w * tl.load(table + 2 * e + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i * (2 * LEVELS) + 2 * level, a, mask=inside)
    tl.store(out + i * (2 * LEVELS) + 2 * level + 1, b, mask=inside)


@triton.jit
def _backward_tables(x, which, gradient, scales, levels, out, n, size, LEVELS: tl.constexpr, AXES: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    scale = tl.load(scales + level)
    resolution, entries, hashed, base = tl.load(levels + 4 * level), tl.load(levels + 4 * level + 1), tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    ix, iy, iz, fx, fy, fz = _cell(x, i, inside, scale, AXES)
    ga = tl.load(gradient + i * (2 * LEVELS) + 2 * level, mask=inside, other=0.0)
    gb = tl.load(gradient + i * (2 * LEVELS) + 2 * level + 1, mask=inside, other=0.0)
    felt = inside & ((ga != 0) | (gb != 0))
    table = out + tl.load(which + i, mask=inside, other=0).to(tl.int64) * size
    for c in tl.static_range(1 << AXES):
        wx = fx if c % 2 else 1 - fx
        wy = fy if c // 2 % 2 else 1 - fy
        wz = fz if c // 4 else 1 - fz
        e = (base + corner_entry(ix + c % 2, iy + c // 2 % 2, iz + c // 4, resolution, entries, hashed)).to(tl.int64)
        w = wx * wy * wz
        tl.atomic_add(table + 2 * e, w * ga, mask=felt, sem="relaxed")
        tl.atomic_add(table + 2 * e + 1, w * gb, mask=felt, sem="relaxed")


@triton.jit
def _backward_positions(x, which, gradient, tables, scales, levels, out, n, size, LEVELS: tl.constexpr, AXES: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    table = tables + tl.load(which + i, mask=inside, other=0).to(tl.int64) * size
    sx, sy, sz = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for level in range(LEVELS):
        scale = tl.load(scales + level)
        resolution, entries, hashed, base = tl.load(levels + 4 * level), tl.load(levels + 4 * level + 1), tl.load(levels + 4 * level + 2), tl.load(levels + 4 * level + 3)
        ix, iy, iz, fx, fy, fz = _cell(x, i, inside, scale, AXES)
        ga = tl.load(gradient + i * (2 * LEVELS) + 2 * level, mask=inside, other=0.0)
        gb = tl.load(gradient + i * (2 * LEVELS) + 2 * level + 1, mask=inside, other=0.0)
        for c in tl.static_range(1 << AXES):
            wx = fx if c % 2 else 1 - fx
            wy = fy if c // 2 % 2 else 1 - fy
            wz = fz if c // 4 else 1 - fz
            e = (base + corner_entry(ix + c % 2, iy + c // 2 % 2, iz + c // 4, resolution, entries, hashed)).to(tl.int64)
            v = ga * tl.load(table + 2 * e, mask=inside, other=0.0).to(tl.float32) + gb * tl.load(table + 2 * e + 1, mask=inside, other=0.0).to(tl.float32)
            v *= scale
            sx += v * wy * wz if c % 2 else -v * wy * wz
            sy += v * wx * wz if c // 2 % 2 else -v * wx * wz
            sz += v * wx * wy if c // 4 else -v * wx * wy
    tl.store(out + i * AXES, sx, mask=inside)
    tl.store(out + i * AXES + 1, sy, mask=inside)
    if AXES == 3:
        tl.store(out + i * AXES + 2, sz, mask=inside)


@lru_cache(maxsize=32)
def level_tables(layout: HashGridLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What kernels need of a layout: scales (L,) float32, and (L,4) int32 of resolution, entries, hashed, first entry."""
    rows = zip(layout.resolutions.tolist(), layout.entries.tolist(), layout.hashed.astype(int).tolist(), layout.offsets[:-1].tolist())
    return torch.from_numpy(layout.scales.copy()).to(device), torch.tensor(list(rows), dtype=torch.int32, device=device)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: torch.Tensor) -> torch.Tensor:
        x, t = positions.detach().float().contiguous(), tables.detach().contiguous()
        out = torch.empty(len(x), layout.channels, device=x.device)
        if len(x):
            grid = (triton.cdiv(len(x), _BLOCK), layout.levels)
            _forward[grid](x, which, t, *level_tables(layout, x.device), out, len(x), layout.size, layout.levels, layout.dimensions, _BLOCK)
        ctx.save_for_backward(x, t, which)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, t, which = ctx.saved_tensors
        layout, g, count = ctx.layout, gradient.float().contiguous(), triton.cdiv(len(x), _BLOCK)
        about = (len(x), layout.size, layout.levels, layout.dimensions, _BLOCK)
        dx = dt = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            if count:
                _backward_positions[(count,)](x, which, g, t, *level_tables(layout, x.device), dx, *about)
        if ctx.needs_input_grad[1]:
            dt = torch.zeros(t.shape, device=t.device)
            if count:
                _backward_tables[(count, layout.levels)](x, which, g, *level_tables(layout, x.device), dt, *about)
        return dx, dt, None, None


def encode(positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: torch.Tensor | None = None) -> torch.Tensor:
    """As `reference.encode`. Raises ValueError unless a level has two features."""
    if layout.features != 2:
        raise ValueError(f"the Triton hash grid holds 2 features per level, not {layout.features}; use the reference backend")
    index = torch.zeros(len(positions), dtype=torch.int32, device=positions.device) if which is None else which.to(torch.int32).contiguous()
    return _Encode.apply(positions, tables.reshape(-1, layout.size), layout, index)


@triton.jit
def _adam(tables, first, second, gradients, coefficients, rates, count, width, batch, beta1, beta2, correction1, correction2,
          WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    p, k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    inside, wide = p < count, k < width
    square, largest, g = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK, WIDTH), tl.float32)
    for b in range(batch):
        value = tl.load(gradients + b * count + p, mask=inside, other=0.0).to(tl.float32)
        square += value * value
        largest = tl.maximum(largest, tl.abs(value))
        g += value[:, None] * tl.load(coefficients + b * width + k, mask=wide, other=0.0)[None, :]
    touched = inside & (largest > 1e-11)
    mean = beta2 * tl.load(second + p, mask=inside, other=0.0) + (1 - beta2) * square
    scale = correction1 / (tl.sqrt(mean * correction2) + 1e-8)
    at, both = p[:, None] * width + k[None, :], touched[:, None] & wide[None, :]
    moment = beta1 * tl.load(first + at, mask=both, other=0.0) + (1 - beta1) * g
    value = tl.load(tables + at, mask=both, other=0.0) - tl.load(rates + k, mask=wide, other=0.0)[None, :] * moment * scale[:, None]
    tl.store(second + p, mean, mask=touched)
    tl.store(first + at, moment, mask=both)
    tl.store(tables + at, value, mask=both)


def adam_step(tables: torch.Tensor, first: torch.Tensor, second: torch.Tensor, gradients: torch.Tensor, coefficients: torch.Tensor,
              rates: torch.Tensor, betas: tuple[float, float], step: int) -> None:
    """As `reference.adam_step`, in place."""
    (count, width), (b1, b2) = tables.shape, betas
    _adam[(triton.cdiv(count, _BLOCK),)](tables, first, second, gradients.contiguous(), coefficients.contiguous(), rates, count, width, len(coefficients),
                                        b1, b2, 1 / (1 - b1**step), 1 / (1 - b2**step), triton.next_power_of_2(width), _BLOCK)
