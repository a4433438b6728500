"""The head's network on CPU threads with its gradients, 64 samples at a time: what `field.HeadField.forward` computes, in float32.

A thread keeps a block's activations in the first cache level; the backward pass computes them again rather than reading them back.
Weights' gradients are summed by a fixed number of runs of blocks, so they do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
import torch

from thnerf.dense import BLOCK, LANES, dense, outer
from thnerf.encodings.numba_vectors import look_up_centred

_RUNS = 8
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
_LOWEST, _HIGHEST = np.float32(-8), np.float32(8)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def exponential(x, bits, power):
    """e^x in place for a row of BLOCK floats: 2^round(y) through the exponent bits, the rest by Taylor's series (error 1e-7).

    bits (BLOCK,) int32 and power, the same memory as float32, are scratch.
    """
    for i in range(BLOCK):
        y = min(max(x[i] * np.float32(1.4426950408889634), np.float32(-126)), np.float32(126))
        whole = np.float32(math.floor(y + _HALF))
        f = (y - whole) * np.float32(0.6931471805599453)
        bits[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        x[i] = _ONE + f * (_ONE + f * (_HALF + f * (np.float32(1 / 6) + f * (np.float32(1 / 24) + f * (np.float32(1 / 120) + f * np.float32(1 / 720))))))
    for i in range(BLOCK):
        x[i] *= power[i]


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def prior_plain(position, grid, count, out):
    """Trilinear look-up of a cubic grid between cell centres at unit positions (3,BLOCK)."""
    G = grid.shape[0]
    top = np.float32(G - 1)
    for i in range(count):
        x, y, z = position[0, i] * G - _HALF, position[1, i] * G - _HALF, position[2, i] * G - _HALF
        x, y, z = min(max(x, _ZERO), top), min(max(y, _ZERO), top), min(max(z, _ZERO), top)
        a, b, c = min(int(x), G - 2), min(int(y), G - 2), min(int(z), G - 2)
        fx, fy, fz = np.float32(x - a), np.float32(y - b), np.float32(z - c)
        low = (grid[a, b, c] * (_ONE - fx) + grid[a + 1, b, c] * fx) * (_ONE - fy) + (grid[a, b + 1, c] * (_ONE - fx) + grid[a + 1, b + 1, c] * fx) * fy
        high = (grid[a, b, c + 1] * (_ONE - fx) + grid[a + 1, b, c + 1] * fx) * (_ONE - fy) + (grid[a, b + 1, c + 1] * (_ONE - fx) + grid[a + 1, b + 1, c + 1] * fx) * fy
        out[i] = low * (_ONE - fz) + high * fz


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def prior_at(position, grid, out):
    """As `prior_plain`, for the whole block."""
    G = np.int32(grid.shape[0])
    for at in range(0, BLOCK, LANES):  # the last axis is the one whose neighbours lie side by side
        look_up_centred(position[2], position[1], position[0], at, np.int32(0), np.float32(G), G, np.int32(G * G), np.int32(G * G * G), grid.reshape(-1), out)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def prior_slope(position, grid, count, out):
    """Gradient (3,BLOCK) of `prior_plain` by the unit position, zero where that is held at the border."""
    G = grid.shape[0]
    top = np.float32(G - 1)
    size = np.float32(G)
    for i in range(count):
        x, y, z = position[0, i] * G - _HALF, position[1, i] * G - _HALF, position[2, i] * G - _HALF
        sx, sy, sz = size if _ZERO < x < top else _ZERO, size if _ZERO < y < top else _ZERO, size if _ZERO < z < top else _ZERO
        x, y, z = min(max(x, _ZERO), top), min(max(y, _ZERO), top), min(max(z, _ZERO), top)
        a, b, c = min(int(x), G - 2), min(int(y), G - 2), min(int(z), G - 2)
        fx, fy, fz = np.float32(x - a), np.float32(y - b), np.float32(z - c)
        gx, gy, gz = _ONE - fx, _ONE - fy, _ONE - fz
        p000, p001, p010, p011 = grid[a, b, c], grid[a, b, c + 1], grid[a, b + 1, c], grid[a, b + 1, c + 1]
        p100, p101, p110, p111 = grid[a + 1, b, c], grid[a + 1, b, c + 1], grid[a + 1, b + 1, c], grid[a + 1, b + 1, c + 1]
        out[0, i] = sx * (((p100 - p000) * gy + (p110 - p010) * fy) * gz + ((p101 - p001) * gy + (p111 - p011) * fy) * fz)
        out[1, i] = sy * (((p010 - p000) * gx + (p110 - p100) * fx) * gz + ((p011 - p001) * gx + (p111 - p101) * fx) * fz)
        out[2, i] = sz * (((p001 - p000) * gx + (p101 - p100) * fx) * gy + ((p011 - p010) * gx + (p111 - p110) * fx) * fy)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def radiance(layers, features, bias, hidden, second, y, bits, power):
    """features (C,BLOCK), bias (BLOCK,) of the log-density → y (4,BLOCK): density and colours; hidden and second keep the activations."""
    w1, b1, w2, b2, w3, b3 = layers
    dense(w1, b1, features, hidden, True)
    dense(w2, b2, hidden, second, True)
    dense(w3, b3, second, y, False)
    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
    for i in range(BLOCK):
        y0[i], y1[i], y2[i], y3[i] = min(max(y0[i] + bias[i], _LOWEST), _HIGHEST), -y1[i], -y2[i], -y3[i]
    for k in range(4):
        exponential(y[k], bits, power)
    for i in range(BLOCK):
        y1[i], y2[i], y3[i] = _ONE / (_ONE + y1[i]), _ONE / (_ONE + y2[i]), _ONE / (_ONE + y3[i])


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _load(x, positions, start, count, planes, position):
    """A block of features (M,C) and positions (M,3) as planes, the rest zero."""
    for i in range(count):
        for k in range(x.shape[1]):
            planes[k, i] = x[start + i, k]
        for k in range(3):
            position[k, i] = positions[start + i, k]
    for i in range(count, BLOCK):
        planes[:, i] = _ZERO
        position[:, i] = _ZERO


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def forward(x, positions, prior, layers, density, colour):
    """x (M,C), positions (M,3) → density (M,), colour (M,3)."""
    count, blocks = x.shape[0], (x.shape[0] + BLOCK - 1) // BLOCK
    hidden_width = len(layers[1])
    for run in nb.prange(_RUNS):
        features, position, bias = np.empty((x.shape[1], BLOCK), np.float32), np.empty((3, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
        hidden, second, y = np.empty((hidden_width, BLOCK), np.float32), np.empty((hidden_width, BLOCK), np.float32), np.empty((4, BLOCK), np.float32)
        bits = np.empty(BLOCK, np.int32)
        power = bits.view(np.float32)
        for block in range(blocks * run // _RUNS, blocks * (run + 1) // _RUNS):
            start = block * BLOCK
            n = min(BLOCK, count - start)
            _load(x, positions, start, n, features, position)
            prior_at(position, prior, bias)
            radiance(layers, features, bias, hidden, second, y, bits, power)
            for i in range(n):
                density[start + i] = y[0, i]
                for k in range(3):
                    colour[start + i, k] = y[k + 1, i]


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _where_positive(values, gradient):
    """Zero the gradient (W,BLOCK) where a rectified value is zero, in place."""
    for j in range(values.shape[0]):
        value, g = values[j], gradient[j]
        for i in range(BLOCK):
            g[i] = g[i] if value[i] > _ZERO else _ZERO


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _sum_rows(gradient, out):
    for j in range(gradient.shape[0]):
        total, g = _ZERO, gradient[j]
        for i in range(BLOCK):
            total += g[i]
        out[j] += total


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def backward(g_density, g_colour, x, positions, prior, layers, turned, g_x, g_positions, g_weights, g_biases):
    """Gradients: g_x (M,C) of the features; g_positions (M,3) through the prior, or (0,3): not wanted; g_weights: (runs, rows, columns, LANES) for
    each of three weights, g_biases (runs, 3, rows).

    turned: the weights transposed. The caller adds up runs and lanes.
    """
    count, channels, blocks = x.shape[0], x.shape[1], (x.shape[0] + BLOCK - 1) // BLOCK
    w1t, w2t, w3t = turned
    width = len(layers[1])
    nothing = np.zeros(max(width, channels), np.float32)
    for run in nb.prange(_RUNS):
        features, position, bias = np.empty((channels, BLOCK), np.float32), np.empty((3, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
        hidden, second, y = np.empty((width, BLOCK), np.float32), np.empty((width, BLOCK), np.float32), np.empty((4, BLOCK), np.float32)
        gy, g2, g1, g0 = np.empty((4, BLOCK), np.float32), np.empty((width, BLOCK), np.float32), np.empty((width, BLOCK), np.float32), np.empty((channels, BLOCK), np.float32)
        bits = np.empty(BLOCK, np.int32)
        power = bits.view(np.float32)
        sums1, sums2, sums3 = g_weights[0][run], g_weights[1][run], g_weights[2][run]
        lowest, highest = np.float32(math.exp(-7.9999)), np.float32(math.exp(7.9999))
        for block in range(blocks * run // _RUNS, blocks * (run + 1) // _RUNS):
            start = block * BLOCK
            n = min(BLOCK, count - start)
            _load(x, positions, start, n, features, position)
            prior_at(position, prior, bias)
            radiance(layers, features, bias, hidden, second, y, bits, power)
            gy[:] = _ZERO
            for i in range(n):
                value = y[0, i]
                gy[0, i] = g_density[start + i] * value if lowest < value < highest else _ZERO
                for k in range(3):
                    value = y[k + 1, i]
                    gy[k + 1, i] = g_colour[start + i, k] * value * (_ONE - value)
            dense(w3t, nothing, gy, g2, False)
            _where_positive(second, g2)
            dense(w2t, nothing, g2, g1, False)
            _where_positive(hidden, g1)
            dense(w1t, nothing, g1, g0, False)
            outer(gy, second, sums3)
            outer(g2, hidden, sums2)
            outer(g1, features, sums1)
            _sum_rows(g1, g_biases[run, 0])
            _sum_rows(g2, g_biases[run, 1])
            _sum_rows(gy, g_biases[run, 2])
            for i in range(n):
                for k in range(channels):
                    g_x[start + i, k] = g0[k, i]
            if len(g_positions) > 0:
                prior_slope(position, prior, n, position)
                for i in range(n):
                    for k in range(3):
                        g_positions[start + i, k] = gy[0, i] * position[k, i]


class _Radiance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, positions: torch.Tensor, prior: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, p, g = (t.detach().float().contiguous().numpy() for t in (features, positions, prior))
        arrays = tuple(t.detach().float().contiguous().numpy() for t in layers)
        density, colour = np.empty(len(x), np.float32), np.empty((len(x), 3), np.float32)
        forward(x, p, g, arrays, density, colour)
        ctx.saved = x, p, g, arrays
        return torch.from_numpy(density), torch.from_numpy(colour)

    @staticmethod
    def backward(ctx: Any, g_density: torch.Tensor, g_colour: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, p, g, arrays = ctx.saved
        weights = arrays[0::2]
        sums = tuple(np.zeros((_RUNS, *w.shape, LANES), np.float32) for w in weights)
        biases, g_x = np.zeros((_RUNS, 3, max(len(w) for w in weights)), np.float32), np.empty_like(x)
        g_positions = np.empty((len(x) if ctx.needs_input_grad[1] else 0, 3), np.float32)
        turned = tuple(np.ascontiguousarray(w.T) for w in weights)
        backward(g_density.contiguous().numpy(), g_colour.contiguous().numpy(), x, p, g, arrays, turned, g_x, g_positions, sums, biases)
        out = []
        for layer, (weight, total) in enumerate(zip(weights, sums)):
            out += [torch.from_numpy(total.sum((0, 3))), torch.from_numpy(biases[:, layer, : len(weight)].sum(0))]
        return torch.from_numpy(g_x), torch.from_numpy(g_positions) if ctx.needs_input_grad[1] else None, None, *out


def head_radiance(head: torch.nn.Module, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`HeadField.forward` on CPU threads: features (M,C), positions (M,3) in the unit cube → density (M,), colour (M,3), float32.

    Differentiable in the features, in the positions (through the prior) and in the weights of `head` (a `field.HeadField`, its width and C multiples of 4).
    """
    layers = [p for layer in (head.first, head.second, head.last) for p in (layer.weight, layer.bias)]
    return _Radiance.apply(features, positions, head.prior, *layers)
