"""The head in one CUDA kernel: march, hash encoding, network and compositing, an 8×8 tile of pixels a program.

What `fused.render_heads` is on the CPU. Every ray of a tile walks to its next occupied cell; then the tile evaluates one sample of
each together: corners of all levels as (rays, levels) arrays, the network as matrix products in TF32 with float32 sums. A ray
stops when less than `stop` of its light is left. `avatar.Avatar.render` defines what this computes.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from render.march import Volume
from render.march_triton import clip_axis
from thnerf.encodings import HashGridLayout
from thnerf.encodings.triton_backend import corner_entry, level_tables
from thnerf.field import WARP_UNIT

TILE = 8


@triton.jit
def _prior_at(grid, x, y, z, here, cells):
    """Trilinear look-up of a cubic grid (cells³) between cell centres at unit positions (rays,)."""
    top = cells - 1.001
    gx, gy, gz = tl.minimum(tl.maximum(x * cells - 0.5, 0.0), top), tl.minimum(tl.maximum(y * cells - 0.5, 0.0), top), tl.minimum(tl.maximum(z * cells - 0.5, 0.0), top)
    a, b, c = gx.to(tl.int32), gy.to(tl.int32), gz.to(tl.int32)
    fx, fy, fz = gx - a.to(tl.float32), gy - b.to(tl.float32), gz - c.to(tl.float32)
    value = gx * 0
    for k in tl.static_range(8):
        at = ((a + k % 2) * cells + b + k // 2 % 2) * cells + c + k // 4
        weight = (fx if k % 2 else 1 - fx) * (fy if k // 2 % 2 else 1 - fy) * (fz if k // 4 else 1 - fz)
        value += weight * tl.load(grid + at, mask=here, other=0.0)
    return value


@triton.jit
def _pair_at(table, first, x, y, z, here, scale, resolution, entries):
    """Two features (rays,) of a dense level that begins at entry `first`, at unit positions (rays,)."""
    px, py, pz = x * scale + 0.5, y * scale + 0.5, z * scale + 0.5
    ix, iy, iz = px.to(tl.int32), py.to(tl.int32), pz.to(tl.int32)
    fx, fy, fz = px - ix.to(tl.float32), py - iy.to(tl.float32), pz - iz.to(tl.float32)
    a, b = px * 0, px * 0
    for k in tl.static_range(8):
        weight = (fx if k % 2 else 1 - fx) * (fy if k // 2 % 2 else 1 - fy) * (fz if k // 4 else 1 - fz)
        e = 2 * (first + corner_entry(ix + k % 2, iy + k // 2 % 2, iz + k // 4, resolution, entries, 0 * ix))
        a += weight * tl.load(table + e, mask=here, other=0.0).to(tl.float32)
        b += weight * tl.load(table + e + 1, mask=here, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _render(camera, occupancy, prior, scales, levels, table, warp, w1a, w1b, b1, w2, b2, w3, b3, colour, opacity,
            width, height, across, cells, warp_unit, warp_scale, warp_points, warp_entries, step_length, optical_step, stop, LEVELS: tl.constexpr, PADDED: tl.constexpr, HIDDEN: tl.constexpr, TILE: tl.constexpr):
    ray = tl.arange(0, TILE * TILE)
    column = (tl.program_id(0) % across) * TILE + ray % TILE
    row = (tl.program_id(0) // across) * TILE + ray // TILE
    inside = (column < width) & (row < height)
    u, v = column.to(tl.float32) + 0.5, row.to(tl.float32) + 0.5
    # camera: origin (3), extent (3), matrix (3,3) from pixels to world-length directions
    ox, oy, oz = tl.load(camera) + u * 0, tl.load(camera + 1) + u * 0, tl.load(camera + 2) + u * 0
    dx = tl.load(camera + 6) * u + tl.load(camera + 7) * v + tl.load(camera + 8)
    dy = tl.load(camera + 9) * u + tl.load(camera + 10) * v + tl.load(camera + 11)
    dz = tl.load(camera + 12) * u + tl.load(camera + 13) * v + tl.load(camera + 14)
    step = step_length / tl.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / tl.load(camera + 3), dy / tl.load(camera + 4), dz / tl.load(camera + 5)
    near, far = clip_axis(u * 0, u * 0 + 1e30, ox, dx)
    near, far = clip_axis(near, far, oy, dy)
    near, far = clip_axis(near, far, oz, dz)
    t = near + 0.5 * step

    level, unit = tl.arange(0, PADDED), tl.arange(0, HIDDEN)
    real = level < LEVELS
    scale = tl.load(scales + level, mask=real, other=0.0)[None, :]
    resolution, entries = tl.load(levels + 4 * level, mask=real, other=1)[None, :], tl.load(levels + 4 * level + 1, mask=real, other=8)[None, :]
    hashed, base = tl.load(levels + 4 * level + 2, mask=real, other=0)[None, :], tl.load(levels + 4 * level + 3, mask=real, other=0)[None, :]
    first_a, first_b = tl.load(w1a + level[:, None] * HIDDEN + unit[None, :]), tl.load(w1b + level[:, None] * HIDDEN + unit[None, :])
    second, bias1, bias2 = tl.load(w2 + unit[:, None] * HIDDEN + unit[None, :]), tl.load(b1 + unit)[None, :], tl.load(b2 + unit)[None, :]
    last0, last1 = tl.load(w3 + unit)[None, :], tl.load(w3 + HIDDEN + unit)[None, :]
    last2, last3 = tl.load(w3 + 2 * HIDDEN + unit)[None, :], tl.load(w3 + 3 * HIDDEN + unit)[None, :]

    light = u * 0 + 1.0
    red, green, blue = u * 0, u * 0, u * 0
    going = inside & (t < far)
    while tl.max(going.to(tl.int32), 0) > 0:
        seek, met = going, going & (t < 0) & (t > 0)
        while tl.max(seek.to(tl.int32), 0) > 0:
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            a, b, c = (x * cells).to(tl.int32), (y * cells).to(tl.int32), (z * cells).to(tl.int32)
            found = seek & (a >= 0) & (b >= 0) & (c >= 0) & (a < cells) & (b < cells) & (c < cells)
            found = found & (tl.load(occupancy + (a * cells + b) * cells + c, mask=found, other=0) != 0)
            met = met | found
            seek = seek & (found == 0)
            t = tl.where(seek, t + step, t)
            seek = seek & (t < far)
        x = tl.minimum(tl.maximum(ox + t * dx, 0.0), 1.0)
        y = tl.minimum(tl.maximum(oy + t * dy, 0.0), 1.0)
        z = tl.minimum(tl.maximum(oz + t * dz, 0.0), 1.0)

        shift_x, shift_y = _pair_at(warp, 0, x, y, z, met, warp_scale, warp_points, warp_entries)
        shift_z, _ = _pair_at(warp, warp_entries, x, y, z, met, warp_scale, warp_points, warp_entries)
        bias = _prior_at(prior, x, y, z, met, cells)
        x = tl.minimum(tl.maximum(x + warp_unit * shift_x, 0.0), 1.0)
        y = tl.minimum(tl.maximum(y + warp_unit * shift_y, 0.0), 1.0)
        z = tl.minimum(tl.maximum(z + warp_unit * shift_z, 0.0), 1.0)
        px, py, pz = x[:, None] * scale + 0.5, y[:, None] * scale + 0.5, z[:, None] * scale + 0.5
        ix, iy, iz = px.to(tl.int32), py.to(tl.int32), pz.to(tl.int32)
        fx, fy, fz = px - ix.to(tl.float32), py - iy.to(tl.float32), pz - iz.to(tl.float32)
        wanted = met[:, None] & real[None, :]
        even, odd = px * 0, px * 0
        for k in tl.static_range(8):
            weight = (fx if k % 2 else 1 - fx) * (fy if k // 2 % 2 else 1 - fy) * (fz if k // 4 else 1 - fz)
            e = 2 * (base + corner_entry(ix + k % 2, iy + k // 2 % 2, iz + k // 4, resolution, entries, hashed))
            even += weight * tl.load(table + e, mask=wanted, other=0.0).to(tl.float32)
            odd += weight * tl.load(table + e + 1, mask=wanted, other=0.0).to(tl.float32)
        hidden = tl.maximum(tl.dot(even, first_a) + tl.dot(odd, first_b) + bias1, 0.0)
        hidden = tl.maximum(tl.dot(hidden, second) + bias2, 0.0)
        log_density = tl.sum(hidden * last0, 1) + tl.load(b3) + bias
        density = tl.exp(tl.minimum(tl.maximum(log_density, -8.0), 8.0))
        keep = tl.where(met, tl.exp(-density * optical_step), 1.0)
        w = light * (1 - keep)
        light *= keep
        red += w / (1 + tl.exp(-(tl.sum(hidden * last1, 1) + tl.load(b3 + 1))))
        green += w / (1 + tl.exp(-(tl.sum(hidden * last2, 1) + tl.load(b3 + 2))))
        blue += w / (1 + tl.exp(-(tl.sum(hidden * last3, 1) + tl.load(b3 + 3))))
        t += step
        going = met & (light >= stop) & (t < far)
    at = row * width + column
    tl.store(colour + 3 * at, red, mask=inside)
    tl.store(colour + 3 * at + 1, green, mask=inside)
    tl.store(colour + 3 * at + 2, blue, mask=inside)
    tl.store(opacity + at, 1 - light, mask=inside)


def pack_layers(first: torch.nn.Linear, second: torch.nn.Linear, last: torch.nn.Linear, channels: int) -> tuple[torch.Tensor, ...]:
    """The network as the kernel wants it: padded with zeros to powers of two ≥ 16, inputs first, even and odd features apart.

    Of the first layer's inputs only the first `channels` are those of the encoding; the others belong into its bias, the third of what is returned.
    """
    inputs, hidden = channels // 2, first.out_features
    padded, width = max(16, triton.next_power_of_2(inputs)), max(16, triton.next_power_of_2(hidden))
    pad = lambda t, shape: torch.nn.functional.pad(t.detach().float(), [n for size, wanted in zip(reversed(t.shape), reversed(shape)) for n in (0, wanted - size)]).contiguous()  # noqa: E731
    w1 = first.weight.detach()[:, :channels].T
    return (pad(w1[0::2], (padded, width)), pad(w1[1::2], (padded, width)), pad(first.bias, (width,)), pad(second.weight.T, (width, width)), pad(second.bias, (width,)),
            pad(last.weight, (4, width)), last.bias.detach().float().contiguous())


def render_head(width: int, height: int, origin: np.ndarray, matrix: np.ndarray, volume: Volume, occupancy: torch.Tensor, prior: torch.Tensor, layout: HashGridLayout,
                table: torch.Tensor, warp_layout: HashGridLayout, warp: torch.Tensor, layers: tuple[torch.Tensor, ...], stop: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The head layer: premultiplied colour (H,W,3) and opacity (H,W), float32 on the device of the table.

    origin (3,): camera in head space, mm; matrix (3,3) turns (u, v, 1) px into directions in head axes; occupancy (G,G,G) uint8 and
    prior (G,G,G) float32 on the device; table (size,) of any float type, warp (size,) that of the warp; layers: of `pack_layers`.
    """
    extent = volume.upper - volume.lower
    camera = torch.from_numpy(np.concatenate([(origin - volume.lower) / extent, extent, matrix.ravel()]).astype(np.float32)).to(table.device)
    colour, opacity = torch.empty(height, width, 3, device=table.device), torch.empty(height, width, device=table.device)
    across = triton.cdiv(width, TILE)
    _render[(across * triton.cdiv(height, TILE),)](
        camera, occupancy, prior, *level_tables(layout, table.device), table.contiguous(), warp.contiguous(), *layers, colour, opacity, width, height, across, len(prior),
        WARP_UNIT, float(warp_layout.scales[0]), int(warp_layout.resolutions[0]), int(warp_layout.entries[0]),
        float(volume.step), float(volume.optical_step), float(stop), layout.levels, layers[0].shape[0], layers[0].shape[1], TILE)
    return colour, opacity
