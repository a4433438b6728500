"""One level of the hash grid for 16 samples at a time, written as LLVM vectors; `numba_backend` has the plain loops they equal.

numba does not turn the plain loops into vector instructions (too many arrays might overlap), so here the arithmetic is spelled
out on <16 x float>, and a corner's two features are gathered as one 64-bit word. LLVM lowers this to what the CPU has: AVX-512,
AVX2, or scalar loads. Measured on two cores with AVX-512: see tests/benchmarks/bm_encoding.py.

Memory is read as it lies, so arrays of another type or layout are typing errors.
All three functions made by `make(dimensions, hashed)` begin with the arguments

    x, y, z, at      float32 planes and where the 16 samples begin; in 2D z is not read
    first            int32 plane: entry at which the sample's table begins (frame and level); or one number for all samples
    scale, my, mz    of the level; my, mz int32: hash primes, or the strides of a dense level
    size             int32 entries of the level
"""

from __future__ import annotations

from typing import Any, Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_F, _I, _L = (ir.VectorType(t, LANES) for t in (ir.FloatType(), ir.IntType(32), ir.IntType(64)))
_FAST = ("fast",)


def _planes(kind: Any, *arrays: Any) -> bool:
    """Whether arrays are contiguous and of a type."""
    return all(isinstance(a, types.Array) and a.dtype == kind and a.layout == "C" for a in arrays)


def _level(x: Any, y: Any, z: Any, first: Any, scale: Any, my: Any, mz: Any, size: Any) -> bool:
    """Whether the arguments common to all functions have the types the code assumes."""
    return _planes(types.float32, x, y, z) and (_planes(types.int32, first) or first == types.int32) and scale == types.float32 and my == mz == size == types.int32


class _Cell:
    """Corners of 16 samples: `entry(c)` and `weight(c)`, and the weights (wx, wy, wz) of its axes.

    centred: not a level of the hash grid but a grid of `scale` values along each axis, which stand in the centres of their cells; towards the border of
    the cube the outermost go on.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any, dimensions: int, hashed: bool, centred: bool = False) -> None:
        self.context, self.b, self.signature, self.args, self.dimensions, self.hashed = context, builder, signature, args, dimensions, hashed
        scale, my, mz, self.size = (self.splat(args[k]) for k in range(5, 9))
        one, half = self.number(1.0), self.number(0.5)
        if centred:
            low, high = self.number(0.0), self.sub(scale, self.number(1.0001))
            grid = [self.least(self.most(self.sub(self.mul(self.load(k, _F), scale), half), low), high) for k in range(dimensions)]
        else:
            grid = [self.fma(self.load(k, _F), scale, half) for k in range(dimensions)]
        cell = [builder.fptosi(g, _I) for g in grid]
        high = [self.sub(g, builder.sitofp(i, _F)) for g, i in zip(grid, cell)]
        self.along = [(self.sub(one, f), f) for f in high]  # weight of the lower and the upper corner along each axis
        up = builder.add(cell[0], ir.Constant(_I, [1] * LANES))
        y = builder.mul(cell[1], my)
        ys = y, builder.add(y, my)
        if dimensions == 3:
            z = builder.mul(cell[2], mz)
            zs = z, builder.add(z, mz)
            self.rows = [self.mix(ys[k & 1], zs[k >> 1]) for k in range(4)]
        else:
            self.rows = list(ys)
        self.xs = cell[0], up
        self.first = self.load(4, _I) if isinstance(signature.args[4], types.Array) else self.splat(args[4])

    def splat(self, value: ir.Value) -> ir.Value:
        vector = ir.VectorType(value.type, LANES)
        one = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
        return self.b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(_I, [0] * LANES))

    def number(self, value: float) -> ir.Value:
        return ir.Constant(_F, [value] * LANES)

    def pointer(self, argument: int) -> ir.Value:
        return self.context.make_array(self.signature.args[argument])(self.context, self.b, self.args[argument]).data

    def plane(self, argument: int, kind: ir.VectorType, at: ir.Value | None = None) -> ir.Value:
        place = self.b.gep(self.pointer(argument), [self.args[3] if at is None else at])
        return self.b.bitcast(place, kind.as_pointer())

    def load(self, argument: int, kind: ir.VectorType) -> ir.Value:
        return self.b.load(self.plane(argument, kind), align=4)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fmul(a, b, flags=_FAST)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fsub(a, b, flags=_FAST)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fadd(a, b, flags=_FAST)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.add(self.mul(a, b), c)

    def least(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.fcmp_ordered("<", a, b, flags=_FAST), a, b)

    def most(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.fcmp_ordered(">", a, b, flags=_FAST), a, b)

    def mix(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.xor(a, b) if self.hashed else self.b.add(a, b)

    def entry(self, c: int) -> ir.Value:
        """Entries of corner c: a hashed level holds a power of two; a dense one wraps at its edge."""
        index = self.mix(self.xs[c & 1], self.rows[c >> 1])
        if self.hashed:
            index = self.b.and_(index, self.b.sub(self.size, ir.Constant(_I, [1] * LANES)))
        else:
            over = self.b.icmp_signed(">=", index, self.size)
            index = self.b.select(over, self.b.sub(index, self.size), index)
        return self.b.add(index, self.first)

    def weight(self, c: int, without: int = -1) -> ir.Value:
        """Product of the axes' weights of corner c, leaving one axis out if asked."""
        out = None
        for axis in reversed(range(self.dimensions)):
            if axis != without:
                factor = self.along[axis][c >> axis & 1]
                out = factor if out is None else self.mul(out, factor)
        return out

    def words(self, argument: int, c: int, entry_bytes: int, bits: int = 64) -> ir.Value:
        """Words that begin at the entry of corner c."""
        word = ir.IntType(bits)
        kind = ir.VectorType(word, LANES)
        start = self.splat(self.b.ptrtoint(self.pointer(argument), ir.IntType(64)))
        address = self.b.add(start, self.b.shl(self.b.sext(self.entry(c), _L), ir.Constant(_L, [entry_bytes.bit_length() - 1] * LANES)))
        pointers = ir.VectorType(word.as_pointer(), LANES)
        mask = ir.VectorType(ir.IntType(1), LANES)
        name = f"llvm.masked.gather.v{LANES}i{bits}.v{LANES}p0" + ("" if str(word.as_pointer()) == "ptr" else f"i{bits}")  # typed pointers before LLVM 15
        gather = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(kind, [pointers, ir.IntType(32), mask, kind]), name)
        return self.b.call(gather, [self.b.inttoptr(address, pointers), ir.IntType(32)(4), ir.Constant(mask, [1] * LANES), ir.Constant(kind, ir.Undefined)])

    def split(self, words: ir.Value, kind: ir.Type, count: int) -> tuple[ir.Value, ...]:
        """The `count` numbers that each word holds, as vectors."""
        numbers = self.b.bitcast(words, ir.VectorType(kind, count * LANES))
        none = ir.Constant(numbers.type, ir.Undefined)
        return tuple(self.b.shuffle_vector(numbers, none, ir.Constant(_I, list(range(k, count * LANES, count)))) for k in range(count))

    def features(self, argument: int, c: int) -> tuple[ir.Value, ...]:
        """Both features of corner c: an array of float32 holds pairs of them, one of uint32 pairs of float16."""
        if self.signature.args[argument].dtype == types.uint32:
            return tuple(self.b.fpext(value, _F) for value in self.split(self.words(argument, c, 4, 32), ir.HalfType(), 2))
        return self.split(self.words(argument, c, 8), ir.FloatType(), 2)

    def store(self, value: ir.Value, argument: int, at: ir.Value | None = None) -> None:
        self.b.store(value, self.plane(argument, value.type, at), align=4)


