"""The RNN-T losses as the textbook has them: every logit, every node, one after another, in fp64.

Imports nothing from here; slow; for tests and for reading. Names, arguments and results are those of op.py, whose
docstrings say what they mean.
"""

import torch


def rnnt_loss(logits, symbols, termination_symbol, boundary, rnnt_type, delay_penalty):
    """Losses (B,) from logits (B, T, S+1, V)."""
    log_probs = logits.double().log_softmax(-1)
    losses = []
    for b, (s0, t0, s1, t1) in enumerate(boundary.tolist()):
        px = {(s, t): log_probs[b, t, s, symbols[b, s]] for s in range(s0, s1) for t in range(t0, t1)}
        py = {(s, t): log_probs[b, t, s, termination_symbol] for s in range(s0, s1 + 1) for t in range(t0, t1)}
        losses.append(_loss(px, py, (s0, t0, s1, t1), rnnt_type, delay_penalty, log_probs))
    return torch.stack(losses)


def rnnt_loss_pruned(
    logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, use_hat_loss=False
):
    """Losses (B,) from the logits (B, T, R, V) of the lattice rows ``ranges`` (B, T, R)."""
    log_probs = hat_log_probs(logits, termination_symbol) if use_hat_loss else logits.double().log_softmax(-1)
    losses = []
    for b, (s0, t0, s1, t1) in enumerate(boundary.tolist()):
        px, py = {}, {}
        for t in range(t0, t1):
            for r, s in enumerate(ranges[b, t].tolist()):
                if s0 <= s < s1:
                    px[s, t] = log_probs[b, t, r, symbols[b, s]]
                if s0 <= s <= s1:
                    py[s, t] = log_probs[b, t, r, termination_symbol]
        losses.append(_loss(px, py, (s0, t0, s1, t1), rnnt_type, delay_penalty, log_probs))
    return torch.stack(losses)


def hat_log_probs(logits, termination_symbol):
    """Log-probabilities of all symbols: a coin for termination, and if it falls the other way a softmax of the rest."""
    termination = torch.arange(logits.shape[-1], device=logits.device) == termination_symbol
    coin = logits[..., termination_symbol, None].double()
    zero = torch.zeros_like(coin)
    rest = logits.double().masked_fill(termination, float("-inf")).log_softmax(-1)
    return torch.where(termination, -torch.logaddexp(-coin, zero), rest - torch.logaddexp(coin, zero))


def mutual_information(px, py, boundary, with_occupations=True):
    """Log-probabilities (B,) of all paths, with the occupations of px (B, S, T or T+1) and of py (B, S+1, T).

    Where px has one column more than py, a symbol takes no frame, and symbols may follow the last frame too.
    """
    rnnt_type, extra = ("regular", 1) if px.shape[2] == py.shape[2] + 1 else ("modified", 0)
    px, py = px.double(), py.double()
    px_occupation, py_occupation = torch.zeros_like(px), torch.zeros_like(py)
    log_probs = []
    for b, (s0, t0, s1, t1) in enumerate(boundary.tolist()):
        symbol_arcs = {(s, t): px[b, s, t] for s in range(s0, s1) for t in range(t0, t1 + extra)}
        frame_arcs = {(s, t): py[b, s, t] for s in range(s0, s1 + 1) for t in range(t0, t1)}
        symbol_arcs, frame_arcs = (
            {node: log_prob for node, log_prob in arcs.items() if log_prob > float("-inf")}
            for arcs in (symbol_arcs, frame_arcs)
        )
        log_prob = _log_prob(symbol_arcs, frame_arcs, (s0, t0, s1, t1), rnnt_type)
        log_probs.append(px.new_tensor(float("-inf")) if log_prob is None else log_prob)
        if with_occupations:
            _count_(px_occupation[b], py_occupation[b], symbol_arcs, frame_arcs, (s0, t0, s1, t1), rnnt_type)
    return torch.stack(log_probs), px_occupation, py_occupation


