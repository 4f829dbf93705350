"""A recogniser in forked processes: gunicorn's with --preload, multiprocessing's on Linux.

OpenMP's threads do not come along when a process is forked, and the child that asks them for work waits for ever. It
works by itself: with one thread, as a server's workers do anyway.
"""

import os
import sys

_registered = False


def use_one_thread_after_fork() -> None:
    """From now on, forked children of this process compute with one thread of PyTorch's, whatever the parent has."""
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)
        _registered = True


def _use_one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
