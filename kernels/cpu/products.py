"""Products of few rows with many weights: rows (n, K), weights (N, K) -> (n, N).

A lone stream's chunk has 16 rows, for which a library's products reach little more than half of a processor's speed.
Here weights lie in panels of `WIDTH` outputs, and `ROWS` rows of one panel are summed in registers from the first
factor to the last: a row's numbers are the same bits whatever rows are beside it. Weights are fetched once and in
order.

In bf16 weights are int32, each two bfloat16 of neighbouring inputs, and rows are rounded likewise; sums are fp32.
"""

from collections.abc import Sequence

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, overload

from sumix_kernels.cpu.compiled import as_bits, compiled, inlined, sigmoid


def _features() -> dict[str, bool]:
    """Of the processor that Numba compiles for."""
    named = numba.config.CPU_FEATURES
    if named is None:
        return dict(llvm.get_host_cpu_features())
    return {name[1:]: name[0] == "+" for name in named.split(",") if name}


HAS_BF16 = bool(_features().get("avx512bf16"))  # instructions that multiply bfloat16
# Sums of a tile, its weights and a factor fill the vector registers: 32 of 16 numbers, or 16 of 8.
ROWS, _VECTORS, _LANES = (8, 2, 16) if _features().get("avx512f") else (4, 3, 8)
WIDTH = _VECTORS * _LANES

_LINE = 64  # bytes that a cache fetches at once
_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Of float32's 32 bits bfloat16 keeps the upper 16; less than half a step of it; a quiet NaN.
_KEPT, _HALF_STEP, _QUIET = np.int32(16), np.int32(0x7FFF), np.int32(0x7FC0)
_ONE_BIT, _LOWER = np.int32(1), np.int32(0xFFFF)
llvm.initialize_native_asmparser()  # for the one instruction of bf16


