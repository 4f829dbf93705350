"""Memory of a training on a CPU: what one step frees is kept for the next.

glibc's malloc maps large blocks for each request anew and returns them when they are freed, and the kernel zeroes every
page of them: 14,000 page faults in a step of 30 s of audio, a thirteenth of its time.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h, mallopt(3)
_KEPT = 1 << 30  # bytes free at the heap's end that are not returned
_AT_ONCE = 1 << 26  # bytes by which the heap grows
_LARGEST = 1 << 25  # bytes of a block that the heap serves; mallopt takes no more


def keep_freed_memory() -> bool:
    """Have the C library keep up to a gigabyte of freed memory; False where it is not glibc. Larger blocks than 32 MiB
    are mapped as before."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AT_ONCE))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
