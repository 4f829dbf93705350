"""Which elements a dropout keeps, in NumPy with integers of 64 bits: the reference for `sumix_kernels.cpu.dropout`."""

import numpy as np

_WORD = 2**32 - 1


def keeps(shape: tuple[int, ...], key: int, second_key: int, threshold: int) -> np.ndarray:
    """True for each element of a C-contiguous array of `shape` that is kept."""
    x = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) & np.uint64(_WORD)
    x = (x * 0x9E3779B9 + int(key)) & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) + int(second_key)) & _WORD
    x = (x * 0x846CA68B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return (x ^ (x >> 16)).reshape(shape) >= int(threshold)
