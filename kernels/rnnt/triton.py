"""The pruned RNN-T pieces in Triton: CUDA, or CPU tensors in its interpreter. Meanings: op.py's docstrings.

Losses are fp32 and so are lattices' arcs; only what lies within an utterance's boundary is read. Rows of `ranges` are
taken to be as `get_rnnt_prune_ranges` gives them: neighbours, with a first row that never decreases.
"""

import torch
from torch import Tensor

from sumix_kernels.rnnt.joint import hat_log_probs, row_symbols
from sumix_kernels.rnnt.joint_triton import joint_log_probs
from sumix_kernels.rnnt.lattice import open_lattice_log_prob
from sumix_kernels.rnnt.lattice_triton import lattice_log_prob
from sumix_kernels.rnnt.pruning_triton import prune_ranges as get_rnnt_prune_ranges  # noqa: F401  one of the pieces
from sumix_kernels.rnnt.selected_triton import selected_log_probs
from sumix_kernels.rnnt.smoothed import add_acoustic_log_probs
from sumix_kernels.rnnt.smoothed_triton import smoothed_log_probs


def mutual_information(px, py, boundary, with_occupations) -> tuple[Tensor, Tensor, Tensor]:
    def lattice(px, py, *arguments):
        return lattice_log_prob(px, py, None, px.shape[1], *arguments)

    return open_lattice_log_prob(lattice, px, py, boundary, with_occupations)


def rnnt_loss_smoothed(
    lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
) -> tuple[Tensor, Tensor, Tensor]:
    regular = rnnt_type == "regular"
    sum_scale = 1.0 - lm_only_scale - am_only_scale
    px, py, *_ = smoothed_log_probs(lm, am, symbols, boundary, termination_symbol, sum_scale, lm_only_scale, regular)
    if am_only_scale != 0.0:
        px, py = add_acoustic_log_probs(px, py, lm.float(), am.float(), symbols, termination_symbol, am_only_scale)
    log_prob, px_grad, py_grad = lattice_log_prob(
        px, py, None, symbols.shape[1], boundary, rnnt_type, delay_penalty, with_occupations=True
    )
    if regular:  # k2's regular lattice has a column after the last frame, where no symbol may follow
        px_grad = torch.nn.functional.pad(px_grad, (0, 1))
    return -log_prob, px_grad, py_grad


def rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty) -> Tensor:
    return _selected_loss(logits, symbols, None, termination_symbol, boundary, rnnt_type, delay_penalty)


def rnnt_loss_pruned(
    logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, use_hat_loss=False
) -> Tensor:
    start = ranges[:, :, 0].contiguous()
    if use_hat_loss:
        x, y = hat_log_probs(logits, row_symbols(symbols, ranges, termination_symbol), termination_symbol)
        return _loss(x, y, start, symbols, boundary, rnnt_type, delay_penalty)
    return _selected_loss(logits, symbols, start, termination_symbol, boundary, rnnt_type, delay_penalty)


def rnnt_loss_joint(
    enc, pred, weight, bias, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, dtype
) -> Tensor:
    """`rnnt_loss_pruned` of ``tanh(enc + pruned pred) @ weight.T + bias`` computed in ``dtype``, without the logits."""
    x, y = joint_log_probs(enc, pred, weight, bias, symbols, ranges, boundary, termination_symbol, dtype=dtype)
    return _loss(x, y, ranges[:, :, 0].contiguous(), symbols, boundary, rnnt_type, delay_penalty)


def _selected_loss(logits, symbols, start, termination_symbol, boundary, rnnt_type, delay_penalty) -> Tensor:
    diagonal = start is None and rnnt_type == "regular"
    x, y, _ = selected_log_probs(logits, symbols, start, boundary, termination_symbol, diagonal)
    return _loss(x, y, start, symbols, boundary, rnnt_type, delay_penalty)


def _loss(x, y, start, symbols, boundary, rnnt_type, delay_penalty) -> Tensor:
    px, py = x.transpose(1, 2), y.transpose(1, 2)
    return -lattice_log_prob(px, py, start, symbols.shape[1], boundary, rnnt_type, delay_penalty)[0]
