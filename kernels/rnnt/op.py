"""The pruned RNN-T loss and its pieces, by k2's names: checks, documentation, choice of backend.

B batch, S symbols, T frames, R lattice rows kept a frame, V vocabulary with the termination symbol (blank),
J joint dimension. Papers: Graves 2012, arXiv 1211.3711 (RNN-T); Kuang et al. 2022, arXiv 2206.13236 (pruning);
Kang et al. 2022, arXiv 2211.00490 (delay penalty).

Arguments that all losses share:

- symbols (B, S) int64, each in 0..V-1; what lies beyond an utterance's end is ignored.
- boundary (B, 4) int64: begin symbol, begin frame, end symbol, end frame of each utterance; None: [0, 0, S, T].
- rnnt_type: ``regular`` (any number of symbols a frame), ``modified`` (a symbol consumes its frame),
  ``constrained`` (as modified, and pays for the blank that could follow the symbol in its frame as well).
- delay_penalty: a symbol at frame t gains ``delay_penalty * ((end_frame - 1) / 2 - t)``.
- reduction: ``none`` (B,), ``mean`` over the batch, ``sum``.
- backend: ``triton`` (fp32 and half types); ``k2`` where it can be imported; ``torch``; ``naive`` (fp64 reference);
  ``auto``: on a GPU the first of them that runs, on the CPU torch.

Inputs may be fp16, bf16, fp32 or fp64. Normalisers are at least fp32, lattices fp64, losses at least fp32. Finite
inputs give finite gradients. An utterance without a path (see `has_path`) has loss +inf and zero gradients in the
single functions, so there reduce with ``none`` and select; `pruned_rnnt_loss` gives it loss 0 and says so.
"""

from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sumix_kernels import backend as backends
from sumix_kernels.rnnt import arguments, naive, pruning, via_k2
from sumix_kernels.rnnt import torch as torch_pieces
from sumix_kernels.rnnt.lattice import has_path, whole_boundary


class PrunedRnntLoss(NamedTuple):
    """Of each utterance: losses ``simple`` (B,) and ``pruned`` (B,), ``ranges`` (B, T, R), ``has_path`` (B,) bool."""

    simple: Tensor
    pruned: Tensor
    ranges: Tensor
    has_path: Tensor


class LinearLike(Protocol):
    """``weight`` (V, J) and ``bias`` (V,) or None."""

    weight: Tensor
    bias: Tensor | None


def pruned_rnnt_loss(
    enc_proj: Tensor,
    pred_proj: Tensor,
    joiner: LinearLike,
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    boundary: Tensor | None = None,
    *,
    s_range: int,
    termination_symbol: int = 0,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    lm_only_scale: float = 0.25,
    am_only_scale: float = 0.0,
    backend: str = "auto",
) -> PrunedRnntLoss:
    """Simple loss of am + lm, the lattice rows that it points to, and the loss of the true joiner on those rows.

    enc_proj (B, T, J), pred_proj (B, S+1, J), joiner with weight (V, J) and bias (V,), am (B, T, V), lm (B, S+1, V);
    logits are ``joiner(tanh(enc_proj[:, t] + pred_proj[:, s]))``, in autocast's dtype where it is on. The ``triton``
    and ``torch`` backends hold few of them at a time.

    Utterances without a path, in the lattice or after pruning (regular: more than T (s_range - 1) symbols), are left
    out: loss exactly 0, gradient exactly 0, ``has_path`` False. The others do not notice, unless
    ``am_only_scale > 0``, whose unigram is averaged over the batch. Nothing is copied from the device to the host.

    Raises ValueError for shapes that do not fit and arguments out of range.
    """
    (B, T, V), S = arguments.shape_of("am", am, 3), symbols.shape[-1]
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, delay_penalty, B, T, V)
    arguments.check_shape("lm", lm, (B, S + 1, V))
    J = arguments.shape_of("enc_proj", enc_proj, 3)[2]
    arguments.check_shape("enc_proj", enc_proj, (B, T, J))
    arguments.check_shape("pred_proj", pred_proj, (B, S + 1, J))
    arguments.check_shape("joiner.weight", joiner.weight, (V, J))
    if joiner.bias is not None:
        arguments.check_shape("joiner.bias", joiner.bias, (V,))
    arguments.check_scales(lm_only_scale, am_only_scale)
    arguments.check_s_range(s_range, rnnt_type)

    if boundary is None:
        boundary = whole_boundary(symbols, T)
    R = min(s_range, S + 1)
    found = has_path(boundary, rnnt_type, s_range=R)
    # Those without a path become an utterance of one blank, so that no infinity arises to be masked.
    one_blank = torch.zeros_like(boundary)
    one_blank[:, 3] = min(T, 1)
    boundary = torch.where(found[:, None], boundary, one_blank)

    pieces = _pieces(backend, am, lm, enc_proj, pred_proj, joiner.weight, joiner.bias)
    lattice = {"boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": delay_penalty}
    simple, px_grad, py_grad = pieces.rnnt_loss_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, **lattice
    )
    ranges = pieces.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)
    if hasattr(pieces, "rnnt_loss_joint"):
        pruned = pieces.rnnt_loss_joint(
            enc_proj,
            pred_proj,
            joiner.weight,
            joiner.bias,
            symbols,
            ranges,
            termination_symbol,
            dtype=_product_dtype(enc_proj, pred_proj),
            **lattice,
        )
    else:
        enc, pred = pruning.prune(enc_proj, pred_proj, ranges)
        logits = torch.nn.functional.linear(torch.tanh(enc + pred), joiner.weight, joiner.bias)
        pruned = pieces.rnnt_loss_pruned(logits, symbols, ranges, termination_symbol, **lattice)
    return PrunedRnntLoss(torch.where(found, simple, 0.0), torch.where(found, pruned, 0.0), ranges, found)


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """RNN-T loss of the simple joiner lm (B, S+1, V) + am (B, T, V), smoothed (arXiv 2206.13236, 3.3).

    Log-probabilities are ``lm_only_scale`` parts those of lm alone, ``am_only_scale`` parts those of am with lm's
    average over the batch, and the rest those of the sum.

    With ``return_grad`` also (px_grad, py_grad), how often a path takes each arc: px_grad (B, S, T+1) (``regular``) or
    (B, S, T) for symbols, py_grad (B, S+1, T) for blanks; they carry no gradient.
    """
    (B, T, V), S = arguments.shape_of("am", am, 3), symbols.shape[-1]
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, delay_penalty, B, T, V)
    arguments.check_shape("lm", lm, (B, S + 1, V))
    arguments.check_scales(lm_only_scale, am_only_scale)
    arguments.check_reduction(reduction)
    boundary = whole_boundary(symbols, T) if boundary is None else boundary
    loss, px_grad, py_grad = _pieces(backend, lm, am).rnnt_loss_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
    )
    loss = arguments.REDUCTIONS[reduction](loss)
    return (loss, (px_grad, py_grad)) if return_grad else loss


