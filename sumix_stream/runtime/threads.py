"""How many threads a runtime's arithmetic may have, in this process."""

import os
import sys

from sumix_stream.runtime.cpus import available_cpus

_threads = 0  # none set


def get_num_threads() -> int:
    """As set, else as OMP_NUM_THREADS says, else the processors that this process and its container may use."""
    if _threads:
        return _threads
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return available_cpus()


def set_num_threads(count: int) -> None:
    """For all runtimes; PyTorch's too, where it has been imported."""
    global _threads
    _threads = count
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
