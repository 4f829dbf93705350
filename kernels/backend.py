"""Choice of the code that computes an op.

An op offers some of: `naive` (fp64 reference), `torch` (any device), `triton` (GPU). "auto" takes the fastest one that
is there; a backend asked for by name runs or raises.
"""

from collections.abc import Callable, Mapping

BACKENDS = ("triton", "torch", "naive")  # "auto" takes the first that an op has


def choose(backend: str, implementations: Mapping[str, Callable]) -> Callable:
    """The implementation that runs for `backend`, one of "auto" and BACKENDS.

    Raises ValueError for a name that is none of them, NotImplementedError for one that the op does not have.
    """
    if backend == "auto":
        return next(implementations[name] for name in BACKENDS if name in implementations)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, ('auto', *BACKENDS)))}, got {backend!r}")
    if backend not in implementations:
        raise NotImplementedError(
            f"backend {backend!r} is not available in this version; use 'auto' or one of "
            f"{', '.join(map(repr, sorted(implementations)))}"
        )
    return implementations[backend]