def rnnt_loss_smoothed(
    lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type, delay_penalty
):
    """Losses (B,) of the simple joiner lm + am, and the occupations of symbol and blank arcs.

    Gradients reach lm and am; the occupations have none.
    """
    lm, am = lm.double(), am.double()
    B, S = symbols.shape
    T = am.shape[1]
    joint = (am[:, :, None] + lm[:, None]).log_softmax(-1)  # (B, T, S+1, V)
    lm_only = lm.log_softmax(-1)[:, None]
    unigram = lm.softmax(-1).mean((0, 1)).log()
    am_only = (am + unigram).log_softmax(-1)[:, :, None]
    log_probs = (1 - lm_only_scale - am_only_scale) * joint + lm_only_scale * lm_only
    if am_only_scale:
        log_probs = log_probs + am_only_scale * am_only

    columns = T + 1 if rnnt_type == "regular" else T
    px_occupation, py_occupation = am.new_zeros(B, S, columns), am.new_zeros(B, S + 1, T)
    losses = []
    for b, (s0, t0, s1, t1) in enumerate(boundary.tolist()):
        px = {(s, t): log_probs[b, t, s, symbols[b, s]] for s in range(s0, s1) for t in range(t0, t1)}
        py = {(s, t): log_probs[b, t, s, termination_symbol] for s in range(s0, s1 + 1) for t in range(t0, t1)}
        losses.append(_loss(px, py, (s0, t0, s1, t1), rnnt_type, delay_penalty, log_probs))

        # k2 counts how often the recursion's arcs are taken: constrained's symbol arc is one arc.
        symbol_arcs = _symbol_arcs(px, py, (s0, t0, s1, t1), rnnt_type, delay_penalty)
        _count_(px_occupation[b], py_occupation[b], symbol_arcs, py, (s0, t0, s1, t1), rnnt_type)
    return torch.stack(losses), px_occupation, py_occupation


def get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range):
    """Lattice rows to keep (B, T, R), one frame after another."""
    B, S, columns = px_grad.shape
    T = py_grad.shape[2]
    R = min(s_range, S + 1)
    stride = R - 1 if columns == T + 1 else 1
    ranges = torch.zeros(B, T, R, dtype=torch.int64)
    for b in range(B):
        _, _, s_end, t_end = boundary[b].tolist()
        starts = []
        for t in range(T):
            if t >= t_end - 1:
                starts.append(max(s_end - R + 1, 0))
                continue
            kept = []
            for s in range(S + 2 - R):
                entered = px_grad[b, s - 1, t].item() if s > 0 else 0.0
                kept.append(sum(py_grad[b, s + r, t].item() for r in range(R)) - entered)
            starts.append(kept.index(max(kept)))
        # Never back; then no frame more than a stride above the one before, the first at 0.
        for t in reversed(range(T - 1)):
            starts[t] = min(starts[t], starts[t + 1])
        for t in reversed(range(T - 1)):
            starts[t] = max(starts[t], starts[t + 1] - stride)
        for t in range(T):
            starts[t] = min(starts[t], stride * t)
            ranges[b, t] = starts[t] + torch.arange(R)
    return ranges.to(px_grad.device)


def _symbol_arcs(px, py, extent, rnnt_type, delay_penalty):
    """Log-weights of the symbol arcs of the recursion."""
    arcs = {}
    for (s, t), log_prob in px.items():
        if rnnt_type == "constrained":
            if (s + 1, t) not in py:
                continue
            log_prob = log_prob + py[s + 1, t]  # the frame ends with its symbol
        arcs[s, t] = log_prob + delay_penalty * ((extent[3] - 1) / 2 - t)
    return arcs


def _log_prob(px, py, extent, rnnt_type):
    """Log of the sum over all paths of the product of their arcs; None if there is none."""
    s0, t0, s1, t1 = extent
    some = next(iter(py.values()), None)
    total = {(s0, t0): torch.zeros((), dtype=torch.float64, device=None if some is None else some.device)}
    frames_of_symbol = 0 if rnnt_type == "regular" else 1
    for t in range(t0, t1 + 1):
        for s in range(s0, s1 + 1):
            incoming = []
            for source, arcs in (((s - 1, t - frames_of_symbol), px), ((s, t - 1), py)):
                if source in total and source in arcs:
                    incoming.append(total[source] + arcs[source])
            if incoming:
                total[s, t] = torch.stack(incoming).logsumexp(0)
    return total.get((s1, t1))


def _count_(px_occupation, py_occupation, px, py, extent, rnnt_type):
    """Write how often a path takes each arc: the gradient of the log-probability of all paths."""
    px, py = ({node: log_prob.detach().requires_grad_() for node, log_prob in arcs.items()} for arcs in (px, py))
    with torch.enable_grad():
        total = _log_prob(px, py, extent, rnnt_type)
    if total is None or not total.requires_grad:
        return
    for arcs, occupation in ((px, px_occupation), (py, py_occupation)):
        grads = torch.autograd.grad(total, list(arcs.values()), retain_graph=True, allow_unused=True) if arcs else ()
        for (s, t), grad in zip(arcs, grads):
            if grad is not None:
                occupation[s, t] = grad


def _loss(px, py, extent, rnnt_type, delay_penalty, log_probs):
    log_prob = _log_prob(_symbol_arcs(px, py, extent, rnnt_type, delay_penalty), py, extent, rnnt_type)
    return log_probs.new_tensor(float("inf")) if log_prob is None else -log_prob
