"""joint.py's fused joiner for a GPU: cuBLAS multiplies tiles of rows, Triton does all that lies between.

B batch, T frames, R lattice rows a frame, V vocabulary, J joint dimension. A tile is a run of frames (of all
utterances, one after another) with their R rows each. Three buffers of a tile's size are all that is held: activations,
their gradients, and logits, which become their own gradients in place; the backward pass makes each tile again.

Every sum has one order. enc's gradient sums the R rows of a frame. pred's row s is used by the frames whose first row
lies in s-R+1 .. s, which are neighbours, since first rows never decrease: one program walks through them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from sumix_kernels.launch import cdiv, on_device, power_of_2
from sumix_kernels.rnnt.selected_triton import blocks, log_probs_kernel, logits_grad_kernel, row_chunks

# Small enough for the tile to stay in an H100's or A100's second-level cache between the kernels that pass it on, large
# enough for a product to fill the GPU.
_LOGITS_BYTES, _TILE_BYTES = 32 << 20, 64 << 20
# Rows of logits begin at multiples of this many elements: cuBLAS and vector loads want them aligned.
_ALIGNED = 16


@triton.jit
def _frames(frame, end_frame, boundary, num_frames):
    """Batch member of each of the frames, and whether they lie within its boundary."""
    i_b = frame // num_frames
    t = frame - i_b * num_frames
    m = frame < end_frame
    boundary += 4 * i_b
    return i_b, m & (t >= tl.load(boundary + 1, mask=m, other=0)) & (t < tl.load(boundary + 3, mask=m, other=0))


@triton.jit(do_not_specialize=["first_frame", "end_frame", "num_nodes", "num_frames"])
def hidden_kernel(
    enc,
    pred,
    start,
    boundary,
    hidden,
    first_frame,
    end_frame,
    num_nodes,
    num_frames,
    J,
    R: tl.constexpr,
    BF: tl.constexpr,
    BJ: tl.constexpr,
):
    """tanh(enc + pred) of the rows of a tile; zero outside the boundary."""
    i_frame = tl.program_id(0) * BF
    o_f, o_j = tl.arange(0, BF), tl.program_id(1) * BJ + tl.arange(0, BJ)
    frame = first_frame + i_frame + o_f
    i_b, m_f = _frames(frame, end_frame, boundary, num_frames)
    m_j = o_j < J
    m = m_f[:, None] & m_j[None]
    p_enc = enc + (first_frame + i_frame).to(tl.int64) * J + (o_f * J)[:, None] + o_j[None]
    b_enc = tl.load(p_enc, mask=m, other=0.0).to(tl.float32)
    b_node = i_b.to(tl.int64) * num_nodes + tl.load(start + frame, mask=m_f, other=0)
    p_pred = pred + (b_node * J)[:, None] + o_j[None]
    o = i_frame.to(tl.int64) * R * J + (o_f * R * J)[:, None] + o_j[None]
    m_out = (frame < end_frame)[:, None] & m_j[None]
    for r in range(R):
        b_pred = tl.load(p_pred + r * J, mask=m, other=0.0).to(tl.float32)
        b_sum = b_enc + b_pred
        b_exp = tl.exp(-2.0 * tl.abs(b_sum))
        b_tanh = (1.0 - b_exp) / (1.0 + b_exp)
        b_tanh = tl.where(b_sum < 0.0, -b_tanh, b_tanh)
        tl.store(hidden + o + r * J, b_tanh.to(hidden.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["first_frame", "end_frame"])
def enc_grad_kernel(
    hidden_grad,
    hidden,
    scale,
    enc_grad,
    first_frame,
    end_frame,
    J,
    R: tl.constexpr,
    BF: tl.constexpr,
    BJ: tl.constexpr,
):
    """Gradient of enc at a tile's frames, times scale."""
    i_frame = tl.program_id(0).to(tl.int64) * BF
    o_f, o_j = tl.arange(0, BF), tl.program_id(1) * BJ + tl.arange(0, BJ)
    m = (first_frame + i_frame + o_f < end_frame)[:, None] & (o_j < J)[None]
    o = i_frame * R * J + (o_f * R * J)[:, None] + o_j[None]
    b_sum = tl.zeros([BF, BJ], tl.float32)
    for r in range(R):
        b_hidden = tl.load(hidden + o + r * J, mask=m, other=0.0).to(tl.float32)
        b_grad = tl.load(hidden_grad + o + r * J, mask=m, other=0.0).to(tl.float32)
        b_sum += b_grad * (1.0 - b_hidden * b_hidden)
    if scale is not None:
        b_sum *= tl.load(scale)
    p_out = enc_grad + (first_frame + i_frame) * J + (o_f * J)[:, None] + o_j[None]
    tl.store(p_out, b_sum.to(enc_grad.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["first_frame", "end_frame", "first_node", "num_nodes", "num_frames"])
def pred_grad_kernel(
    hidden_grad,
    hidden,
    start,
    users,
    pred_grad,
    first_frame,
    end_frame,
    first_node,
    num_nodes,
    num_frames,
    J,
    R: tl.constexpr,
    BF: tl.constexpr,
    BJ: tl.constexpr,
):
    """Adds to pred's gradient, a node (batch member, row) a program, what a tile's frames give it."""
    i_node = first_node + tl.program_id(0).to(tl.int64)
    o_j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    i_b = i_node // num_nodes
    s = i_node - i_b * num_nodes
    begin = tl.maximum(i_b * num_frames + tl.load(users + 2 * i_node), first_frame)
    end = tl.minimum(i_b * num_frames + tl.load(users + 2 * i_node + 1), end_frame)
    if begin < end:
        b_sum = tl.zeros([BF, BJ], tl.float32)
        for i_frame in range(begin, end, BF):
            frame = i_frame + tl.arange(0, BF)
            m_f = frame < end
            row = (frame - first_frame) * R + s - tl.load(start + frame, mask=m_f, other=0)
            o = (row * J)[:, None] + o_j[None]
            m = m_f[:, None] & (o_j < J)[None]
            b_hidden = tl.load(hidden + o, mask=m, other=0.0).to(tl.float32)
            b_grad = tl.load(hidden_grad + o, mask=m, other=0.0).to(tl.float32)
            b_sum += b_grad * (1.0 - b_hidden * b_hidden)
        p_out = pred_grad + i_node * J + o_j
        b_out = tl.load(p_out, mask=o_j < J, other=0.0) + tl.sum(b_sum, 0)
        tl.store(p_out, b_out, mask=o_j < J)


def joint_log_probs(
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    blank: int,
    *,
    dtype: torch.dtype,
    tile_bytes: int = _TILE_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T, R) fp32 of the rows' symbols and of blank; see `joint.joint_log_probs`.

    The rows of a frame follow its first, which never decreases over frames. Rows outside the boundary are not written.
    ``tile_bytes`` bounds the three buffers.
    """
    R, (V, J) = ranges.shape[2], weight.shape
    width = cdiv(V, _ALIGNED) * _ALIGNED
    rows = min(_LOGITS_BYTES // width, tile_bytes // (width + 2 * J)) // dtype.itemsize
    frames_per_tile = max(1, min(rows // R, enc.shape[0] * enc.shape[1]))
    start = ranges[:, :, 0].contiguous()
    x, y, _ = _joint(enc, pred, weight, bias, symbols, start, boundary, blank, R, dtype, frames_per_tile)
    return x, y


class _Tiles:
    """Contiguous inputs, the buffers of a tile, and the launches that forward and backward pass share."""

    def __init__(self, enc, pred, weight, bias, symbols, start, boundary, blank, R, dtype, frames_per_tile):
        self.enc, self.pred, self.symbols, self.start, self.boundary = (
            x.contiguous() for x in (enc, pred, symbols, start, boundary)
        )
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.contiguous()
        (self.B, self.T, self.J), self.V = enc.shape, weight.shape[0]
        self.blank, self.R, self.frames_per_tile = blank, R, frames_per_tile
        self.width = cdiv(self.V, _ALIGNED) * _ALIGNED
        self._logits = enc.new_empty(frames_per_tile * R, self.width, dtype=dtype)
        self._hidden = enc.new_empty(frames_per_tile * R, self.J, dtype=dtype)
        self.block = {"BF": 4, "BJ": power_of_2(self.J, least=16, most=256)}
        self.j_blocks = cdiv(self.J, self.block["BJ"])

    def __iter__(self):
        """Of each tile: first and end frame, activations (rows, J), logits (rows, V), without the bias."""
        for first in range(0, self.B * self.T, self.frames_per_tile):
            end = min(first + self.frames_per_tile, self.B * self.T)
            rows = (end - first) * self.R
            hidden, logits = self._hidden[:rows], self._logits[:rows, : self.V]
            hidden_kernel[(cdiv(end - first, self.block["BF"]), self.j_blocks)](
                self.enc, self.pred, self.start, self.boundary, hidden,
                first, end, self.pred.shape[1], self.T, self.J, R=self.R, **self.block,
            )  # fmt: skip
            torch.mm(hidden, self.weight.T, out=logits)
            yield first, end, hidden, logits


@library.custom_op("sumix::rnnt_joint_log_probs", mutates_args=())
def _joint(
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    start: Tensor,
    boundary: Tensor,
    blank: int,
    R: int,
    dtype: torch.dtype,
    frames_per_tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, norm = (enc.new_empty((*start.shape, R), dtype=torch.float32) for _ in range(3))
    assert norm.numel() < 2**31, norm.shape
    if x.numel():
        with on_device(enc), torch.autocast(enc.device.type, enabled=False):
            tiles = _Tiles(enc, pred, weight, bias, symbols, start, boundary, blank, R, dtype, frames_per_tile)
            block = blocks(tiles.V)
            for first, end, _, logits in tiles:
                log_probs_kernel[(cdiv((end - first) * R, block["BR"]),)](
                    logits, tiles.bias, tiles.symbols, tiles.start, tiles.boundary, x, y, norm,
                    first * R, end * R, symbols.shape[1], tiles.T, tiles.V, tiles.width, *x.stride(),
                    R=R, BLANK=blank, **block,
                )  # fmt: skip
    return x, y, norm


@_joint.register_fake
def _(enc, pred, weight, bias, symbols, start, boundary, blank, R, dtype, frames_per_tile):
    return tuple(enc.new_empty((*start.shape, R), dtype=torch.float32) for _ in range(3))


@library.custom_op("sumix::rnnt_joint_log_probs_backward", mutates_args=())
def _joint_backward(
    x_grad: Tensor,
    y_grad: Tensor,
    norm: Tensor,
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    start: Tensor,
    boundary: Tensor,
    blank: int,
    R: int,
    dtype: torch.dtype,
    frames_per_tile: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of enc, pred, weight and bias (empty without one), in their types."""
    x_grad, y_grad = x_grad.contiguous(), y_grad.contiguous()
    enc_grad = enc.new_empty(enc.shape)
    pred_grad, weight_grad = (torch.zeros_like(x, dtype=torch.float32) for x in (pred, weight))
    if not x_grad.numel():
        return enc_grad, pred_grad.to(pred.dtype), weight_grad.to(weight.dtype), _bias_like(weight, bias).zero_()
    with on_device(enc), torch.autocast(enc.device.type, enabled=False):
        scale = None
        if dtype == torch.float16:
            # Loss scaling must not push fp16 products out of range: they are taken on gradients of at most 1/4.
            scale = 4 * torch.maximum(x_grad.abs().amax(), y_grad.abs().amax()).clamp_min(1e-30)
        tiles = _Tiles(enc, pred, weight, bias, symbols, start, boundary, blank, R, dtype, frames_per_tile)
        users = _users(tiles.start, tiles.boundary, pred.shape[1], R)
        hidden_grads = enc.new_empty(frames_per_tile * R, tiles.J, dtype=dtype)
        block = blocks(tiles.V)
        chunks, rows_per_program = row_chunks(frames_per_tile * R, tiles.V)
        bias_grads = None if bias is None else norm.new_zeros(chunks, tiles.V)
        for first, end, hidden, logits in tiles:
            logits_grad_kernel[(cdiv(tiles.V, block["BV"]), chunks)](
                x_grad, y_grad, scale, logits, tiles.bias, tiles.symbols, tiles.start, tiles.boundary, norm,
                logits, bias_grads, first * R, end * R, rows_per_program, symbols.shape[1], tiles.T,
                tiles.V, tiles.width, R=R, BLANK=blank, **block,
            )  # fmt: skip
            _add_product(weight_grad, logits.T, hidden)
            hidden_grad = torch.mm(logits, tiles.weight, out=hidden_grads[: len(hidden)])
            enc_grad_kernel[(cdiv(end - first, tiles.block["BF"]), tiles.j_blocks)](
                hidden_grad, hidden, scale, enc_grad, first, end, tiles.J, R=R, **tiles.block
            )
            first_node = first // tiles.T * pred.shape[1]
            num_nodes = (cdiv(end, tiles.T) - first // tiles.T) * pred.shape[1]
            pred_grad_kernel[(num_nodes, tiles.j_blocks)](
                hidden_grad, hidden, tiles.start, users, pred_grad,
                first, end, first_node, pred.shape[1], tiles.T, tiles.J, R=R, **tiles.block,
            )  # fmt: skip
    bias_grad = _bias_like(weight, bias) if bias_grads is None else bias_grads.sum(0)
    grads = pred_grad, weight_grad, bias_grad
    if scale is not None:
        grads = (grad * scale for grad in grads)
    likes = pred, weight, weight if bias is None else bias
    return enc_grad, *(grad.to(like.dtype) for grad, like in zip(grads, likes))


def _bias_like(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_empty(0) if bias is None else torch.empty_like(bias)


def _users(start: Tensor, boundary: Tensor, num_rows: int, R: int) -> Tensor:
    """First and end frame that keep each of pred's rows: (B, num_rows, 2) int64."""
    rows = torch.arange(num_rows, device=start.device).expand(len(start), -1).contiguous()
    users = torch.stack(
        [torch.searchsorted(start, rows - R, right=True), torch.searchsorted(start, rows, right=True)], 2
    )
    return torch.minimum(torch.maximum(users, boundary[:, 1, None, None]), boundary[:, 3, None, None])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in total's fp32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total += a @ b


@_joint_backward.register_fake
def _(x_grad, y_grad, norm, enc, pred, weight, bias, *_):
    return *(x.new_empty(x.shape) for x in (enc, pred, weight)), _bias_like(weight, bias)


def _setup_context(ctx, inputs, output):
    ctx.options = inputs[7:]
    ctx.save_for_backward(output[2], *inputs[:7])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, x_grad, y_grad, _):
    *grads, bias_grad = _joint_backward(x_grad, y_grad, *ctx.saved_tensors, *ctx.options)
    return *grads, None if ctx.saved_tensors[4] is None else bias_grad, *(None,) * 7


_joint.register_autograd(_backward, setup_context=_setup_context)
