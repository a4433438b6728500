"""Blended tables for rendering: half the bytes, a row a condition, so that blending them is a sum of rows and the result can be looked up as it lies.

What a frame reads shrinks from what the last cache holds in part to what it holds whole. `BlendedTables.blend` is what this equals, to half precision.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_LANES, _PARTS = 16, 4
_RUN = _LANES * _PARTS
_CHUNK = 128  # runs a thread takes at a time


@intrinsic
def _sum_rows(typing, rows, coefficients, at, out):  # noqa: ANN001, ANN202 - numba's signature
    """out[at : at + 64] = Σ_k coefficients[k] · rows[k, at : at + 64], summed in float32; rows (K,n) and out (n,) uint16 hold float16."""
    if any(a.layout != "C" for a in (rows, coefficients, out)) or (rows.dtype, coefficients.dtype, out.dtype) != (types.uint16, types.float32, types.uint16):
        return None

    def code(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        half, full, index, word = ir.VectorType(ir.HalfType(), _LANES), ir.VectorType(ir.FloatType(), _LANES), ir.IntType(32), ir.IntType(64)
        arrays = [context.make_array(signature.args[k])(context, b, args[k]) for k in (0, 1, 3)]
        count, length = (b.extract_value(arrays[0].shape, k) for k in (0, 1))

        def place(data: ir.Value, start: ir.Value, p: int) -> ir.Value:
            return b.bitcast(b.gep(data, [b.add(start, word(p * _LANES))]), half.as_pointer())

        before, loop, after = b.block, b.append_basic_block("rows"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k, sums = b.phi(word), [b.phi(full) for _ in range(_PARTS)]
        one = b.insert_element(ir.Constant(full, ir.Undefined), b.load(b.gep(arrays[1].data, [k])), index(0))
        c = b.shuffle_vector(one, ir.Constant(full, ir.Undefined), ir.Constant(ir.VectorType(index, _LANES), [0] * _LANES))
        start = b.add(b.mul(k, length), args[2])
        made = [b.fadd(s, b.fmul(c, b.fpext(b.load(place(arrays[0].data, start, p), align=2), full), flags=("fast",)), flags=("fast",)) for p, s in enumerate(sums)]
        following = b.add(k, word(1))
        for phi, first, then in ((k, word(0), following), *((s, ir.Constant(full, [0.0] * _LANES), m) for s, m in zip(sums, made))):
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, after)
        b.position_at_end(after)
        for p, value in enumerate(made):
            b.store(b.fptrunc(value, half), place(arrays[2].data, args[2], p), align=2)
        return context.get_dummy_value()

    return types.void(rows, coefficients, types.int64, out), code


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _blend(rows, coefficients, out):
    runs = rows.shape[1] // _RUN
    for chunk in nb.prange((runs + _CHUNK - 1) // _CHUNK):
        for run in range(chunk * _CHUNK, min(runs, (chunk + 1) * _CHUNK)):
            _sum_rows(rows, coefficients, run * _RUN, out)


class HalfTables:
    """A copy of `BlendedTables.tables` (size, K+1) in half precision on the CPU."""

    def __init__(self, tables: torch.Tensor) -> None:
        self.size = len(tables)
        self._rows = np.zeros((tables.shape[1], -(-self.size // _RUN) * _RUN), np.uint16)
        self._rows[:, : self.size] = tables.T.cpu().half().numpy().view(np.uint16)

    def blend(self, conditions: np.ndarray) -> np.ndarray:
        """Conditions (K,) → table (size,), uint16 that hold float16: view it as pairs (uint32), or as fours (uint64)."""
        out = np.empty(self._rows.shape[1], np.uint16)
        _blend(self._rows, np.concatenate([[1], conditions]).astype(np.float32), out)
        return out[: self.size]

    def nearby(self, conditions: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The table of conditions (K,), and those of each condition moved by its step (K,): (K+1, at least size), uint16."""
        out, pair = np.empty((len(conditions) + 1, self._rows.shape[1]), np.uint16), np.empty((2, self._rows.shape[1]), np.uint16)
        _blend(self._rows, np.concatenate([[1], conditions]).astype(np.float32), out[0])
        pair[0] = out[0]
        for k, step in enumerate(steps):
            pair[1] = self._rows[k + 1]
            _blend(pair, np.array([1, step], np.float32), out[k + 1])
        return out
