"""Dropout by a counter: whether an element is kept is a hash of its place and of two keys, so no mask is stored.

Two rounds of multiply and xor-shift (as in the finaliser of MurmurHash3, Appleby, public domain), a key before each:
a few vector instructions an element, where a generator that must be drawn in turn takes as long as a matrix product.
"""

import numpy as np

from sumix_kernels.cpu.compiled import inlined

_GOLDEN, _FIRST, _SECOND, _THIRD = map(np.uint32, (0x9E3779B9, 0x7FEB352D, 0x846CA68B, 0xC2B2AE35))
_16, _15, _13 = map(np.uint32, (16, 15, 13))


@inlined
def random_bits(place, key, second_key):
    """32 bits for a place; all three are uint32."""
    # Numba computes with 64 bits unless each result is cut: then eight lanes fit a vector of 256 bits.
    x = np.uint32(np.uint32(place * _GOLDEN) + key)
    x = np.uint32(np.uint32(x ^ (x >> _16)) * _FIRST)
    x = np.uint32(np.uint32(x ^ (x >> _15)) + second_key)
    x = np.uint32(x * _SECOND)
    x = np.uint32(np.uint32(x ^ (x >> _13)) * _THIRD)
    return np.uint32(x ^ (x >> _16))
