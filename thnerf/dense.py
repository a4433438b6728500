"""Products of a small network for 64 samples: as plain loops, and as LLVM vectors that keep their sums in registers.

`dense` is a layer, and with the transposed weight its gradient; `outer` adds up the gradient of a weight. numba turns the plain loops into code three times as slow as the vectors (measured on AVX-512: 52 against 16 ns a sample for the
head's network of 20-32-32-4; tests/benchmarks/bm_train.py shows the frames a second). Both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

BLOCK, LANES = 64, 16
_LANES, _PARTS, _ROWS = LANES, 4, 4  # 64 samples are 4 vectors of 16; 4 outputs at a time


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def dense_plain(weight, bias, x, y, rectify):
    """y (outputs, BLOCK) = weight (outputs, inputs) @ x (inputs, BLOCK) + bias, never below 0 if `rectify`."""
    for j in range(weight.shape[0]):
        for i in range(BLOCK):
            total = bias[j]
            for k in range(weight.shape[1]):
                total += weight[j, k] * x[k, i]
            y[j, i] = max(total, np.float32(0)) if rectify else total


@intrinsic
def _four_rows(typing, weight, bias, x, y, row, inputs, rectify):  # noqa: ANN001, ANN202 - numba's signature
    """Rows row … row+3 of y, all arrays contiguous float32 (another type is a typing error: memory is read as it lies)."""
    if any(a.dtype != types.float32 or a.layout != "C" for a in (weight, bias, x, y)):
        return None

    def code(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector, index, word = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(32), ir.IntType(64)
        none, zeros, fast = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * _LANES), ("fast",)
        weights, biases, inside, outside = (context.make_array(signature.args[k])(context, b, args[k]).data for k in range(4))
        rows, inputs = [b.add(args[4], word(r)) for r in range(_ROWS)], args[5]

        def splat(pointer: ir.Value) -> ir.Value:
            one = b.insert_element(none, b.load(pointer), index(0))
            return b.shuffle_vector(one, none, ir.Constant(ir.VectorType(index, _LANES), [0] * _LANES))

        def part(data: ir.Value, line: ir.Value, p: int) -> ir.Value:
            return b.bitcast(b.gep(data, [b.add(b.mul(line, word(BLOCK)), word(p * _LANES))]), vector.as_pointer())

        start = [splat(b.gep(biases, [r])) for r in rows]
        lines = [b.gep(weights, [b.mul(r, inputs)]) for r in rows]
        before, loop, after = b.block, b.append_basic_block("inputs"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(word)
        sums = [[b.phi(vector) for _ in range(_PARTS)] for _ in range(_ROWS)]
        samples = [b.load(part(inside, k, p), align=4) for p in range(_PARTS)]
        made = []
        for r in range(_ROWS):
            w = splat(b.gep(lines[r], [k]))
            made.append([b.fadd(b.fmul(w, v, flags=fast), total, flags=fast) for v, total in zip(samples, sums[r])])
        following = b.add(k, word(1))
        k.add_incoming(word(0), before)
        k.add_incoming(following, loop)
        for r in range(_ROWS):
            for p in range(_PARTS):
                sums[r][p].add_incoming(start[r], before)
                sums[r][p].add_incoming(made[r][p], loop)
        b.cbranch(b.icmp_signed("<", following, inputs), loop, after)
        b.position_at_end(after)
        for r in range(_ROWS):
            for p in range(_PARTS):
                value = made[r][p]
                positive = b.select(b.fcmp_ordered(">", value, zeros, flags=fast), value, zeros)
                b.store(b.select(args[6], positive, value), part(outside, rows[r], p), align=4)
        return context.get_dummy_value()

    return types.void(weight, bias, x, y, types.int64, types.int64, types.boolean), code


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def dense(weight, bias, x, y, rectify):
    """As `dense_plain`; outputs a multiple of 4, at least one input."""
    for row in range(0, weight.shape[0], _ROWS):
        _four_rows(weight, bias, x, y, row, weight.shape[1], rectify)


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def outer_plain(a, b, total):
    """total (rows, columns, LANES) += products of a (rows, BLOCK) and b (columns, BLOCK); the sum over the last axis is a @ b.T."""
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            for k in range(BLOCK):
                total[i, j, k % _LANES] += a[i, k] * b[j, k]


@intrinsic
def _outer_tile(typing, a, b, total, row, column):  # noqa: ANN001, ANN202 - numba's signature
    """Rows row … row+3, columns column … column+3 of total, all arrays contiguous float32."""
    if any(x.dtype != types.float32 or x.layout != "C" for x in (a, b, total)):
        return None

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector, word, fast = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64), ("fast",)
        arrays = [context.make_array(signature.args[k])(context, builder, args[k]) for k in range(3)]
        left, right, out = (x.data for x in arrays)
        columns = builder.extract_value(arrays[2].shape, 1)

        def place(data: ir.Value, at: ir.Value) -> ir.Value:
            return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

        rows, across = ([builder.add(args[k], word(r)) for r in range(_ROWS)] for k in (3, 4))
        targets = [[place(out, builder.mul(builder.add(builder.mul(r, columns), c), word(_LANES))) for c in across] for r in rows]
        sums = [[builder.load(target, align=4) for target in line] for line in targets]
        for p in range(_PARTS):
            x = [builder.load(place(left, builder.add(builder.mul(r, word(BLOCK)), word(p * _LANES))), align=4) for r in rows]
            y = [builder.load(place(right, builder.add(builder.mul(c, word(BLOCK)), word(p * _LANES))), align=4) for c in across]
            sums = [[builder.fadd(s, builder.fmul(u, v, flags=fast), flags=fast) for s, v in zip(line, y)] for line, u in zip(sums, x)]
        for line, values in zip(targets, sums):
            for target, value in zip(line, values):
                builder.store(value, target, align=4)
        return context.get_dummy_value()

    return types.void(a, b, total, types.int64, types.int64), code


@nb.njit(cache=True, fastmath=True, error_model="numpy")
def outer(a, b, total):
    """As `outer_plain`; rows and columns multiples of 4."""
    for row in range(0, a.shape[0], _ROWS):
        for column in range(0, b.shape[0], _ROWS):
            _outer_tile(a, b, total, row, column)
