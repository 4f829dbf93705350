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


def rnnt_loss_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty):
    """Losses (B,) from the logits (B, T, R, V) of the lattice rows ``ranges`` (B, T, R)."""
    log_probs = logits.double().log_softmax(-1)
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

        px = {key: value.detach().requires_grad_() for key, value in px.items()}
        py = {key: value.detach().requires_grad_() for key, value in py.items()}
        with torch.enable_grad():
            symbol_arcs = _symbol_arcs(px, py, (s0, t0, s1, t1), rnnt_type, delay_penalty)
            # k2 counts how often the recursion's arcs are taken: constrained's symbol arc is one arc.
            symbol_arcs = {key: value.detach().requires_grad_() for key, value in symbol_arcs.items()}
            log_prob = _log_prob(symbol_arcs, py, (s0, t0, s1, t1), rnnt_type)
        for arcs, occupation in ((symbol_arcs, px_occupation), (py, py_occupation)):
            if log_prob is None or not log_prob.requires_grad or not arcs:
                continue
            grads = torch.autograd.grad(log_prob, list(arcs.values()), retain_graph=True, allow_unused=True)
            for (s, t), grad in zip(arcs, grads):
                if grad is not None:
                    occupation[b, s, t] = grad
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


def _loss(px, py, extent, rnnt_type, delay_penalty, log_probs):
    log_prob = _log_prob(_symbol_arcs(px, py, extent, rnnt_type, delay_penalty), py, extent, rnnt_type)
    return log_probs.new_tensor(float("inf")) if log_prob is None else -log_prob
