"""How the functions of this package are compiled; elementary functions in fp32, to a few units in the last place."""

import math
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

ZERO, HALF, ONE, TWO = map(np.float32, (0, 0.5, 1, 2))
# exp: 2**k times a Taylor sum for |r| <= ln(2) / 2; ln(2) in two parts, the first exact in few bits.
_LEAST, _MOST, _LOG2_E = map(np.float32, (-87, 88, math.log2(math.e)))
_LN2 = np.float32(0.693359375)
_LN2_REST = np.float32(math.log(2) - 0.693359375)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))
# erf: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; its error is below 1.5e-7.
_ERF_P, _A1, _A2, _A3, _A4, _A5 = map(
    np.float32, (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
_SQRT_HALF = np.float32(math.sqrt(0.5))
_BIAS, _MANTISSA = np.int32(127), np.int32(23)  # of fp32
# Sums may be reordered, so that they are done by vectors; NaN stays NaN.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Callable, *, nogil: bool = False) -> Callable:
    """Compile when first called, or take what an earlier process has compiled from these sources."""
    options = {"fastmath": _FAST, "error_model": "numpy", "nogil": nogil}
    try:
        dispatcher = numba.njit(function, cache=True, **options)
    except RuntimeError:  # nowhere to write: compiled anew in each process
        return numba.njit(function, **options)
    # Numba looks at the function's own file alone; what it calls may lie in another.
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _STAMP
    return dispatcher


def _stamp() -> tuple:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((source.name, source.stat().st_mtime, source.stat().st_size) for source in sources)


_STAMP = _stamp()
inlined = numba.njit(fastmath=_FAST, error_model="numpy", inline="always")


def _bitcast(result: numba.types.Type, argument: numba.types.Type, kind: ir.Type) -> tuple:
    return result(argument), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], kind)


@intrinsic
def _as_float(typing_context, bits):
    return _bitcast(numba.float32, numba.int32, ir.FloatType())


@intrinsic
def as_bits(typing_context, value):
    """The bits of an fp32 number as an int32."""
    return _bitcast(numba.int32, numba.float32, ir.IntType(32))


@inlined
def exp(x):
    x = min(max(x, _LEAST), _MOST)
    k = np.floor(x * _LOG2_E + HALF)
    r = x - k * _LN2
    r = r - k * _LN2_REST
    y = ((((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + ONE) * r + ONE
    return y * _as_float((np.int32(k) + _BIAS) << _MANTISSA)


@inlined
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@inlined
def tanh(x):
    return TWO * sigmoid(TWO * x) - ONE


@inlined
def gelu(x):
    z = abs(x) * _SQRT_HALF
    t = ONE / (ONE + _ERF_P * z)
    half_tail = HALF * ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * exp(-z * z)
    return x * (ONE - half_tail if x > ZERO else half_tail)


@numba.njit(fastmath=False, error_model="numpy")  # in just this order; unsaid, it would be the caller's
def two_sum(a, b):
    """a + b rounded, and exactly what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2, theorem B)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


@inlined
def dot(a, b):
    total = ZERO
    for i in range(len(b)):
        total += a[i] * b[i]
    return total
