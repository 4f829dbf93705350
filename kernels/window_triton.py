"""Decayed sums over windows of rows on a GPU, in linear time for every width; see `windowed_rows`.

B batch, N rows, D channels, L rows of left context. Rows are cut into blocks of `BLOCK`. A window that ends in block j
is: the part of block j up to its end; the blocks that lie whole inside it, a window over block sums, found by the same
algorithm one level up; and its head in two blocks further left. So every level does a constant number of products of
(BLOCK, BLOCK) weights with rows, and the next level has 1/BLOCK of the rows. Nothing is ever subtracted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sumix_kernels.launch import cdiv, on_device, power_of_2

BLOCK = 64
_DIRECT = 3 * BLOCK  # windows up to this many rows are read row by row


def windowed_rows(
    rows: Tensor,
    left: int | Tensor,
    log_decay: float = 0.0,
    *,
    reverse: bool = False,
    counts: Tensor | None = None,
    divide: str = "",
    out: Tensor | None = None,
) -> Tensor:
    """out_n = sum over m in max(0, n-L)..n of exp(log_decay * (n - m)) rows_m, in fp32.

    Args:
        rows: (B, N, D), any float type and strides.
        left: L >= 0, or int64 (B,) on rows' device; N or more is unlimited, a negative one an empty window.
        reverse: the transpose, a sum over m in n..min(N-1, n+L).
        counts: (B, N) fp32; with divide "before" rows are divided by it as they are read, with "after" the result is.
        out: (B, N, D) contiguous, of the type that the result shall have; default fp32.
    """
    assert divide in ("", "before", "after") and (counts is None) == (not divide)
    B, N, D = rows.shape
    out = rows.new_empty(rows.shape, dtype=torch.float32) if out is None else out
    if not out.numel():
        return out
    per_utterance = isinstance(left, Tensor)
    left = left.clamp(max=N) if per_utterance else min(left, N)
    blocks = cdiv(N, BLOCK)
    block_d = power_of_2(D, 16, 32)
    middle = None
    with on_device(rows):
        if blocks > cdiv(_DIRECT, BLOCK) and (per_utterance or left > _DIRECT):
            block_sums = rows.new_empty((B, blocks, D), dtype=torch.float32)
            _block_sums_kernel[(blocks, cdiv(D, block_d), B)](
                rows, counts if divide == "before" else None, block_sums,
                N, D, log_decay, *rows.stride(), BLOCK, block_d, reverse,
            )  # fmt: skip
            left_blocks = (left + BLOCK - 1).div(BLOCK, rounding_mode="floor") if per_utterance else cdiv(left, BLOCK)
            middle = windowed_rows(block_sums, left_blocks - 3, log_decay * BLOCK)
        _windows_kernel[(blocks, cdiv(D, block_d), B)](
            rows, middle, counts, out, left if per_utterance else None,
            N, D, 0 if per_utterance else left, log_decay, *rows.stride(),
            BLOCK, 16, block_d, reverse, divide == "before", divide == "after",
        )  # fmt: skip
    return out


@triton.jit
def _load_rows(p_rows, p_counts, i_b, o_n, o_d, num_rows, D, stride_b, stride_n, stride_d, REVERSE, DIVIDE):
    """Rows o_n (mirrored if REVERSE) as fp32, zero outside 0..N-1."""
    o_row = num_rows - 1 - o_n if REVERSE else o_n
    m_row = (o_row >= 0) & (o_row < num_rows)
    p = p_rows + i_b * stride_b + o_row[:, None].to(tl.int64) * stride_n + o_d[None, :] * stride_d
    b_rows = tl.load(p, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
    if DIVIDE:
        b_rows /= tl.load(p_counts + i_b * num_rows + o_row, mask=m_row, other=1.0)[:, None]
    return b_rows


@triton.jit(do_not_specialize=["num_rows"])
def _block_sums_kernel(
    p_rows, p_counts, p_sums, num_rows, D, log_decay, stride_b, stride_n, stride_d,
    BN: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Decayed sum of each block, as seen from its last row."""
    i_n, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_n, o_d = i_n * BN + tl.arange(0, BN), i_d * BD + tl.arange(0, BD)
    DIVIDE: tl.constexpr = p_counts is not None
    b_rows = _load_rows(
        p_rows, p_counts, i_b, o_n, o_d, num_rows, D, stride_b, stride_n, stride_d, REVERSE, DIVIDE
    )  # fmt: skip
    b_weights = tl.exp(log_decay * (BN - 1 - tl.arange(0, BN)).to(tl.float32))
    b_sum = tl.sum(b_rows * b_weights[:, None], 0)
    p = p_sums + (i_b * tl.num_programs(0) + i_n) * D + o_d
    tl.store(p, b_sum, mask=o_d < D)