def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int, *, backend: str = "auto"
) -> Tensor:
    """Lattice rows to keep at each frame, (B, T, R) int64 with R = min(s_range, S+1) (arXiv 2206.13236, 3.2).

    px_grad and py_grad are those of `rnnt_loss_smoothed`. Rows of a frame are consecutive; their first is 0 at frame
    0, never decreases, and rises by at most R-1 a frame (1 where px_grad has T columns: modified, constrained).
    """
    B, _, _, regular = arguments.check_arcs("px_grad", px_grad, "py_grad", py_grad)
    arguments.check_shape("boundary", boundary, (B, 4))
    arguments.check_s_range(s_range, "regular" if regular else "modified")
    return _pieces(backend, px_grad, py_grad).get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder and predictor outputs at the kept rows: am (B, T, J), lm (B, S+1, K) -> (B, T, R, J), (B, T, R, K).

    am's result is expanded, not copied. ranges (B, T, R) as from `get_rnnt_prune_ranges`.
    """
    B, T, _ = arguments.shape_of("am", am, 3)
    _, S1, K = arguments.shape_of("lm", lm, 3)
    arguments.check_shape("lm", lm, (B, S1, K))
    arguments.check_shape("ranges", ranges, (B, T, arguments.shape_of("ranges", ranges, 3)[2]))
    return pruning.prune(am, lm, ranges)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """RNN-T loss from the joiner's logits (B, T, R, V) at the lattice rows ``ranges`` (B, T, R).

    With ``use_hat_loss`` the logits are those of a hybrid autoregressive transducer (arXiv 2003.07705): termination has
    probability sigmoid(its logit), the other symbols share the rest by their softmax.
    """
    B, T, R, V = arguments.shape_of("logits", logits, 4)
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, delay_penalty, B, T, V)
    arguments.check_ranges(ranges, (B, T, R), symbols.shape[1])
    if use_hat_loss:
        arguments.check_hat(logits)
    arguments.check_reduction(reduction)
    boundary = whole_boundary(symbols, T) if boundary is None else boundary
    loss = _pieces(backend, logits).rnnt_loss_pruned(
        logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, use_hat_loss
    )
    return arguments.REDUCTIONS[reduction](loss)


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    *,
    backend: str = "auto",
) -> Tensor:
    """RNN-T loss from the joiner's logits (B, T, S+1, V) on the whole lattice."""
    B, T, _, V = arguments.shape_of("logits", logits, 4)
    arguments.check_lattice(symbols, termination_symbol, boundary, rnnt_type, delay_penalty, B, T, V)
    arguments.check_shape("logits", logits, (B, T, symbols.shape[1] + 1, V))
    arguments.check_reduction(reduction)
    boundary = whole_boundary(symbols, T) if boundary is None else boundary
    loss = _pieces(backend, logits).rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty)
    return arguments.REDUCTIONS[reduction](loss)


def _pieces(backend: str, *tensors: Tensor | None) -> ModuleType:
    """The backend's module. A backend asked for by name is that one or an error."""
    backend = backends.resolve(backend)
    names = ("auto", "k2", *backends.BACKENDS)
    if backend not in names:
        raise ValueError(f"backend must be one of {', '.join(map(repr, names))}, got {backend!r}")
    if backend == "k2":
        via_k2.load_k2()
        return via_k2
    pieces = backends.choose(backend, {"triton": _triton, "torch": _torch, "naive": _naive}, *tensors)()
    if backend == "auto" and pieces is torch_pieces and tensors[0].is_cuda and via_k2.importable():
        return via_k2
    return pieces


def _triton() -> ModuleType:
    from sumix_kernels.rnnt import triton as triton_pieces

    return triton_pieces


def _torch() -> ModuleType:
    return torch_pieces


def _naive() -> ModuleType:
    return naive


def _product_dtype(enc: Tensor, pred: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(enc.device.type):
        return torch.get_autocast_dtype(enc.device.type)
    return torch.promote_types(enc.dtype, pred.dtype)
