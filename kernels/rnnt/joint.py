"""From joiner to arc log-probabilities: the log-normaliser and the two entries of each logit row that are needed.

B batch, T frames, R lattice rows a frame, V vocabulary, J joint dimension. `selected_log_probs` and `hat_log_probs`
take logits that exist; `joint_log_probs` makes them here, tile by tile, so that a tile stays in the cache. Up to a
fixed size it keeps the logits for the backward pass; beyond it, it makes each tile again, so that memory does not grow
with V.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sumix_kernels.training.choice import compiled_here, multiplies_bf16

# Logits a tile, in elements: 2 MiB of fp32 fits a core's cache; a GPU wants its thousands of threads busy.
_CPU_TILE = 1 << 19
_GPU_TILE = 1 << 26
# Logits kept, in elements: 64 MiB of fp32.
_KEPT = 1 << 24


def row_symbols(symbols: Tensor, ranges: Tensor, termination_symbol: int) -> Tensor:
    """Symbol that each kept row emits next: symbols (B, S), ranges (B, T, R) -> (B, T, R). Row S has none: blank."""
    padded = torch.nn.functional.pad(symbols, (0, 1), value=termination_symbol)
    return padded[:, None].expand(-1, ranges.shape[1], -1).gather(2, ranges)


def selected_log_probs(logits: Tensor, targets: Tensor, termination_symbol: int) -> tuple[Tensor, Tensor]:
    """log softmax of logits (..., V) at ``targets`` (...) and at ``termination_symbol``, both (...), at least fp32."""
    with torch.autocast(logits.device.type, enabled=False):
        return _SelectedLogProbs.apply(logits, targets, termination_symbol)


def hat_log_probs(logits: Tensor, targets: Tensor, termination_symbol: int) -> tuple[Tensor, Tensor]:
    """`selected_log_probs` of the hybrid autoregressive transducer (arXiv 2003.07705, equations 5 to 7).

    Termination is a yes or no of its own, a sigmoid of its logit; the other symbols share the rest by a softmax:

        log P(termination) = log sigmoid(z[termination])
        log P(v)           = log sigmoid(-z[termination]) + z[v] - log sum exp(z of all v but termination)
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        blank = logits[..., termination_symbol]
        sides = logits[..., :termination_symbol], logits[..., termination_symbol + 1 :]
        normalisers = [side.logsumexp(-1) for side in sides if side.shape[-1]]
        normaliser = normalisers[0] if len(normalisers) == 1 else torch.logaddexp(*normalisers)
        x = logits.gather(-1, targets[..., None]).squeeze(-1) - normaliser
        return x + torch.nn.functional.logsigmoid(-blank), torch.nn.functional.logsigmoid(blank)


def joint_log_probs(
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ranges: Tensor,
    targets: Tensor,
    termination_symbol: int,
    *,
    dtype: torch.dtype,
    tile_size: int | None = None,
    kept: int = _KEPT,
) -> tuple[Tensor, Tensor]:
    """`selected_log_probs` of the logits ``tanh(enc[b, t] + pred[b, ranges[b, t, r]]) @ weight.T + bias``.

    enc (B, T, J), pred (B, S+1, J), weight (V, J), bias (V,), ranges and targets (B, T, R). Activations and matrix
    products are in ``dtype``, normalisers and sums of gradients in at least fp32. ``tile_size`` is the number of
    logits made at once, ``kept`` the most that are held until the backward pass; both concern PyTorch's operators only,
    and where no size is given and compiled functions can compute in ``dtype``, they do.
    """
    if tile_size is None and _compiled(dtype, enc, pred, weight, bias):
        from sumix_kernels.training import joiner

        bf16 = dtype == torch.bfloat16
        return joiner.joint_log_probs(enc, pred, weight, bias, ranges, targets, termination_symbol, bf16)
    if tile_size is None:
        tile_size = _CPU_TILE if enc.device.type == "cpu" else _GPU_TILE
    frames = max(1, tile_size // max(1, ranges.shape[2] * weight.shape[0]))
    keep = ranges.numel() * weight.shape[0] <= kept
    with torch.autocast(enc.device.type, enabled=False):
        return _JointLogProbs.apply(enc, pred, weight, bias, ranges, targets, termination_symbol, dtype, frames, keep)


def _compiled(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether the joiner's compiled functions take these."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtypes = {torch.float32, dtype}
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and multiplies_bf16()):
        return False
    plain = all(x.dtype in dtypes and x.device.type == "cpu" for x in given)
    return plain and given[0].numel() > 0 and compiled_here(given[0])


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _logits_grad(log_probs: Tensor, targets: Tensor, blank: int, gx: Tensor, gy: Tensor) -> Tensor:
    """From gx, gy (n,), the gradients of log_probs (n, V) at the targets and at blank, to the logits' (n, V)."""
    grad = log_probs.exp().mul_(-(gx + gy)[:, None])
    grad.scatter_add_(1, targets[:, None], gx[:, None])
    grad[:, blank] += gy
    return grad


class _SelectedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, blank: int):
        log_probs = _log_softmax(logits)
        ctx.blank = blank
        ctx.save_for_backward(logits, targets)
        return log_probs.gather(-1, targets[..., None]).squeeze(-1), log_probs[..., blank].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gx: Tensor, gy: Tensor):
        logits, targets = ctx.saved_tensors
        log_probs = _log_softmax(logits).flatten(0, -2)
        grad = _logits_grad(log_probs, targets.flatten(), ctx.blank, gx.flatten(), gy.flatten())
        return grad.to(logits.dtype).view(logits.shape), None, None


