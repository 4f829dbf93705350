"""The runtimes by name, and who is chosen for a model under a context."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from sumix_stream.context import ChunkContext
from sumix_stream.runtime.base import Runtime
from sumix_stream.runtime.weights import Weights

# In the order in which `auto` asks them: module, class, and what to install where the module's library is missing.
RUNTIMES = {
    "onnx": ("sumix_stream.runtime.onnx", "OnnxRuntime", "'sumix-stream[onnx]'"),
    "compiled": ("sumix_stream.runtime.compiled", "CompiledRuntime", "numba"),
    "torch": ("sumix_stream.runtime.torch", "TorchRuntime", "'sumix-stream[train]'"),
}
AUTO = "auto"
NAMES = (AUTO, *sorted(RUNTIMES))
DEFAULT = "default"  # a bundle's own; else what the caller of `as_context` says
STREAMING = ("640ms", 4)  # chunk, and chunks of left context

_log = logging.getLogger(__name__)


def check_name(name: str) -> str:
    """Raises ValueError for a name that no runtime has."""
    if name not in NAMES:
        raise ValueError(f"runtime must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def reason_against(name: str, model: Any, context: ChunkContext) -> str | None:
    """Why a runtime cannot run a model under a context; None = it can."""
    try:
        kind = _kind(name)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: pip install {RUNTIMES[name][2]}"
    except ImportError as error:  # such as kernels that are for other processors
        return str(error)
    return kind.can_run(model, context)


def choose(model: Any, context: ChunkContext, name: str = AUTO) -> tuple[str, str]:
    """The runtime that `make_runtime` would take, and why not those before it. Raises ValueError likewise."""
    reasons = []
    for candidate in RUNTIMES if check_name(name) == AUTO else (name,):
        reason = reason_against(candidate, model, context)
        if reason is None:
            return candidate, "; ".join(reasons)
        reasons.append(f"not {candidate}: {reason}")
    raise ValueError(f"{model} cannot be run: {'; '.join(reasons)}")


def make_runtime(model: Any, context: ChunkContext, name: str = AUTO) -> Runtime:
    """A runtime of a model under a context.

    Args:
        model: `Weights` of a checkpoint or an opened bundle; or a model of PyTorch itself, which `auto` leaves to
            PyTorch.
        name: one of NAMES; `auto` takes the first that can, and tells the log which and why.
    Raises:
        ValueError: with the reason, where the named runtime, or none of them, can run the model.
    """
    if hasattr(model, "state_dict"):
        name, model = "torch" if name == AUTO else name, Weights.of(model, cuda_graph=False)
    chosen, why = choose(model, context, name)
    level = logging.INFO if name == AUTO else logging.DEBUG
    _log.log(level, f"runtime {chosen}, {context}{f' ({why})' if why else ''}")
    return _kind(chosen)(model, context)


def as_context(
    model: Any,
    chunk: str | int | ChunkContext = DEFAULT,
    left_context: int | str | None = DEFAULT,
    otherwise: tuple[str, int | None] = STREAMING,
) -> ChunkContext:
    """`full`, `640ms`, `0.64s` or 16 (encoder frames) with `left_context` in chunks (None = unlimited), or as it is.

    Args:
        model: see `make_runtime`.
        otherwise: what DEFAULT means for chunk and left context of a model that is no bundle.
    Raises:
        ValueError: for a duration that is no whole number of the model's encoder frames, and for another context than
            a bundle's.
    """
    own = getattr(model, "context", None)
    if not isinstance(chunk, ChunkContext):
        default = otherwise if own is None else (own.chunk_size, own.left_context)
        chunk, left_context = (d if given == DEFAULT else given for given, d in zip((chunk, left_context), default))
        chunk = ChunkContext.parse(chunk, left_context, model.timebase)
    if own is not None and chunk != own:
        raise ValueError(
            f"{model} was exported for chunks of {own}, got {chunk}: leave chunk and left context out, "
            "or export the checkpoint under the one you want"
        )
    return chunk


def _kind(name: str) -> type[Runtime]:
    module, kind, _ = RUNTIMES[name]
    return getattr(import_module(module), kind)
