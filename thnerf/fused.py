"""Rendering in one pass on CPU threads: march, encode, network and compositing of 64 samples at a time, in tiles of 32×32 pixels.

Everything a block of samples needs stays in the first cache level; loops run over the 64 samples so that the compiler can
use vector instructions. A ray stops when less than `stop` of its light is left. The readable renderer
(`avatar.Avatar.render`) defines what these kernels compute.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from render.march import clip_ray
from thnerf.dense import BLOCK, LANES, dense
from thnerf.encodings.numba_blocks import look_up
from thnerf.encodings.numba_vectors import look_up_three
from thnerf.field import WARP_UNIT
from thnerf.network import exponential, prior_at, radiance

TILE = 32
OUTLINE = np.float32(0.05)  # a ray at the outline loses at least this much of its light, and keeps as much
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _encode(volume, x, y, z, table, grid, features):
    """Hash features (2·levels, BLOCK) of unit positions x, y, z (BLOCK,), z only in a volume; table (entries,2), or (entries,) uint32 of two float16."""
    scales, resolutions, entries, hashed, offsets = grid
    for level in range(len(scales)):
        look_up(volume, hashed[level], BLOCK, x, y, z, np.int32(offsets[level]), scales[level], resolutions[level], entries[level], table, features[2 * level], features[2 * level + 1])


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _warp(position, warp, scale, points, moved):
    """Carry unit positions (3,BLOCK) back to the resting head, in place: `Avatar.warp`. warp (entries,) uint64: four float16 x, y, z, 0 a point. moved is scratch."""
    unit, r = np.float32(WARP_UNIT), np.int32(points)
    for at in range(0, BLOCK, LANES):
        look_up_three(position[0], position[1], position[2], at, np.int32(0), scale, r, np.int32(r * r), np.int32(len(warp)), warp, moved[0], moved[1], moved[2])
    for k in range(3):
        here, shift = position[k], moved[k]
        for i in range(BLOCK):
            here[i] = min(max(here[i] + unit * shift[i], _ZERO), _ONE)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _gather(queue, head, count, time, end, step, origin, direction, occupancy, light, stop, position, ray):
    """Take rays off the queue (a ring from head on, `count` long) and move them on to their next occupied sample, until BLOCK are found or none is left.

    Returns the rest of the queue, head and count, and how many samples were found.
    """
    G = occupancy.shape[0]
    n = 0
    while count > 0 and n < BLOCK:
        i = queue[head]
        head, count = (head + 1) % len(queue), count - 1
        if light[i] >= stop:
            t, dx, dy, dz = time[i], direction[i, 0], direction[i, 1], direction[i, 2]
            while t < end[i]:
                x, y, z = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
                a, b, c = int(x * G), int(y * G), int(z * G)
                if 0 <= a < G and 0 <= b < G and 0 <= c < G and occupancy[a, b, c]:
                    position[0, n], position[1, n], position[2, n] = min(max(x, _ZERO), _ONE), min(max(y, _ZERO), _ONE), min(max(z, _ZERO), _ONE)
                    ray[n] = i
                    n += 1
                    break
                t += step[i]
            time[i] = t + step[i]
    return head, count, n


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _begin_again(queue, parts, rays, outline, origin, direction, time, end, step, light, shade):
    """Put rays at the outline, which met something but not enough, back to their beginning with a step `parts` times as short. Returns their number."""
    count = 0
    for i in range(rays):
        if outline < light[i] < _ONE - outline:
            near, _ = clip_ray(origin[0], origin[1], origin[2], direction[i, 0], direction[i, 1], direction[i, 2])
            step[i] /= parts
            time[i], light[i] = near + _HALF * step[i], _ONE
            shade[i] = _ZERO
            queue[count] = i
            count += 1
    return count


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _tile(u0, v0, width, height, origin, matrix, extent, step_length, optical_step, parts, stop, occupancy, prior, grid, table, warp, warp_grid, layers, colour, opacity):
    """Render one tile; see `render_heads`."""
    width1, width2 = len(layers[1]), len(layers[3])
    rays = TILE * TILE
    direction, light, shade = np.empty((rays, 3), np.float32), np.ones(rays, np.float32), np.zeros((rays, 3), np.float32)
    time, end, step = np.empty(rays, np.float32), np.empty(rays, np.float32), np.empty(rays, np.float32)
    queue, head, count = np.empty(rays, np.int32), 0, 0
    for i in range(rays):
        u, v = np.float32(u0 + i % TILE) + _HALF, np.float32(v0 + i // TILE) + _HALF
        length = _ZERO
        for k in range(3):
            d = matrix[k, 0] * u + matrix[k, 1] * v + matrix[k, 2]
            length += d * d
            direction[i, k] = d / extent[k]
        step[i] = step_length / np.float32(math.sqrt(length))
        near, far = clip_ray(origin[0], origin[1], origin[2], direction[i, 0], direction[i, 1], direction[i, 2])
        if far > near and u < width and v < height:
            time[i], end[i] = near + _HALF * step[i], far
            queue[count] = i
            count += 1
    features, hidden, second, y = np.empty((2 * len(grid[0]), BLOCK), np.float32), np.empty((width1, BLOCK), np.float32), np.empty((width2, BLOCK), np.float32), np.empty((4, BLOCK), np.float32)
    position, bias, ray = np.zeros((3, BLOCK), np.float32), np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    bits, moved = np.empty(BLOCK, np.int32), np.empty((3, BLOCK), np.float32)
    power = bits.view(np.float32)
    for again in range(2 if parts > 1 else 1):
        if again == 1:
            optical_step, head, count = optical_step / parts, 0, _begin_again(queue, parts, rays, OUTLINE, origin, direction, time, end, step, light, shade)
        while count > 0:
            head, count, n = _gather(queue, head, count, time, end, step, origin, direction, occupancy, light, stop, position, ray)
            if n == 0:
                break
            prior_at(position, prior, bias)
            _warp(position, warp, warp_grid[0], warp_grid[1], moved)
            _encode(True, position[0], position[1], position[2], table, grid, features)
            radiance(layers, features, bias, hidden, second, y, bits, power)
            y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
            for i in range(BLOCK):
                y0[i] = -y0[i] * optical_step
            exponential(y0, bits, power)
            for i in range(n):
                r = ray[i]
                w = light[r] * (_ONE - y0[i])
                light[r] *= y0[i]
                shade[r, 0] += w * y1[i]
                shade[r, 1] += w * y2[i]
                shade[r, 2] += w * y3[i]
                queue[(head + count) % rays] = r
                count += 1
    for i in range(rays):
        u, v = u0 + i % TILE, v0 + i // TILE
        if u < width and v < height:
            opacity[v, u] = _ONE - light[i]
            for k in range(3):
                colour[v, u, k] = shade[i, k]


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def render_heads(order, origins, matrices, which, tables, warps, biases, extent, step_length, optical_step, parts, stop, occupancy, prior, grid, warp_grid, layers, colour, opacity):
    """Render some views of the head layer: colour (n,H,W,3) premultiplied, opacity (n,H,W).

    order: tiles in the order they are begun. origins (n,3): camera in the unit cube; matrices (n,3,3) turn (u, v, 1) px into
    world-length directions in head axes; which (n,): the table and warp of a view; biases (n,hidden) of the first layer. tables (m,entries) uint32: two float16 each; warps (m,points) uint64: see
    `_warp`. extent (3,) of the box, mm. parts: rays at the outline are sampled again with a step as many times as short (1: not). grid: scales, resolutions, entries, hashed, offsets;
    warp_grid its scale and points; layers: w1, w2, b2, w3, b3, each weight (outputs, inputs).
    """
    views, height, width = opacity.shape
    across = (width + TILE - 1) // TILE
    w1, w2, b2, w3, b3 = layers
    for job in nb.prange(views * len(order)):
        v, k = job // len(order), order[job % len(order)]
        _tile((k % across) * TILE, (k // across) * TILE, width, height, origins[v], matrices[v], extent, step_length, optical_step, parts, stop,
              occupancy, prior, grid, tables[which[v]], warps[which[v]], warp_grid, (w1, biases[v], w2, b2, w3, b3), colour[v], opacity[v])


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def render_torso(first_row, by_column, by_row, warp, affine, margin, reach, grid, table, layers, colour, opacity):
    """The torso layer of rows from first_row on: colour (H,W,3) and opacity (H,W).

    by_column (W,hidden) and by_row (H,hidden): what column and row add to the hidden layer of the warp (its bias included);
    warp: its last weight (2,hidden) and bias (2,). affine (2,3) on (u − ½, v − ½, 1). layers: w1, b1, w2, b2.
    """
    w1, b1, w2, b2 = layers
    last, last_bias = warp
    height, width = opacity.shape
    for v in nb.prange(first_row, height):
        position, features = np.zeros((2, BLOCK), np.float32), np.empty((2 * len(grid[0]), BLOCK), np.float32)
        hidden, y = np.empty((len(b1), BLOCK), np.float32), np.empty((4, BLOCK), np.float32)
        bits = np.empty(BLOCK, np.int32)
        power = bits.view(np.float32)
        cv = np.float32((v + 0.5) / height - 0.5)
        for u0 in range(0, width, BLOCK):
            n = min(BLOCK, width - u0)
            for i in range(n):
                cu = np.float32((u0 + i + 0.5) / width - 0.5)
                x, z = last_bias[0], last_bias[1]
                for j in range(by_row.shape[1]):
                    h = max(by_row[v, j] + by_column[u0 + i, j], _ZERO)
                    x += h * last[0, j]
                    z += h * last[1, j]
                x = cu + _HALF + reach * x + affine[0, 0] * cu + affine[0, 1] * cv + affine[0, 2]
                z = cv + _HALF + reach * z + affine[1, 0] * cu + affine[1, 1] * cv + affine[1, 2]
                position[0, i] = min(max(margin + (_ONE - 2 * margin) * x, _ZERO), _ONE)
                position[1, i] = min(max(margin + (_ONE - 2 * margin) * z, _ZERO), _ONE)
            _encode(False, position[0], position[1], position[1], table, grid, features)
            dense(w1, b1, features, hidden, True)
            dense(w2, b2, hidden, y, False)
            for k in range(4):
                row = y[k]
                for i in range(BLOCK):
                    row[i] = -row[i]
                exponential(row, bits, power)
            for i in range(n):
                for k in range(3):
                    colour[v, u0 + i, k] = _ONE / (_ONE + y[k, i])
                opacity[v, u0 + i] = _ONE / (_ONE + y[3, i])


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def lay_under(colour, opacity, shade, cover, first_row):
    """Put a layer, colour shade (H,W,3) and opacity cover (H,W), behind colour (H,W,3), premultiplied, and opacity (H,W), in place, from a row on."""
    for v in nb.prange(first_row, len(opacity)):
        for u in range(opacity.shape[1]):
            behind = (_ONE - opacity[v, u]) * cover[v, u]
            for k in range(3):
                colour[v, u, k] += behind * shade[v, u, k]
            opacity[v, u] += behind


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def lay_over(colour, opacity, plate, out):
    """out (H,W,3) = colour + (1 − opacity) · plate, kept in [0,1]."""
    for v in nb.prange(len(opacity)):
        for u in range(opacity.shape[1]):
            light = _ONE - opacity[v, u]
            for k in range(3):
                out[v, u, k] = min(max(colour[v, u, k] + light * plate[v, u, k], _ZERO), _ONE)
