"""The RNN-T lattice: log-probability of all paths, and how often a path takes each arc.

B batch, S symbols, T frames. Node (s, t): s symbols emitted, t frames consumed. Symbol arcs carry px[s, t],
frame (blank) arcs carry py[s, t]; p is the log of the summed probability of all ways from the begin node:

    regular               p[s, t] = logadd(p[s-1, t  ] + px[s-1, t  ],  p[s, t-1] + py[s, t-1])
    modified, constrained p[s, t] = logadd(p[s-1, t-1] + px[s-1, t-1],  p[s, t-1] + py[s, t-1])
    p[begin] = 0, result p[end];  regular: no symbol after the last frame, px[s, t] = -inf for t >= end frame

Both are one recursion over steps d, where d = s + t for regular (anti-diagonals) and d = t otherwise; every arc
goes from step d to step d + 1, so a step is one vector operation over batch and symbols:

    q[d+1, s] = logadd(q[d, s-1] + x[d, s],  q[d, s] + y[d, s])

with x[d, s] on the symbol arc that enters s. Utterances of different extent share the loop: before its begin
and after its end step an utterance waits for free (y = 0, x = -inf).

The backward pass needs no logarithms. The probability that a path through node (d+1, s) came by a given arc is
exp(q[d, source] + weight - q[d+1, s]); occupations of nodes flow back over the arcs in these proportions, from
the end node's 1. They are the gradients of the result with respect to px and py.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sumix_kernels.training.choice import compiled_here

RNNT_TYPES = ("regular", "modified", "constrained")


def whole_boundary(symbols: Tensor, num_frames: int) -> Tensor:
    """Boundary (B, 4) = [0, 0, S, T] of utterances that fill their tensors; symbols (B, S)."""
    boundary = symbols.new_zeros(symbols.shape[0], 4, dtype=torch.int64)
    boundary[:, 2] = symbols.shape[1]
    boundary[:, 3] = num_frames
    return boundary


def has_path(boundary: Tensor, rnnt_type: str = "regular", s_range: int | None = None) -> Tensor:
    """Whether any path leads from begin to end: (B, 4) -> (B,) bool.

    ``regular`` needs a frame; ``modified`` and ``constrained`` also a frame for every symbol. With ``s_range``,
    whether a path is left after pruning: ``regular`` then emits at most ``s_range - 1`` symbols a frame.
    """
    num_symbols = boundary[:, 2] - boundary[:, 0]
    num_frames = boundary[:, 3] - boundary[:, 1]
    if rnnt_type != "regular":
        return (num_frames > 0) & (num_symbols <= num_frames)
    if s_range is None:
        return num_frames > 0
    return (num_frames > 0) & (num_symbols <= num_frames * (s_range - 1))


def lattice_log_prob(
    px: Tensor, py: Tensor, boundary: Tensor, rnnt_type: str, delay_penalty: float = 0.0, with_occupations: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probability (B,) of all paths, with the occupations of symbol arcs and frame arcs if asked for.

    px (B, S, T), py (B, S+1, T), boundary (B, 4). -inf is allowed; a batch member without a path gets -inf and
    zero gradients. Occupations have the shapes of px and py and no gradient; for ``constrained``, whose symbol
    arc also emits the frame arc that follows it, px's count the joint arc.

    ``delay_penalty`` adds ``delay_penalty * ((end_frame - 1) / 2 - t)`` to px: late symbols cost more
    (arXiv 2211.00490).
    """
    if rnnt_type == "constrained":
        px = px + py[:, 1:]
    if delay_penalty != 0.0:
        frames = torch.arange(px.shape[2], device=px.device, dtype=px.dtype)
        middle = (boundary[:, 3, None, None].to(px.dtype) - 1) / 2
        px = px + delay_penalty * (middle - frames)
    return _Lattice.apply(px, py, boundary, rnnt_type == "regular", with_occupations)