@inlined
def filled_up(count: int, multiple: int) -> int:
    """The next multiple from a number on."""
    return -(-count // multiple) * multiple


def panels(weight: np.ndarray, bf16: bool = False) -> np.ndarray:
    """Weights (..., N, K) laid out as products take them: (..., ceil(N / WIDTH), K, WIDTH) fp32, or in bf16
    (..., ceil(N / WIDTH), ceil(K / 2), WIDTH) int32; filled up with zeros."""
    *others, N, K = weight.shape
    filled = np.zeros((*others, filled_up(N, WIDTH), K + K % 2 if bf16 else K), np.float32)
    filled[..., :N, :K] = weight
    if bf16:
        halves = np.empty(filled.shape, np.int16)
        _round(filled.reshape(-1, filled.shape[-1]), filled[..., 0].size, halves.reshape(-1, filled.shape[-1]))
        filled = halves.view(np.int32)
    columns = filled.reshape(*others, -1, WIDTH, filled.shape[-1])
    return np.ascontiguousarray(columns.swapaxes(-1, -2))


def padded(bias: np.ndarray) -> np.ndarray:
    """Biases (..., N) filled up with zeros as `panels` does."""
    short = [(0, 0)] * (bias.ndim - 1) + [(0, -bias.shape[-1] % WIDTH)]
    return np.ascontiguousarray(np.pad(bias, short).astype(np.float32))


def in_a_row(products: Sequence[tuple[np.ndarray, np.ndarray]], bf16: bool = False) -> tuple[np.ndarray, ...]:
    """Weights (Y, N, K) and biases (Y, N) of products that Y layers use one after another: all weights of a layer
    (Y, S), its biases (Y, S'), and where each product's lie, (len(products), 4), as `part` takes them.

    A product fetches what lies behind its weights while it is busy: the next one's.
    """
    weights = [panels(weight, bf16) for weight, _ in products]
    biases = [padded(bias) for _, bias in products]
    parts, begin, bias_begin = [], 0, 0
    for weight, bias in zip(weights, biases, strict=True):
        parts.append((begin, *weight.shape[1:3], bias_begin))
        begin, bias_begin = begin + weight[0].size, bias_begin + bias.shape[1]
    joined = np.concatenate([weight.reshape(len(weight), -1) for weight in weights], 1)
    return joined, np.concatenate(biases, 1), np.array(parts, np.int64)


@inlined
def part(weights, biases, place):
    """One product's weights (P, K, WIDTH) and bias (P WIDTH,) of a layer's."""
    begin, P, K, bias_begin = place[0], place[1], place[2], place[3]
    own = weights[begin : begin + P * K * WIDTH].reshape(P, K, WIDTH)
    return own, biases[bias_begin : bias_begin + P * WIDTH]


@intrinsic
def _tile(typing_context, factors, stride, step, like, weights, depth, bias, out, out_stride, adding, ahead):
    """ROWS rows of one panel: out = factors weights + bias, plus out where `adding`. Arguments are addresses, strides
    in elements (of 4 bytes), and an array of the weights' type. A factor's neighbours lie `stride` behind it for the
    next row and `step` for the next weight. `ahead`: from where on memory is fetched meanwhile."""
    address = numba.int64
    signature = numba.void(address, address, address, like, *[address] * 7)
    bf16 = like.dtype == numba.int32
    return signature, lambda *arguments: _generate_tile(bf16, *arguments)


def _generate_tile(bf16, context, builder, signature, arguments):
    factors, stride, step, _, weights, depth, bias, out, out_stride, adding, ahead = arguments
    sums, factor = ir.VectorType(_FLOAT, _LANES), _INT32 if bf16 else _FLOAT
    vector = ir.VectorType(factor, _LANES)
    of = ir.FunctionType(sums, [vector, vector, sums])
    if bf16:
        multiply_add = ir.InlineAsm(of, "vdpbf16ps $2, $1, $0", "=v,v,v,0")
    else:
        multiply_add = cgutils.get_or_insert_function(builder.module, of, f"llvm.fma.v{_LANES}f32")

    byte = ir.IntType(8).as_pointer()
    of = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0")

    def pointer(address, kind):
        return builder.inttoptr(address, kind.as_pointer())

    def at(base, *offsets):
        return builder.gep(base, list(offsets))

    def load(place, kind):
        return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)

    factors, weights = pointer(factors, factor), pointer(weights, factor)
    bias, out = pointer(bias, _FLOAT), pointer(out, _FLOAT)
    soon = builder.inttoptr(ahead, byte)
    columns = [_INT64(v * _LANES) for v in range(_VECTORS)]
    outs = [at(out, builder.mul(out_stride, _INT64(r))) for r in range(ROWS)]
    inputs = [at(factors, builder.mul(stride, _INT64(r))) for r in range(ROWS)]
    biases = [load(at(bias, column), sums) for column in columns]

    start = builder.block
    with_out, head, loop, end = (builder.append_basic_block(name) for name in ("with_out", "head", "loop", "end"))
    builder.cbranch(builder.icmp_signed("!=", adding, _INT64(0)), with_out, head)
    builder.position_at_end(with_out)
    added = [builder.fadd(b, load(at(row, column), sums)) for row in outs for b, column in zip(biases, columns)]
    builder.branch(head)

    builder.position_at_end(head)
    first = []
    for own, plain in zip(added, biases * ROWS):
        first.append(builder.phi(sums))
        first[-1].add_incoming(plain, start)
        first[-1].add_incoming(own, with_out)
    builder.branch(loop)

    builder.position_at_end(loop)
    k, totals = builder.phi(_INT64), [builder.phi(sums) for _ in first]
    k.add_incoming(_INT64(0), head)
    for total, begin in zip(totals, first):
        total.add_incoming(begin, head)
    row_of_weights = at(weights, builder.mul(k, _INT64(WIDTH)))
    loaded = [load(at(row_of_weights, column), vector) for column in columns]
    line = at(soon, builder.mul(k, _INT64(_LINE)))
    builder.call(prefetch, [line, _INT32(0), _INT32(2), _INT32(1)])  # to read, into the second cache, as data
    none = ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(_INT32, _LANES), [0] * _LANES)
    place, sums_after = builder.mul(k, step), []
    for r in range(ROWS):
        one = builder.load(at(inputs[r], place), align=4)
        spread = builder.shuffle_vector(builder.insert_element(none, one, _INT32(0)), none, everywhere)
        for v in range(_VECTORS):
            sums_after.append(builder.call(multiply_add, [loaded[v], spread, totals[r * _VECTORS + v]]))
    following = builder.add(k, _INT64(1))
    k.add_incoming(following, loop)
    for total, after in zip(totals, sums_after):
        total.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, end)

    builder.position_at_end(end)
    for i, total in enumerate(sums_after):
        place = at(outs[i // _VECTORS], columns[i % _VECTORS])
        builder.store(total, builder.bitcast(place, sums.as_pointer()), align=4)
    return context.get_dummy_value()


@inlined
def _bfloat16(x):
    """The bits of a bfloat16, an int32's lower half; to the nearest, ties to even."""
    bits = as_bits(x)
    high = bits >> _KEPT
    return (bits + (_HALF_STEP + (high & _ONE_BIT))) >> _KEPT if x == x else high | _QUIET


@compiled
def _round(x, count, pairs):
    """The first `count` rows of x (n, K) as bfloat16 in int16 (n, K or more); the rest of a row is zero."""
    K = x.shape[1]
    for n in range(count):
        for k in range(min(K, pairs.shape[1])):
            pairs[n, k] = np.int16(_bfloat16(x[n, k]))
        for k in range(K, pairs.shape[1]):
            pairs[n, k] = 0


@compiled
def pair_rows(x, count, pairs):
    """Each two of the first `count` rows of x (n, K) side by side as bfloat16: pairs (ceil(count / 2), K) int32."""
    for m in range(count // 2):
        for k in range(x.shape[1]):
            pairs[m, k] = (_bfloat16(x[2 * m, k]) & _LOWER) | (_bfloat16(x[2 * m + 1, k]) << _KEPT)
    if count % 2:
        for k in range(x.shape[1]):
            pairs[count // 2, k] = _bfloat16(x[count - 1, k]) & _LOWER


def _factors(x, count, weights, pairs):
    """Where a product's factors begin, and from one row to the next in elements of 4 bytes."""


@overload(_factors)
def _factors_of(x, count, weights, pairs):
    if weights.dtype == numba.float32:
        return lambda x, count, weights, pairs: (x.ctypes.data, x.shape[1])

    def rounded(x, count, weights, pairs):
        _round(x, count, pairs)
        return pairs.ctypes.data, pairs.shape[1] // 2

    return rounded


@compiled
def apply_silu(x, count):
    """SiLU of the first `count` rows of x (n, N), in place."""
    for n in range(count):
        for i in range(x.shape[1]):
            x[n, i] *= sigmoid(x[n, i])


@compiled
def multiply(x, count, weights, bias, adding, silu, out, pairs):
    """out (n, N or more) = x (n, K) W + bias, plus out where `adding`, then SiLU of it where `silu`: of `count` rows.

    Args:
        weights, bias: as of `panels` and `padded`.
        x, out: their rows are filled up to a multiple of ROWS, out's columns to one of WIDTH; what fills them up is
            read and written.
        pairs: room for the rounded rows of bf16, int16 (n, 2 ceil(K / 2)) or wider.
    """
    first, stride = _factors(x, count, weights, pairs)
    K, width = weights.shape[1], out.shape[1]
    w, b, y = weights.ctypes.data, bias.ctypes.data, out.ctypes.data
    for p in range(len(weights)):
        begin = p * WIDTH
        for n in range(0, count, ROWS):
            place = y + 4 * (n * width + begin)
            panel = w + 4 * K * begin
            # Two tiles fetch the next panel's halves: 16 rows are done before memory has brought 32 columns.
            ahead = panel + 4 * K * WIDTH + (n // ROWS % 2) * K * _LINE
            _tile(first + 4 * n * stride, stride, 1, weights, panel, K, b + 4 * begin, place, width, adding, ahead)
    if silu:
        apply_silu(out, count)


@compiled
def add_products(x, count, panels, none, out):
    """out (N, P WIDTH) += the transpose of x (n, N or more) times rows in panels (P, n or more, WIDTH): `count` rows.

    In bf16 both are int32, and `count` is of the pairs of rows that `pair_rows` makes.

    Args:
        none: zeros (WIDTH,).
        out: its rows, and x's columns, are filled up to a multiple of ROWS; what fills them up is read and written.
    """
    depth, width = panels.shape[1], out.shape[1]
    first, w, b, y = x.ctypes.data, panels.ctypes.data, none.ctypes.data, out.ctypes.data
    for p in range(len(panels)):
        panel = w + 4 * depth * WIDTH * p
        for n in range(0, len(out), ROWS):
            place = y + 4 * (n * width + p * WIDTH)
            _tile(first + 4 * n, 1, x.shape[1], panels, panel, count, b, place, width, 1, panel)


@compiled
def convolve_rows(images, weights, bias, num_outputs, stride, out):
    """out (num_outputs + ROWS or more, N) = bias + the sum over i of windows of images[i] times weights[i]: window n
    begins at n `stride` of the flattened (F, H) image. Windows up to a multiple of ROWS are read and written.

    Args:
        images: (3, F, H), and as many numbers behind them as windows beyond the last take.
        weights, bias: (3, P, K, WIDTH) and (3, P WIDTH), as of `panels` and `padded`; one of the biases is not zero.
    """
    size, K, width = images.shape[1] * images.shape[2], weights.shape[2], out.shape[1]
    x, w, b, y = images.ctypes.data, weights.ctypes.data, bias.ctypes.data, out.ctypes.data
    num_panels, num_biases = weights.shape[1], bias.shape[1]
    for i in range(len(weights)):
        for p in range(num_panels):
            begin = p * WIDTH
            panel, own = w + 4 * K * WIDTH * (i * num_panels + p), b + 4 * (i * num_biases + begin)
            for n in range(0, num_outputs, ROWS):
                window, place = x + 4 * (i * size + n * stride), y + 4 * (n * width + begin)
                _tile(window, stride, 1, weights, panel, K, own, place, width, i, panel)