def make(dimensions: int, hashed: bool) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Functions for numba code: look-up, slope along the axes, and corners, for a hashed or a dense level of a 2D or 3D grid."""
    corners = 1 << dimensions

    @intrinsic
    def look_up(typing, x, y, z, at, first, scale, my, mz, size, pairs, a, b):  # noqa: ANN001, ANN202 - numba's signature
        """a, b (planes of float32) at `at` become the two features of the level."""
        if not (_level(x, y, z, first, scale, my, mz, size) and (_planes(types.float32, pairs) or _planes(types.uint32, pairs)) and _planes(types.float32, a, b)):
            return None

        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            cell = _Cell(context, builder, signature, args, dimensions, hashed)
            sums = [cell.number(0.0), cell.number(0.0)]
            for c in range(corners):
                weight = cell.weight(c)
                sums = [cell.fma(weight, value, s) for s, value in zip(sums, cell.features(9, c))]
            cell.store(sums[0], 10)
            cell.store(sums[1], 11)
            return context.get_dummy_value()

        return types.void(x, y, z, types.int64, first, scale, my, mz, size, pairs, a, b), code

    @intrinsic
    def slope(typing, x, y, z, at, first, scale, my, mz, size, pairs, ga, gb, sx, sy, sz):  # noqa: ANN001, ANN202
        """Add to planes sx, sy, sz the gradient of ga·a + gb·b along the axes (planes ga, gb; sz is left alone in 2D)."""
        if not (_level(x, y, z, first, scale, my, mz, size) and _planes(types.float32, pairs, ga, gb, sx, sy, sz)):
            return None

        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            cell = _Cell(context, builder, signature, args, dimensions, hashed)
            g = [cell.mul(cell.load(k, _F), cell.splat(args[5])) for k in (10, 11)]
            value = [cell.fma(g[0], p, cell.mul(g[1], q)) for p, q in (cell.features(9, c) for c in range(corners))]
            for axis in range(dimensions):
                total = cell.load(12 + axis, _F)
                for c in range(corners):
                    if not c >> axis & 1:
                        total = cell.fma(cell.sub(value[c | 1 << axis], value[c]), cell.weight(c, without=axis), total)
                cell.store(total, 12 + axis)
            return context.get_dummy_value()

        return types.void(x, y, z, types.int64, first, scale, my, mz, size, pairs, ga, gb, sx, sy, sz), code

    @intrinsic
    def find_corners(typing, x, y, z, at, first, scale, my, mz, size, entry, weight):  # noqa: ANN001, ANN202
        """entry (int32) and weight (float32), one plane after the other, become those of the 2^D corners: 16 numbers a corner."""
        if not (_level(x, y, z, first, scale, my, mz, size) and _planes(types.int32, entry) and _planes(types.float32, weight)):
            return None

        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            cell = _Cell(context, builder, signature, args, dimensions, hashed)
            for c in range(corners):
                cell.store(cell.entry(c), 9, ir.IntType(64)(c * LANES))
                cell.store(cell.weight(c), 10, ir.IntType(64)(c * LANES))
            return context.get_dummy_value()

        return types.void(x, y, z, types.int64, first, scale, my, mz, size, entry, weight), code

    return look_up, slope, find_corners


@intrinsic
def look_up_three(typing, x, y, z, at, first, scale, my, mz, size, words, a, b, c):  # noqa: ANN001, ANN202
    """a, b, c (planes of float32) at `at` become the first three of four float16 in an entry (uint64) of a dense level in 3D."""
    if not (_level(x, y, z, first, scale, my, mz, size) and _planes(types.uint64, words) and _planes(types.float32, a, b, c)):
        return None

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        cell = _Cell(context, builder, signature, args, 3, False)
        sums = [cell.number(0.0)] * 3
        for corner in range(8):
            weight, values = cell.weight(corner), cell.split(cell.words(9, corner, 8), ir.HalfType(), 4)
            sums = [cell.fma(weight, builder.fpext(value, _F), s) for s, value in zip(sums, values)]
        for k in range(3):
            cell.store(sums[k], 10 + k)
        return context.get_dummy_value()

    return types.void(x, y, z, types.int64, first, scale, my, mz, size, words, a, b, c), code


@intrinsic
def look_up_centred(typing, x, y, z, at, first, scale, my, mz, size, values, out):  # noqa: ANN001, ANN202
    """out (a plane) at `at` becomes the value of a grid (float32, flat) of scale³ cells between their centres; neighbours along x are read together."""
    if not (_level(x, y, z, first, scale, my, mz, size) and _planes(types.float32, values, out)):
        return None

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        cell = _Cell(context, builder, signature, args, 3, False, centred=True)
        total = cell.number(0.0)
        for c in (0, 2, 4, 6):
            for k, value in enumerate(cell.split(cell.words(9, c, 4), ir.FloatType(), 2)):
                total = cell.fma(cell.weight(c + k), value, total)
        cell.store(total, 10)
        return context.get_dummy_value()

    return types.void(x, y, z, types.int64, first, scale, my, mz, size, values, out), code


def make_scatter(corners: int) -> Callable[..., None]:
    """A function for numba code that adds one sample's gradient to its corners' pairs."""

    @intrinsic
    def scatter(typing, pairs, entry, weight, lane, a, b):  # noqa: ANN001, ANN202
        """pairs[e] += weight · (a, b) for the corners (e, weight) of a lane, in planes of `find_corners`."""
        if not (_planes(types.float32, pairs, weight) and _planes(types.int32, entry) and a == b == types.float32):
            return None

        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            two, word = ir.VectorType(ir.FloatType(), 2), ir.IntType(64)
            data, entries, weights = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in range(3))
            g, none = ir.Constant(two, ir.Undefined), ir.Constant(two, ir.Undefined)
            for k in (0, 1):
                g = builder.insert_element(g, args[4 + k], ir.IntType(32)(k))
            for c in range(corners):
                at = builder.add(args[3], word(c * LANES))
                e = builder.sext(builder.load(builder.gep(entries, [at])), word)
                w = builder.insert_element(none, builder.load(builder.gep(weights, [at])), ir.IntType(32)(0))
                w = builder.shuffle_vector(w, none, ir.Constant(ir.VectorType(ir.IntType(32), 2), [0, 0]))
                place = builder.bitcast(builder.gep(data, [builder.shl(e, word(1))]), two.as_pointer())
                sum_ = builder.fadd(builder.load(place, align=4), builder.fmul(w, g, flags=_FAST), flags=_FAST)
                builder.store(sum_, place, align=4)
            return context.get_dummy_value()

        return types.void(pairs, entry, weight, types.int64, a, b), code

    return scatter
