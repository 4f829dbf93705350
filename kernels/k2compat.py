"""k2's RNN-T functions under k2's names and arguments, computed by this package's ops; k2 itself is not needed.

In a program written for k2 (https://k2-fsa.github.io/k2/python_api/api.html) it is enough to change the import:

    import sumix_kernels.k2compat as k2

B batch, S symbols, T frames, R lattice rows kept a frame, V vocabulary with the termination symbol (blank). Arguments
mean what op.py says of them. In the recursion (s, t) is the state after s symbols and t frames; symbols carry px, the
steps to the next frame py:

    px (B, S, T+1), regular   p[s, t] = logadd(p[s-1, t  ] + px[s-1, t  ],  p[s, t-1] + py[s, t-1])
    px (B, S, T), otherwise   p[s, t] = logadd(p[s-1, t-1] + px[s-1, t-1],  p[s, t-1] + py[s, t-1])
    p = 0 at the begin of the boundary; the result is p at its end

Differences from k2:

- What does not fit raises ValueError with the shapes or values found, where k2 has assertions. Values of tensors on a
  GPU are not looked at.
- Half types are taken too; results are at least fp32.
- An utterance without a path (modified, constrained: more symbols than frames; or ranges that leave none) has loss
  +inf and zero gradients. k2 refuses the first and gives +inf and some gradient for the second.
- ``termination_symbol`` is free with ``use_hat_loss``; k2 wants 0.
- A negative ``delay_penalty`` raises ValueError; k2 ignores it.
- What k2 prints when it widens a pruning range is a warning here.
- The functions that run a recursion also take ``backend`` ("auto", "triton", "torch", "naive"; see op.py).

How it is tested: tests/kernels/test_k2compat.py compares with fp64 references, path by path, and with k2's own
results. k2's own tests run there too, unchanged, if a folder with them is named, from a checkout of
https://github.com/k2-fsa/k2:

    SUMIX_K2_TESTS=k2/k2/python/tests python -m pytest tests/kernels/test_k2compat.py -m "" -k k2s_own_tests
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.rnnt import arguments, op, pruning
from sumix_kernels.rnnt import torch as torch_pieces
from sumix_kernels.rnnt.lattice import whole_boundary
from sumix_kernels.rnnt.op import do_rnnt_pruning, rnnt_loss, rnnt_loss_pruned, rnnt_loss_smoothed
from sumix_kernels.rnnt.smoothed import smoothed_log_probs

__all__ = [
    "do_rnnt_pruning",
    "get_hat_logprobs_pruned",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "get_rnnt_prune_ranges_deprecated",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "with_cuda",
]

with_cuda = True  # k2: whether it was built for tensors on a GPU


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """RNN-T loss of the simple joiner lm (B, S+1, V) + am (B, T, V): `rnnt_loss_smoothed` without smoothing."""
    scales = {"lm_only_scale": 0.0, "am_only_scale": 0.0}
    lattice = {"boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": delay_penalty}
    result = {"reduction": reduction, "return_grad": return_grad, "backend": backend}
    return rnnt_loss_smoothed(lm, am, symbols, termination_symbol, **scales, **lattice, **result)


def get_rnnt_logprobs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """px and py of `rnnt_loss_simple` for the recursion, see `get_rnnt_logprobs_smoothed`."""
    return get_rnnt_logprobs_smoothed(lm, am, symbols, termination_symbol, 0.0, 0.0, boundary, rnnt_type)


def get_rnnt_logprobs_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> tuple[Tensor, Tensor]:
    """px and py of `rnnt_loss_smoothed` for the recursion, from lm (B, S+1, V) and am (B, T, V).

    py (B, S+1, T) are the log-probabilities of the termination symbol. px are those of the symbols: (B, S, T+1) for
    ``regular``, with -inf after the last frame; (B, S, T) otherwise, for ``constrained`` with the py that follows.
    """
    (B, T, V), S = arguments.shape_of("am", am, 3), symbols.shape[-1]
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, 0.0, B, T, V)
    arguments.check_shape("lm", lm, (B, S + 1, V))
    arguments.check_scales(lm_only_scale, am_only_scale)
    px, py = smoothed_log_probs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
    return _for_recursion(px, py, boundary, rnnt_type)


def get_rnnt_logprobs_joint(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """px and py of `rnnt_loss` for the recursion, from logits (B, T, S+1, V); see `get_rnnt_logprobs_smoothed`."""
    B, T, _, V = arguments.shape_of("logits", logits, 4)
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, 0.0, B, T, V)
    arguments.check_shape("logits", logits, (B, T, symbols.shape[1] + 1, V))
    px, py = torch_pieces.whole_log_probs(logits, symbols, termination_symbol)
    return _for_recursion(px, py, boundary, rnnt_type)


def get_rnnt_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    *,
    use_hat_loss: bool = False,
) -> tuple[Tensor, Tensor]:
    """px and py of `rnnt_loss_pruned` for the recursion, from logits (B, T, R, V) at the rows ``ranges`` (B, T, R).

    See `get_rnnt_logprobs_smoothed`; rows that were pruned have -inf.
    """
    B, T, R, V = arguments.shape_of("logits", logits, 4)
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, 0.0, B, T, V)
    arguments.check_ranges(ranges, (B, T, R), symbols.shape[1])
    if use_hat_loss:
        arguments.check_hat(logits)
    px, py = torch_pieces.pruned_log_probs(logits, symbols, ranges, termination_symbol, use_hat_loss)
    return _for_recursion(px, py, boundary, rnnt_type)


def get_hat_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> tuple[Tensor, Tensor]:
    """`get_rnnt_logprobs_pruned` of a hybrid autoregressive transducer, see `rnnt_loss_pruned`."""
    return get_rnnt_logprobs_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, use_hat_loss=True)


def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor | None, s_range: int, *, backend: str = "auto"
) -> Tensor:
    """Lattice rows to keep at each frame, (B, T, R) int64: `op.get_rnnt_prune_ranges`, made wider where it must be.

    ``regular`` paths emit at most R-1 symbols a frame. Where ``s_range`` is too small for some utterance's symbols, R
    is the smallest that lets each through, and a warning says so. R is at most S+1. The boundary is read on the host.
    """
    B, S, T, regular = arguments.check_arcs("px_grad", px_grad, "py_grad", py_grad)
    boundary = _boundary(boundary, px_grad, B, S, T)
    if regular:
        least = max((-(-symbols // max(frames, 1)) + 1 for symbols, frames in boundary[:, 2:].tolist()), default=2)
        if s_range < min(least, S + 1):
            warnings.warn(
                f"s_range = {s_range} lets no path through to the end of some utterance: {least} rows a frame are "
                f"kept; symbols {boundary[:, 2].tolist()}, frames {boundary[:, 3].tolist()}",
                stacklevel=2,
            )
            s_range = least
    return op.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range, backend=backend)


def get_rnnt_prune_ranges_deprecated(px_grad: Tensor, py_grad: Tensor, boundary: Tensor | None, s_range: int) -> Tensor:
    """Lattice rows to keep (B, T, R) as k2 chose them before `get_rnnt_prune_ranges`.

    Kept at frame t are the R rows from s on with the most arcs taken, ``sum((px_grad + py_grad)[s : s+R, t])``.
    """
    B, S, T, regular = arguments.check_arcs("px_grad", px_grad, "py_grad", py_grad)
    boundary = _boundary(boundary, px_grad, B, S, T)
    arguments.check_s_range(s_range, "regular" if regular else "modified")
    R = min(s_range, S + 1)
    taken = py_grad + torch.nn.functional.pad(px_grad[:, :, :T], (0, 0, 0, 1))
    start = taken.unfold(1, R, 1).sum(3).argmax(1)
    return pruning.admissible(start, boundary, R, stride=R - 1 if regular else 1)


def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False, *, backend: str = "auto"
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Result (B,) of the recursion above on any numbers px (B, S, T+1) or (B, S, T) and py (B, S+1, T).

    boundary (B, 4) is begin symbol, begin frame, end symbol, end frame; None: [0, 0, S, T]. What lies outside it is
    not read. -inf is allowed; where it leaves no path, the result is -inf with zero gradients.

    With ``return_grad`` also the gradients of the result's sum, (px_grad, py_grad): how often a path takes each step.
    They carry no gradient.
    """
    B, S, T, _ = arguments.check_arcs("px", px, "py", py)
    boundary = _boundary(boundary, px, B, S, T)
    dtype = torch.promote_types(torch.promote_types(px.dtype, py.dtype), torch.float32)
    px, py = px.to(dtype), py.to(dtype)
    pieces = backends.choose(backend, {"triton": op._triton, "torch": op._torch, "naive": op._naive}, px, py)()
    log_prob, px_grad, py_grad = pieces.mutual_information(px, py, boundary, return_grad)
    return (log_prob, (px_grad, py_grad)) if return_grad else log_prob


