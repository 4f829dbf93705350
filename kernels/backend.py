"""Choice of the code that computes an op.

An op offers some of: `naive` (fp64 reference), `torch` (any device), `triton` (GPU). "auto" takes the fastest one that
runs on the op's tensors; a backend asked for by name runs or raises.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

BACKENDS = ("triton", "torch", "naive")  # "auto" takes the first that an op has and that runs
# Whether Triton kernels run in its interpreter, on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


_preferred: str | None = None


@contextlib.contextmanager
def preferred_backend(name: str) -> Iterator[None]:
    """Inside, in the whole process, "auto" means the backend `name` for every op that has it, and runs or raises.

    To compare backends in a whole model: K.preferred_backend("torch"). Raises ValueError for a name that is none.
    """
    global _preferred
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before, _preferred = _preferred, name
    try:
        yield
    finally:
        _preferred = before


def resolve(backend: str) -> str:
    """`backend`, or for "auto" the one that is preferred here."""
    return _preferred if backend == "auto" and _preferred else backend


def choose(backend: str, implementations: Mapping[str, Callable], *tensors: Tensor | None) -> Callable:
    """The implementation that runs for `backend`, one of "auto" and BACKENDS, on `tensors` (None: an absent argument).

    Raises ValueError for a name that is none of them, NotImplementedError for one that the op does not have,
    RuntimeError for "triton" where Triton cannot run on these tensors.
    """
    if resolve(backend) in implementations:
        backend = resolve(backend)
    if backend == "auto":
        names = (name for name in BACKENDS if name in implementations)
        return next(implementations[name] for name in names if name != "triton" or _prefers_triton(tensors))
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, ('auto', *BACKENDS)))}, got {backend!r}")
    if backend not in implementations:
        raise NotImplementedError(
            f"backend {backend!r} is not available in this version; use 'auto' or one of "
            f"{', '.join(map(repr, sorted(implementations)))}"
        )
    if backend == "triton" and (obstacle := _triton_obstacle(tensors)):
        raise RuntimeError(f"backend 'triton' cannot run: {obstacle}; use backend='torch'")
    return implementations[backend]


def _prefers_triton(tensors: tuple[Tensor | None, ...]) -> bool:
    """On the CPU the interpreter is for tests, and has to be asked for by name."""
    return all(x.is_cuda for x in tensors if x is not None) and _triton_obstacle(tensors) is None


def _triton_obstacle(tensors: tuple[Tensor | None, ...]) -> str | None:
    if not _TRITON_INSTALLED:
        return "the package triton is not installed"
    for x in (x for x in tensors if x is not None):
        if x.is_floating_point() and x.dtype not in TRITON_DTYPES:
            return f"it takes fp32, fp16 and bf16, got {x.dtype}"
        if not x.is_cuda and not (INTERPRETED and x.device.type == "cpu"):
            return f"it needs CUDA tensors, or TRITON_INTERPRET=1 set before the start for CPU ones, got {x.device}"
    return None