def open_lattice_log_prob(
    lattice: Callable, px: Tensor, py: Tensor, boundary: Tensor, with_occupations: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`lattice_log_prob` of arcs that are any numbers, not those of a loss; nothing outside the boundary is read.

    px (B, S, T+1) is a regular lattice, in which symbols may follow the last frame too; px (B, S, T) a modified one.
    py (B, S+1, T), boundary (B, 4). ``lattice`` is a backend's `lattice_log_prob`.
    """
    regular = px.shape[2] == py.shape[2] + 1
    begin_symbol, begin_frame, end_symbol, end_frame = boundary[:, :, None, None].unbind(1)
    rows, frames = (torch.arange(size, device=px.device) for size in (py.shape[1], px.shape[2]))
    in_rows = ((rows >= begin_symbol) & (rows <= end_symbol)).transpose(1, 2)  # (B, S+1, 1)
    in_frames = (frames >= begin_frame) & (frames < end_frame)  # (B, 1, T), or T+1
    after = frames == end_frame
    if regular:  # one frame more, which costs nothing: its symbols are those that follow the last frame
        py = torch.nn.functional.pad(py, (0, 1))
        boundary = torch.cat([boundary[:, :3], boundary[:, 3:] + 1], 1)
    py = py.masked_fill(~(in_rows & in_frames), float("-inf"))
    if regular:
        py = py.masked_fill(after, 0.0)
        in_frames = in_frames | after
    px = px.masked_fill(~(in_rows[:, 1:] & (rows[1:, None] > begin_symbol) & in_frames), float("-inf"))

    kind = "regular" if regular else "modified"
    log_prob, px_occupation, py_occupation = lattice(px, py, boundary, kind, 0.0, with_occupations)
    if regular and with_occupations:
        py_occupation = py_occupation.masked_fill(after, 0.0)[:, :, :-1]
    return log_prob, px_occupation, py_occupation


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, px: Tensor, py: Tensor, boundary: Tensor, regular: bool, with_occupations: bool):
        ctx.set_materialize_grads(False)
        if compiled_here(px) and px.dtype in (torch.float32, torch.float64):
            wanted = with_occupations or ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            log_prob, *occupations = _walk(px, py, boundary, regular, wanted)
            if not wanted:
                return log_prob, None, None
            ctx.save_for_backward(*occupations)
            ctx.mark_non_differentiable(*occupations)
            return log_prob, *occupations
        begin, end = boundary[:, :2], boundary[:, 2:]
        steps = torch.arange(px.shape[2] + (px.shape[1] if regular else 0), device=px.device)[:, None]
        begin_step, end_step = (node.sum(1) if regular else node[:, 1] for node in (begin, end))
        waiting = ((steps < begin_step) | (steps >= end_step))[:, :, None]  # (D, B, 1)

        arcs = _pack(px, py, end[:, 1] if regular else None, waiting)
        q = _scores(arcs, begin[:, 0])
        log_prob = q[-1].gather(1, end[:, :1] + 1).squeeze(1).to(px.dtype)
        if not (with_occupations or ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            return log_prob, None, None

        _occupations_(arcs, q, end[:, 0])
        arcs.masked_fill_(waiting[..., None], 0.0)
        px_occupation, py_occupation = torch.empty_like(px), torch.empty_like(py)
        px_view, py_view = _views(arcs, px.shape, regular)
        px_occupation.copy_(px_view)
        py_occupation.copy_(py_view)
        ctx.save_for_backward(px_occupation, py_occupation)
        ctx.mark_non_differentiable(px_occupation, py_occupation)
        return log_prob, px_occupation, py_occupation

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return None, None, None, None, None
        px_occupation, py_occupation = ctx.saved_tensors
        grad = grad[:, None, None]
        return grad * px_occupation, grad * py_occupation, None, None, None


def _walk(px: Tensor, py: Tensor, boundary: Tensor, regular: bool, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and occupations by `sumix_kernels.cpu.lattice`, one node after another."""
    from sumix_kernels.cpu.lattice import walk_lattice
    from sumix_kernels.training.rows import num_parts, share

    px, py = px.detach().contiguous(), py.detach().contiguous()
    occupations = [torch.empty_like(x) if wanted else x.new_empty(0, 0, 0) for x in (px, py)]
    log_prob = px.new_empty(len(px))
    arguments = (px, py, boundary.contiguous(), regular, wanted, log_prob, *occupations)
    share(walk_lattice, len(px), num_parts(len(px), 1), *arguments)
    return log_prob, *occupations


# Buffers. arcs (D, B, 2, S+2): [d, b, 0, s] is the symbol arc into s, [d, b, 1, s] the frame arc that stays in s, both
# from step d to d + 1; in turn it holds their log-weights, path scores, posteriors and occupations, in place.
# q (D+1, B, S+3): node s in column s + 1, for column 0 is the -inf left of s = 0. The unreachable node S+1 exists so
# that reading one row further right is always allowed. fp64: scores reach thousands while only their differences
# count, and the loop's cost is the number of its steps.


def _views(arcs: Tensor, px_shape: torch.Size, regular: bool) -> tuple[Tensor, Tensor]:
    """The arcs seen as px (B, S, T) and py (B, S+1, T)."""
    B, S, T = px_shape
    step, batch, kind, _ = arcs.stride()
    strides = (batch, 1 + (step if regular else 0), step)
    return arcs.as_strided((B, S, T), strides, 1), arcs.as_strided((B, S + 1, T), strides, kind)


def _pack(px: Tensor, py: Tensor, end_frame: Tensor | None, waiting: Tensor) -> Tensor:
    B, S, T = px.shape
    arcs = px.new_full((waiting.shape[0], B, 2, S + 2), float("-inf"), dtype=torch.float64)
    px_view, py_view = _views(arcs, px.shape, regular=end_frame is not None)
    if end_frame is not None:
        px = px.masked_fill(torch.arange(T, device=px.device) >= end_frame[:, None, None], float("-inf"))
    px_view.copy_(px)
    py_view.copy_(py)
    arcs[:, :, 0].masked_fill_(waiting, float("-inf"))
    arcs[:, :, 1].masked_fill_(waiting, 0.0)
    return arcs


def _scores(arcs: Tensor, begin_symbol: Tensor) -> Tensor:
    """q of every node; arcs become the scores of all paths up to and with them."""
    D, B, _, N = arcs.shape
    q = arcs.new_full((D + 1, B, N + 1), float("-inf"))
    q[0].scatter_(1, begin_symbol[:, None] + 1, 0.0)
    sources = q.as_strided((D + 1, B, 2, N), (B * (N + 1), N + 1, 1, 1)).unbind(0)
    nodes = q[:, :, 1:].unbind(0)
    symbol_arcs, frame_arcs, both = arcs[:, :, 0].unbind(0), arcs[:, :, 1].unbind(0), arcs.unbind(0)
    for d in range(D):
        both[d].add_(sources[d])
        torch.logaddexp(symbol_arcs[d], frame_arcs[d], out=nodes[d + 1])
    return q


def _occupations_(arcs: Tensor, q: Tensor, end_symbol: Tensor) -> None:
    """From path scores to occupations, in place; q is overwritten."""
    D, B, _, N = arcs.shape
    q.masked_fill_(q == float("-inf"), 0.0)  # -inf - -inf is no number; -inf - 0 is an arc never taken
    arcs.sub_(q[1:, :, None, 1:]).exp_()
    occupation = arcs.new_zeros(B, 1, N).scatter_(2, end_symbol[:, None, None], 1.0)
    reached = occupation[:, 0, :-1]
    both = arcs.unbind(0)
    next_symbol, same_symbol = arcs[:, :, 0, 1:].unbind(0), arcs[:, :, 1, :-1].unbind(0)
    for d in reversed(range(D)):
        both[d].mul_(occupation)
        torch.add(next_symbol[d], same_symbol[d], out=reached)
