"""The transducer's lattice on a CPU: log-probability of all paths, and the occupations of their arcs.

B utterances, S symbols, T frames. Sums are fp64: scores reach thousands while only their differences count.
"""

import math

import numpy as np

from sumix_kernels.cpu.compiled import compiled, inlined


@inlined
def _add_logs(a, b):
    """log(exp(a) + exp(b)); NaN where either is."""
    if a == b:  # both infinite too, whose difference is no number
        return a + math.log(2.0)
    return max(a, b) + math.log1p(math.exp(-abs(a - b))) if a == a and b == b else a + b


def _walk_lattice(begin, end, part, px, py, boundary, regular, wanted, log_prob, px_occupation, py_occupation):
    """Utterances [begin, end) of px (B, S, T), py (B, S+1, T), boundary (B, 4).

    The symbol arc px[s, t] leads from node (s, t) to (s + 1, t) where `regular`, else to (s + 1, t + 1); the frame arc
    py[s, t] to (s, t + 1). Occupations are written where `wanted`.
    """
    _, S, T = px.shape
    step = 0 if regular else 1
    score, reached = np.empty((S + 1, T + 1)), np.empty((S + 1, T + 1))
    for b in range(begin, end):
        first, start, last, stop = boundary[b, 0], boundary[b, 1], boundary[b, 2], boundary[b, 3]
        for s in range(first, last + 1):
            for t in range(start, stop + 1):
                q = 0.0 if s == first and t == start else -np.inf
                if t > start:
                    q = _add_logs(q, score[s, t - 1] + py[b, s, t - 1])
                if s > first and t - step >= start and t - step < stop:
                    q = _add_logs(q, score[s - 1, t - step] + px[b, s - 1, t - step])
                score[s, t] = q
        log_prob[b] = score[last, stop]
        if not wanted:
            continue
        px_occupation[b] = 0.0
        py_occupation[b] = 0.0
        reached[first : last + 1, start : stop + 1] = 0.0
        reached[last, stop] = 1.0
        for s in range(last, first - 1, -1):
            for t in range(stop, start - 1, -1):
                q, share = score[s, t], reached[s, t]
                if q == -np.inf:
                    continue
                if t > start:
                    arc = share * math.exp(score[s, t - 1] + py[b, s, t - 1] - q)
                    py_occupation[b, s, t - 1] = arc
                    reached[s, t - 1] += arc
                if s > first and t - step >= start and t - step < stop:
                    arc = share * math.exp(score[s - 1, t - step] + px[b, s - 1, t - step] - q)
                    px_occupation[b, s - 1, t - step] = arc
                    reached[s - 1, t - step] += arc


walk_lattice = compiled(_walk_lattice, nogil=True)