@triton.jit(do_not_specialize=["num_rows", "left"])
def _windows_kernel(
    p_rows, p_middle, p_counts, p_out, p_left, num_rows, D, left, log_decay, stride_b, stride_n, stride_d,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    REVERSE: tl.constexpr, DIVIDE_BEFORE: tl.constexpr, DIVIDE_AFTER: tl.constexpr,
):  # fmt: skip
    i_n, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_n, o_d = i_n * BN + tl.arange(0, BN), i_d * BD + tl.arange(0, BD)
    if p_left is not None:
        left = tl.load(p_left + i_b).to(tl.int32)
    head = tl.maximum(i_n * BN - left, 0) // BK * BK
    head_end = i_n * BN
    b_acc = tl.zeros([BN, BD], dtype=tl.float32)
    if p_middle is not None:
        i_first = i_n - (left + BN - 1) // BN  # the leftmost block that a row of this one sees
        head_end = tl.minimum(i_first + 2, i_n) * BN
        if i_n > 0:
            p = p_middle + (i_b * tl.num_programs(0) + i_n - 1) * D + o_d
            b_middle = tl.load(p, mask=o_d < D, other=0.0)
            b_acc += tl.exp(log_decay * (1 + tl.arange(0, BN)).to(tl.float32))[:, None] * b_middle[None, :]
    for m in range(head, head_end, BK):
        b_acc = _add_rows(
            b_acc, p_rows, p_counts, i_b, m, o_n, o_d, num_rows, D, left, log_decay, stride_b, stride_n, stride_d,
            BK, REVERSE, DIVIDE_BEFORE,
        )  # fmt: skip
    for m in range(i_n * BN, tl.minimum((i_n + 1) * BN, num_rows), BK):
        b_acc = _add_rows(
            b_acc, p_rows, p_counts, i_b, m, o_n, o_d, num_rows, D, left, log_decay, stride_b, stride_n, stride_d,
            BK, REVERSE, DIVIDE_BEFORE,
        )  # fmt: skip
    o_row = num_rows - 1 - o_n if REVERSE else o_n
    m_row = (o_row >= 0) & (o_row < num_rows)
    if DIVIDE_AFTER:
        b_acc /= tl.load(p_counts + i_b * num_rows + o_row, mask=m_row, other=1.0)[:, None]
    p = p_out + (i_b * num_rows + o_row[:, None]) * D + o_d[None, :]
    tl.store(p, b_acc.to(p_out.dtype.element_ty), mask=m_row[:, None] & (o_d < D)[None, :])


@triton.jit
def _add_rows(
    b_acc, p_rows, p_counts, i_b, m, o_n, o_d, num_rows, D, left, log_decay, stride_b, stride_n, stride_d,
    BK: tl.constexpr, REVERSE: tl.constexpr, DIVIDE: tl.constexpr,
):  # fmt: skip
    o_m = m + tl.arange(0, BK)
    b_rows = _load_rows(
        p_rows, p_counts, i_b, o_m, o_d, num_rows, D, stride_b, stride_n, stride_d, REVERSE, DIVIDE
    )  # fmt: skip
    o_behind = o_n[:, None] - o_m[None, :]
    b_weights = tl.exp(log_decay * tl.maximum(o_behind, 0).to(tl.float32))
    b_weights = tl.where((o_behind >= 0) & (o_behind <= left), b_weights, 0.0)
    return tl.dot(b_weights, b_rows, b_acc, input_precision="ieee")
