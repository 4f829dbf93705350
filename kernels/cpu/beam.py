"""Modified beam search of a transducer: what `search/beam.py` computes without language model and hotwords.

B streams, T encoder frames, K hypotheses of a stream, V tokens, J joiner and P predictor channels, Y predictor layers.
"""

import math

import numpy as np

from sumix_kernels.cpu.compiled import ZERO, compiled, exp, tanh
from sumix_kernels.cpu.greedy import predict, project_frames
from sumix_kernels.cpu.products import ROWS, filled_up, multiply

_NONE = np.float32(-np.inf)


@compiled
def _log_softmax(logits, V, temperature):
    """Of the first V of each row (K, V or more), in place, after a division."""
    for k in range(len(logits)):
        row = logits[k]
        most = _NONE
        for v in range(V):
            row[v] /= temperature
            most = max(most, row[v])
        total = ZERO
        for v in range(V):
            total += exp(row[v] - most)
        shift = most + np.float32(math.log(total))
        for v in range(V):
            row[v] -= shift


@compiled
def _merge(scores, alive, hashes, parents, last, blank, source):
    """Add what grows into the sequence of a hypothesis to that hypothesis staying as it is: scores (K, V or more), in
    place. source (K,), written: whose growth is the likelier of the two alignments; -1 = staying is."""
    K = len(source)
    grown = np.full(K, _NONE, np.float32)
    for j in range(K):
        source[j] = -1
        if not alive[j] or last[j] == blank:
            continue
        for i in range(K):
            if alive[i] and hashes[i] == parents[j]:
                if scores[i, last[j]] > grown[j]:
                    grown[j], source[j] = scores[i, last[j]], i
                scores[i, last[j]] = _NONE
    for j in range(K):
        stay = scores[j, blank]
        if not grown[j] > stay:
            source[j] = -1
        most, least = max(stay, grown[j]), min(stay, grown[j])
        if least > _NONE:
            scores[j, blank] = most + np.float32(math.log1p(math.exp(least - most)))
        else:
            scores[j, blank] = most


@compiled
def _best(scores, V, values, index):
    """The best len(values) of scores (K, V or more), best first, and their places in (K, V)."""
    size = 0
    for k in range(len(scores)):
        for v in range(V):
            score = scores[k, v]
            if size == len(values):
                if score <= values[-1]:
                    continue
            else:
                size += 1
            place = size - 1
            while place and values[place - 1] < score:
                values[place], index[place] = values[place - 1], index[place - 1]
                place -= 1
            values[place], index[place] = score, k * V + v


def _search(
    enc, lengths, scores, hashes, parents, last, projections, hidden, cell, best, project_encoder, encoder_bias,
    inputs, recurrent, between, between_bias, project, output, output_bias,
    blank, blank_penalty, temperature, multiplier, aligned_parents, aligned_tokens, log_probs,
):  # fmt: skip
    """Modified beam search, stream after stream, frame after frame.

    Args:
        enc: (B, T, D) encoder frames. lengths: (B,) valid ones.
        scores, hashes, parents, last: (B, K), see `search.beam.Beams`; moved, as are projections (B, K, J), hidden
            and cell (B, K, Y, P), and best (B,) in fp64.
        project_encoder ... output_bias: as of `search_greedily`.
        multiplier: of the hash.
        aligned_parents, aligned_tokens, log_probs: (T, B, K), written: what `search.history.Alignments.add` takes.
    """
    B, T, _ = enc.shape
    K, J, V = scores.shape[1], projections.shape[2], inputs.shape[0]
    no_pairs = np.empty((0, 0), np.int16)
    frames = project_frames(enc, project_encoder, encoder_bias)
    joined = np.zeros((filled_up(K, ROWS), J), np.float32)
    logits = np.empty((filled_up(K, ROWS), len(output_bias)), np.float32)
    totals = np.empty((K, V), np.float32)
    values, index, source = np.empty(K, np.float32), np.empty(K, np.int64), np.empty(K, np.int64)
    alive = np.empty(K, np.bool_)
    for b in range(B):
        for t in range(T):
            if t >= lengths[b]:
                for k in range(K):
                    aligned_parents[t, b, k], aligned_tokens[t, b, k], log_probs[t, b, k] = k, blank, ZERO
                continue
            frame = frames[b * T + t]
            for k in range(K):
                for j in range(J):
                    joined[k, j] = tanh(frame[j] + projections[b, k, j])
            multiply(joined, K, output, output_bias, 0, False, logits, no_pairs)
            for k in range(K):
                logits[k, blank] -= blank_penalty
            _log_softmax(logits[:K], V, temperature)
            for k in range(K):
                alive[k] = scores[b, k] > _NONE
                for v in range(V):
                    totals[k, v] = logits[k, v] + scores[b, k]
            if K > 1:
                _merge(totals, alive, hashes[b], parents[b], last[b], blank, source)
            else:
                source[0] = -1
            _best(totals, V, values, index)
            best[b] += values[0]
            before = hashes[b].copy(), parents[b].copy(), last[b].copy()
            moved = projections[b].copy(), hidden[b].copy(), cell[b].copy()
            for k in range(K):
                parent, token = index[k] // V, index[k] % V
                if not values[k] > _NONE:
                    token = blank
                scores[b, k] = values[k] - values[0]
                of, aligned = parent, token
                if token == blank and source[parent] >= 0:
                    of, aligned = source[parent], before[2][parent]
                aligned_parents[t, b, k], aligned_tokens[t, b, k] = of, aligned
                log_probs[t, b, k] = logits[of, aligned]
                hashes[b, k], parents[b, k], last[b, k] = before[0][parent], before[1][parent], before[2][parent]
                projections[b, k], hidden[b, k], cell[b, k] = moved[0][parent], moved[1][parent], moved[2][parent]
                if token != blank:
                    mixed = (before[0][parent] + token + 1) * multiplier
                    parents[b, k], hashes[b, k], last[b, k] = before[0][parent], mixed ^ (mixed >> 29), token
                    own = hidden[b, k], cell[b, k], projections[b, k]
                    predict(token, *own, inputs, recurrent, between, between_bias, project)


search_beams = compiled(_search, nogil=True)
