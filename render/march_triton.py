"""Ray marching and compositing on CUDA, as Triton kernels: what `render.march` does on the CPU, for tensors on a device.

With TRITON_INTERPRET=1 they run on CPU tensors, slowly, for tests. A program handles a block of rays, one ray a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from render.march import Samples, Volume

_BLOCK = 128


@triton.jit
def clip_axis(near, far, o, d):
    """Narrow the interval in which rays lie between 0 and 1 of one axis; far becomes −1 where they never do."""
    flat = tl.abs(d) < 1e-12
    t0, t1 = -o / tl.where(flat, 1.0, d), (1.0 - o) / tl.where(flat, 1.0, d)
    outside = flat & ((o < 0) | (o > 1))
    near = tl.where(flat, near, tl.maximum(near, tl.minimum(t0, t1)))
    far = tl.where(flat, far, tl.minimum(far, tl.maximum(t0, t1)))
    return near, tl.where(outside, -1.0, far)


@triton.jit
def _march(origins, directions, jitter, step, occupancy, offsets, counts, positions, ray, n, limit, cells, FILL: tl.constexpr, BLOCK: tl.constexpr):
    """Walk rays through the grid. Without FILL only counts samples; with it, writes them from `offsets` on."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    ox, oy, oz = tl.load(origins + 3 * i, mask=inside, other=0.0), tl.load(origins + 3 * i + 1, mask=inside, other=0.0), tl.load(origins + 3 * i + 2, mask=inside, other=0.0)
    dx, dy, dz = tl.load(directions + 3 * i, mask=inside, other=1.0), tl.load(directions + 3 * i + 1, mask=inside, other=1.0), tl.load(directions + 3 * i + 2, mask=inside, other=1.0)
    near, far = clip_axis(ox * 0, ox * 0 + 1e30, ox, dx)
    near, far = clip_axis(near, far, oy, dy)
    near, far = clip_axis(near, far, oz, dz)
    length = tl.load(step + i, mask=inside, other=1.0)
    t = near + tl.load(jitter + i, mask=inside, other=0.0) * length
    first = tl.load(offsets + i, mask=inside, other=0) if FILL else i * 0
    count = i * 0
    going = inside & (t < far) & (count < limit)
    while tl.max(going.to(tl.int32), 0) > 0:
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        a, b, c = (x * cells).to(tl.int32), (y * cells).to(tl.int32), (z * cells).to(tl.int32)
        met = going & (a >= 0) & (b >= 0) & (c >= 0) & (a < cells) & (b < cells) & (c < cells)
        met = met & (tl.load(occupancy + (a * cells + b) * cells + c, mask=met, other=0) != 0)
        if FILL:
            at = first + count
            tl.store(positions + 3 * at, tl.minimum(tl.maximum(x, 0.0), 1.0), mask=met)
            tl.store(positions + 3 * at + 1, tl.minimum(tl.maximum(y, 0.0), 1.0), mask=met)
            tl.store(positions + 3 * at + 2, tl.minimum(tl.maximum(z, 0.0), 1.0), mask=met)
            tl.store(ray + at, i, mask=met)
        count += met.to(tl.int32)
        t += length
        going = inside & (t < far) & (count < limit)
    if not FILL:
        tl.store(counts + i, count, mask=inside)


def march(origins: np.ndarray | torch.Tensor, directions: np.ndarray | torch.Tensor, volume: Volume, jitter: np.ndarray | float = 0.5, limit: int = 64,
          device: torch.device | str = "cuda") -> Samples:
    """As `render.march.march`, with the samples as tensors on a device; rays may come as arrays."""
    put = lambda a: torch.as_tensor(a, dtype=torch.float32).to(device)  # noqa: E731
    lower, extent = put(volume.lower), put(volume.upper - volume.lower)
    d = put(directions)
    step = (volume.step / d.norm(dim=1)).contiguous()
    o, d = ((put(origins) - lower) / extent).contiguous(), (d / extent).contiguous()
    n, cells = len(o), volume.occupancy.shape[0]
    start = put(jitter).expand(n).contiguous()
    occupancy = torch.from_numpy(volume.occupancy.view(np.uint8)).to(device)
    counts = torch.zeros(n, dtype=torch.int32, device=device)
    grid = (triton.cdiv(n, _BLOCK),)
    _march[grid](o, d, start, step, occupancy, counts, counts, o, counts, n, limit, cells, False, _BLOCK)
    offsets = torch.zeros(n + 1, dtype=torch.int32, device=device)
    offsets[1:] = torch.cumsum(counts, 0)
    total = int(offsets[-1])
    positions, ray = torch.empty(total, 3, device=device), torch.empty(total, dtype=torch.int32, device=device)
    _march[grid](o, d, start, step, occupancy, offsets, counts, positions, ray, n, limit, cells, True, _BLOCK)
    return Samples(positions, ray, offsets)


