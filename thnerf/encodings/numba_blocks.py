"""The hash grid on CPU threads with the vector functions of `numba_vectors`: what the plain loops of `numba_backend` compute.

A thread takes a chunk of samples through all levels, so that a level's table stays in the second cache level meanwhile; the table
gradient runs parallel over levels instead, which needs no atomics. Entries are int32: all tables together hold fewer than 2^31.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from thnerf.encodings.layout import PRIMES
from thnerf.encodings.numba_vectors import LANES, make, make_scatter

CHUNK = 2048
_TINY = 1e-11
_P1, _P2 = (np.int32(np.uint32(p).astype(np.int32)) for p in PRIMES[1:])
_look_flat, _slope_flat, _corners_flat = make(2, False)
_look_flat_hashed, _slope_flat_hashed, _corners_flat_hashed = make(2, True)
_look, _slope, _corners = make(3, False)
_look_hashed, _slope_hashed, _corners_hashed = make(3, True)
_scatter_flat, _scatter = make_scatter(4), make_scatter(8)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def look_up(volume, hashed, count, x, y, z, first, scale, resolution, size, pairs, a, b):
    """Features a, b of `count` samples (rounded up to 16) of one level; planes as in `numba_vectors`."""
    r, n = np.int32(resolution), np.int32(size)
    if volume and hashed:
        for at in range(0, count, LANES):
            _look_hashed(x, y, z, at, first, scale, _P1, _P2, n, pairs, a, b)
    elif volume:
        for at in range(0, count, LANES):
            _look(x, y, z, at, first, scale, r, np.int32(r * r), n, pairs, a, b)
    elif hashed:
        for at in range(0, count, LANES):
            _look_flat_hashed(x, y, z, at, first, scale, _P1, _P2, n, pairs, a, b)
    else:
        for at in range(0, count, LANES):
            _look_flat(x, y, z, at, first, scale, r, np.int32(r * r), n, pairs, a, b)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _slopes(volume, hashed, count, x, y, z, first, scale, resolution, size, pairs, ga, gb, sx, sy, sz):
    r, n = np.int32(resolution), np.int32(size)
    if volume and hashed:
        for at in range(0, count, LANES):
            _slope_hashed(x, y, z, at, first, scale, _P1, _P2, n, pairs, ga, gb, sx, sy, sz)
    elif volume:
        for at in range(0, count, LANES):
            _slope(x, y, z, at, first, scale, r, np.int32(r * r), n, pairs, ga, gb, sx, sy, sz)
    elif hashed:
        for at in range(0, count, LANES):
            _slope_flat_hashed(x, y, z, at, first, scale, _P1, _P2, n, pairs, ga, gb, sx, sy, sz)
    else:
        for at in range(0, count, LANES):
            _slope_flat(x, y, z, at, first, scale, r, np.int32(r * r), n, pairs, ga, gb, sx, sy, sz)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _find_corners(volume, hashed, at, x, y, z, first, scale, resolution, size, entry, weight):
    r, n = np.int32(resolution), np.int32(size)
    if volume and hashed:
        _corners_hashed(x, y, z, at, first, scale, _P1, _P2, n, entry, weight)
    elif volume:
        _corners(x, y, z, at, first, scale, r, np.int32(r * r), n, entry, weight)
    elif hashed:
        _corners_flat_hashed(x, y, z, at, first, scale, _P1, _P2, n, entry, weight)
    else:
        _corners_flat(x, y, z, at, first, scale, r, np.int32(r * r), n, entry, weight)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def _planes(x, which, start, count, total, px, py, pz, table):
    """Copy positions (kept inside the box) and the first entries of their tables into planes."""
    for i in range(count):
        px[i], py[i] = min(max(x[start + i, 0], np.float32(0)), np.float32(1)), min(max(x[start + i, 1], np.float32(0)), np.float32(1))
        table[i] = which[start + i] * total
    if x.shape[1] == 3:
        for i in range(count):
            pz[i] = min(max(x[start + i, 2], np.float32(0)), np.float32(1))


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def forward(x, which, pairs, total, scales, resolutions, entries, hashed, offsets, out):
    """x (N,D), which (N,) int32, pairs (B·total,2) → out (N, 2·levels)."""
    n, volume = x.shape[0], x.shape[1] == 3
    for chunk in nb.prange((n + CHUNK - 1) // CHUNK):
        start = chunk * CHUNK
        count = min(CHUNK, n - start)
        px, py, pz = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32)
        table, first = np.zeros(CHUNK, np.int32), np.zeros(CHUNK, np.int32)
        a, b = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
        _planes(x, which, start, count, total, px, py, pz, table)
        for level in range(len(scales)):
            base = np.int32(offsets[level])
            for i in range(CHUNK):
                first[i] = table[i] + base
            look_up(volume, hashed[level], count, px, py, pz, first, scales[level], resolutions[level], entries[level], pairs, a, b)
            for i in range(count):
                out[start + i, 2 * level] = a[i]
                out[start + i, 2 * level + 1] = b[i]


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def backward_tables(x, which, gradient, total, scales, resolutions, entries, hashed, offsets, pairs):
    """Add the gradient of the tables, pairs (B·total,2), for the features' gradient (N, 2·levels)."""
    n, volume = x.shape[0], x.shape[1] == 3
    for level in nb.prange(len(scales)):
        px, py, pz, first = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.int32)
        entry, weight = np.empty(8 * LANES, np.int32), np.empty(8 * LANES, np.float32)
        base = np.int32(offsets[level])
        for start in range(0, n, CHUNK):
            count = min(CHUNK, n - start)
            _planes(x, which, start, count, total, px, py, pz, first)
            for i in range(CHUNK):
                first[i] += base
            for at in range(0, count, LANES):
                _find_corners(volume, hashed[level], at, px, py, pz, first, scales[level], resolutions[level], entries[level], entry, weight)
                for i in range(min(LANES, count - at)):
                    ga, gb = gradient[start + at + i, 2 * level], gradient[start + at + i, 2 * level + 1]
                    if abs(ga) + abs(gb) > _TINY:
                        if volume:
                            _scatter(pairs, entry, weight, i, ga, gb)
                        else:
                            _scatter_flat(pairs, entry, weight, i, ga, gb)


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def backward_positions(x, which, gradient, pairs, total, scales, resolutions, entries, hashed, offsets, out):
    """out (N,D): the gradient of the positions."""
    n, volume = x.shape[0], x.shape[1] == 3
    for chunk in nb.prange((n + CHUNK - 1) // CHUNK):
        start = chunk * CHUNK
        count = min(CHUNK, n - start)
        px, py, pz = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32)
        sx, sy, sz = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32)
        ga, gb = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32)
        table, first = np.zeros(CHUNK, np.int32), np.zeros(CHUNK, np.int32)
        _planes(x, which, start, count, total, px, py, pz, table)
        for level in range(len(scales)):
            base = np.int32(offsets[level])
            for i in range(CHUNK):
                first[i] = table[i] + base
            for i in range(count):
                ga[i], gb[i] = gradient[start + i, 2 * level], gradient[start + i, 2 * level + 1]
            _slopes(volume, hashed[level], count, px, py, pz, first, scales[level], resolutions[level], entries[level], pairs, ga, gb, sx, sy, sz)
        for i in range(count):
            out[start + i, 0], out[start + i, 1] = sx[i], sy[i]
            if volume:
                out[start + i, 2] = sz[i]
