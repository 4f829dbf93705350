"""The pruned RNN-T pieces in PyTorch: any device, autograd, half-precision inputs. Meanings: op.py's docstrings."""

import torch
from torch import Tensor

from sumix_kernels.rnnt.joint import hat_log_probs, joint_log_probs, row_symbols, selected_log_probs
from sumix_kernels.rnnt.lattice import lattice_log_prob, open_lattice_log_prob
from sumix_kernels.rnnt.pruning import prune_ranges as get_rnnt_prune_ranges  # noqa: F401  one of the pieces
from sumix_kernels.rnnt.pruning import unprune
from sumix_kernels.rnnt.smoothed import smoothed_log_probs


def mutual_information(px, py, boundary, with_occupations) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return open_lattice_log_prob(lattice_log_prob, px, py, boundary, with_occupations)


def rnnt_loss_smoothed(
    lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
) -> tuple[Tensor, Tensor, Tensor]:
    px, py = smoothed_log_probs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
    log_prob, px_grad, py_grad = lattice_log_prob(px, py, boundary, rnnt_type, delay_penalty, with_occupations=True)
    if rnnt_type == "regular":  # k2's regular lattice has a column after the last frame, where no symbol may follow
        px_grad = torch.nn.functional.pad(px_grad, (0, 1))
    return -log_prob, px_grad, py_grad


def rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty) -> Tensor:
    px, py = whole_log_probs(logits, symbols, termination_symbol)
    return -lattice_log_prob(px, py, boundary, rnnt_type, delay_penalty)[0]


def rnnt_loss_pruned(
    logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, use_hat_loss=False
) -> Tensor:
    px, py = pruned_log_probs(logits, symbols, ranges, termination_symbol, use_hat_loss)
    return -lattice_log_prob(px, py, boundary, rnnt_type, delay_penalty)[0]


def whole_log_probs(logits, symbols, termination_symbol) -> tuple[Tensor, Tensor]:
    """px (B, S, T) of the symbols and py (B, S+1, T) of termination, from logits (B, T, S+1, V)."""
    targets = torch.nn.functional.pad(symbols, (0, 1), value=termination_symbol)[:, None].expand(logits.shape[:3])
    x, y = selected_log_probs(logits, targets, termination_symbol)
    return x[:, :, :-1].transpose(1, 2), y.transpose(1, 2)


def pruned_log_probs(logits, symbols, ranges, termination_symbol, use_hat_loss=False) -> tuple[Tensor, Tensor]:
    """px (B, S, T) and py (B, S+1, T) from logits (B, T, R, V) at the rows ``ranges``; -inf where pruned."""
    log_probs = hat_log_probs if use_hat_loss else selected_log_probs
    x, y = log_probs(logits, row_symbols(symbols, ranges, termination_symbol), termination_symbol)
    num_rows = symbols.shape[1] + 1
    return unprune(x, ranges, num_rows)[:, :-1], unprune(y, ranges, num_rows)


def rnnt_loss_joint(
    enc, pred, weight, bias, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, dtype
) -> Tensor:
    """`rnnt_loss_pruned` of ``tanh(enc + pruned pred) @ weight.T + bias`` computed in ``dtype``, without the logits."""
    targets = row_symbols(symbols, ranges, termination_symbol)
    x, y = joint_log_probs(enc, pred, weight, bias, ranges, targets, termination_symbol, dtype=dtype)
    num_rows = symbols.shape[1] + 1
    px, py = unprune(x, ranges, num_rows)[:, :-1], unprune(y, ranges, num_rows)
    return -lattice_log_prob(px, py, boundary, rnnt_type, delay_penalty)[0]