@triton.jit
def _composite(density, colour, step, offsets, out, transmittance, weights, after, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    j, end = tl.load(offsets + i, mask=inside, other=0), tl.load(offsets + i + 1, mask=inside, other=0)
    light = tl.full((BLOCK,), 1.0, tl.float32)
    r, g, b = light * 0, light * 0, light * 0
    while tl.max((j < end).to(tl.int32), 0) > 0:
        here = j < end
        keep = tl.exp(-tl.load(density + j, mask=here, other=0.0) * step)
        w = light * (1 - keep)
        light *= keep
        tl.store(weights + j, w, mask=here)
        tl.store(after + j, light, mask=here)
        r += w * tl.load(colour + 3 * j, mask=here, other=0.0)
        g += w * tl.load(colour + 3 * j + 1, mask=here, other=0.0)
        b += w * tl.load(colour + 3 * j + 2, mask=here, other=0.0)
        j += 1
    tl.store(out + 3 * i, r, mask=inside)
    tl.store(out + 3 * i + 1, g, mask=inside)
    tl.store(out + 3 * i + 2, b, mask=inside)
    tl.store(transmittance + i, light, mask=inside)


@triton.jit
def _composite_backward(g_out, g_transmittance, colour, step, offsets, transmittance, weights, after, g_density, g_colour, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    begin, j = tl.load(offsets + i, mask=inside, other=0), tl.load(offsets + i + 1, mask=inside, other=0) - 1
    j = tl.where(inside, j, -1)
    gr, gg, gb = tl.load(g_out + 3 * i, mask=inside, other=0.0), tl.load(g_out + 3 * i + 1, mask=inside, other=0.0), tl.load(g_out + 3 * i + 2, mask=inside, other=0.0)
    # What lies behind sample j, weighted by the loss: dL/dσ_j = δ (T_{j+1} q_j − behind_j).
    behind = tl.load(transmittance + i, mask=inside, other=0.0) * tl.load(g_transmittance + i, mask=inside, other=0.0)
    while tl.max((j >= begin).to(tl.int32), 0) > 0:
        here = j >= begin
        q = gr * tl.load(colour + 3 * j, mask=here, other=0.0) + gg * tl.load(colour + 3 * j + 1, mask=here, other=0.0) + gb * tl.load(colour + 3 * j + 2, mask=here, other=0.0)
        w = tl.load(weights + j, mask=here, other=0.0)
        tl.store(g_colour + 3 * j, w * gr, mask=here)
        tl.store(g_colour + 3 * j + 1, w * gg, mask=here)
        tl.store(g_colour + 3 * j + 2, w * gb, mask=here)
        tl.store(g_density + j, step * (tl.load(after + j, mask=here, other=0.0) * q - behind), mask=here)
        behind += w * q
        j -= 1


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: torch.Tensor, colour: torch.Tensor, step: float, offsets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s, c, n = density.detach().float().contiguous(), colour.detach().float().contiguous(), len(offsets) - 1
        out, transmittance, weights, after = s.new_empty(n, 3), s.new_empty(n), torch.empty_like(s), torch.empty_like(s)
        _composite[(triton.cdiv(n, _BLOCK),)](s, c, step, offsets, out, transmittance, weights, after, n, _BLOCK)
        ctx.save_for_backward(c, offsets, transmittance, weights, after)
        ctx.step = step
        result = out, transmittance, weights.clone()
        ctx.mark_non_differentiable(result[2])
        return result

    @staticmethod
    def backward(ctx: Any, g_out: torch.Tensor, g_transmittance: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        c, offsets, transmittance, weights, after = ctx.saved_tensors
        gs, gc, n = torch.empty_like(weights), torch.empty_like(c), len(transmittance)
        _composite_backward[(triton.cdiv(n, _BLOCK),)](g_out.contiguous(), g_transmittance.contiguous(), c, ctx.step, offsets, transmittance, weights, after, gs, gc, n, _BLOCK)
        return gs, gc, None, None


def composite(density: torch.Tensor, colour: torch.Tensor, step: float, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `render.march.composite`, with offsets as an int32 tensor on the device."""
    return _Composite.apply(density, colour, float(step), offsets)