class _JointLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, enc, pred, weight, bias, ranges, targets, blank: int, dtype, frames_per_tile: int, keep: bool):
        tiles = _Tiles(enc, pred, weight, bias, ranges, targets, dtype, frames_per_tile)
        sum_dtype = torch.promote_types(dtype, torch.float32)
        x, y = (enc.new_empty(tiles.targets.shape, dtype=sum_dtype) for _ in range(2))
        ctx.kept = [] if keep and any(ctx.needs_input_grad) else None
        for frames, rows in tiles:
            hidden = tiles.hidden(frames)
            log_probs = tiles.log_probs(hidden)
            x[rows], y[rows] = log_probs.gather(1, tiles.targets[rows, None]).squeeze(1), log_probs[:, blank]
            if ctx.kept is not None:
                ctx.kept.append((hidden, log_probs))
        ctx.settings = blank, dtype, frames_per_tile
        ctx.save_for_backward(enc, pred, weight, bias, ranges, targets)
        return x.view(ranges.shape), y.view(ranges.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gx: Tensor, gy: Tensor):
        enc, pred, weight, bias, ranges, targets = ctx.saved_tensors
        blank, dtype, frames_per_tile = ctx.settings
        tiles = _Tiles(enc, pred, weight, bias, ranges, targets, dtype, frames_per_tile)
        gx, gy = gx.flatten(), gy.flatten()
        scale = None
        if dtype == torch.float16 and gx.numel():
            # Loss scaling must not push fp16 products out of range: they are taken on gradients of at most 1/4.
            scale = 4 * torch.maximum(gx.abs().amax(), gy.abs().amax()).clamp_min(1e-30)
            gx, gy = gx / scale, gy / scale

        enc_grad = gx.new_empty(tiles.enc.shape)
        pred_grad = gx.new_zeros(tiles.pred.shape)
        weight_grad, bias_grad = gx.new_zeros(weight.shape), gx.new_zeros(weight.shape[0])
        with torch.autocast(enc.device.type, enabled=False):  # backward may be called where it is on
            for i, (frames, rows) in enumerate(tiles):
                if ctx.kept is None:
                    hidden = tiles.hidden(frames)
                    log_probs = tiles.log_probs(hidden)
                else:
                    hidden, log_probs = ctx.kept[i]
                grad = _logits_grad(log_probs, tiles.targets[rows], blank, gx[rows], gy[rows])
                bias_grad += grad.sum(0)
                grad = grad.to(dtype)
                weight_grad += grad.T @ hidden
                hidden_grad = (grad @ tiles.weight).to(gx.dtype)
                hidden_grad.addcmul_(hidden_grad * hidden, hidden.to(gx.dtype), value=-1)
                torch.sum(hidden_grad.view(-1, ranges.shape[2], enc.shape[2]), 1, out=enc_grad[frames])
                pred_grad.index_add_(0, tiles.pred_rows[rows], hidden_grad)
        grads = []
        for grad, like in ((enc_grad, enc), (pred_grad, pred), (weight_grad, weight), (bias_grad, bias)):
            if like is None:
                grads.append(None)
                continue
            grads.append((grad if scale is None else grad * scale).to(like.dtype).view(like.shape))
        return *grads, None, None, None, None, None, None


class _Tiles:
    """The joiner's inputs in the dtype of its products, flattened to frames and rows, and the tiles to walk through."""

    def __init__(self, enc, pred, weight, bias, ranges, targets, dtype: torch.dtype, frames_per_tile: int):
        self.enc, self.pred = enc.to(dtype).flatten(0, 1), pred.to(dtype).flatten(0, 1)  # (B*T, J), (B*(S+1), J)
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        offsets = torch.arange(pred.shape[0], device=pred.device)[:, None, None] * pred.shape[1]
        self.pred_rows, self.targets = (ranges + offsets).flatten(), targets.flatten()  # (B*T*R,)
        self.num_rows_per_frame = ranges.shape[2]
        self.frames_per_tile = frames_per_tile

    def __iter__(self):
        for begin in range(0, self.enc.shape[0], self.frames_per_tile):
            end = min(begin + self.frames_per_tile, self.enc.shape[0])
            yield slice(begin, end), slice(begin * self.num_rows_per_frame, end * self.num_rows_per_frame)

    def hidden(self, frames: slice) -> Tensor:
        R = self.num_rows_per_frame
        rows = slice(frames.start * R, frames.stop * R)
        pred = self.pred.index_select(0, self.pred_rows[rows]).view(-1, R, self.pred.shape[1])
        return pred.add_(self.enc[frames, None]).tanh_().flatten(0, 1)

    def log_probs(self, hidden: Tensor) -> Tensor:
        return _log_softmax(torch.nn.functional.linear(hidden, self.weight, self.bias))