def joint_mutual_information_recursion(
    px: Sequence[Tensor], py: Sequence[Tensor], boundary: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """`mutual_information_recursion` of the sums of N terms px and py, divided among the terms: (N, B).

    A term's part is what it adds to the paths' scores on average. The log of a sum over paths is more than the
    average; the rest goes to the first part, so that the parts add up to the result. Gradients are the result's.
    """
    if len(px) != len(py) or not len(px):
        raise ValueError(f"px and py must have as many terms as one another, at least one; got {len(px)} and {len(py)}")
    for name, terms in (("px", px), ("py", py)):
        if len({term.shape for term in terms}) > 1:
            raise ValueError(f"terms of {name} must be of one shape, got {[tuple(term.shape) for term in terms]}")
    px, py = (torch.stack(tuple(terms)) for terms in (px, py))
    px, py = (terms.to(torch.promote_types(terms.dtype, torch.float32)) for terms in (px, py))
    total, grads = mutual_information_recursion(
        px.detach().sum(0), py.detach().sum(0), boundary, return_grad=True, backend=backend
    )
    # Steps never taken may cost infinitely much.
    parts = sum((torch.where(grad != 0, terms, 0) * grad).sum((2, 3)) for terms, grad in zip((px, py), grads))
    return torch.cat([parts[:1] + (total - parts.detach().sum(0)), parts[1:]])


def _for_recursion(px: Tensor, py: Tensor, boundary: Tensor | None, rnnt_type: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities px (B, S, T), py (B, S+1, T) as the recursion takes them."""
    if rnnt_type == "regular":
        px = torch.nn.functional.pad(px, (0, 1), value=float("-inf"))
        if boundary is not None:
            after = torch.arange(px.shape[2], device=px.device) == boundary[:, 3, None, None]
            px = px.masked_fill(after, float("-inf"))
    elif rnnt_type == "constrained":
        px = px + py[:, 1:]
    return px, py


def _boundary(boundary: Tensor | None, like: Tensor, B: int, S: int, T: int) -> Tensor:
    """The boundary (B, 4) after its checks; None means all of S symbols and T frames."""
    if boundary is None:
        return whole_boundary(like.new_empty(B, S), T)
    arguments.check_boundary(boundary, B, S, T)
    return boundary
