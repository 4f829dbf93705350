"""Greedy transducer search.

B streams, N hypotheses, T encoder frames, V tokens, J joiner and P predictor channels, Y predictor layers.
"""

import numpy as np

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, dot, exp, tanh
from sumix_kernels.cpu.lstm import step_lstm
from sumix_kernels.cpu.products import ROWS, filled_up, multiply


@compiled
def predict(token, hidden, cell, projection, inputs, recurrent, between, between_bias, project):
    """The LSTM's step for one stream: its hidden and cell (Y, P) and its projection (J,) move."""
    step_lstm(token, hidden, cell, inputs, recurrent, between, between_bias)
    for j in range(len(projection)):
        projection[j] = dot(project[j], hidden[-1])


@compiled
def predict_all(tokens, hidden, cell, projections, inputs, recurrent, between, between_bias, project):
    """`predict` for each of tokens (N,): hidden and cell (N, Y, P) and projections (N, J) move."""
    for n in range(len(tokens)):
        own = hidden[n], cell[n], projections[n]
        predict(tokens[n], *own, inputs, recurrent, between, between_bias, project)


@compiled
def project_frames(enc, weights, bias):
    """Encoder frames (B, T, D) in the joiner: (B T and at least ROWS more, J or more)."""
    B, T, D = enc.shape
    rows = np.zeros((filled_up(B * T, ROWS), D), np.float32)
    for b in range(B):
        rows[b * T : (b + 1) * T] = enc[b]
    frames = np.zeros((len(rows) + ROWS, len(bias)), np.float32)
    multiply(rows, B * T, weights, bias, 0, False, frames, np.empty((0, 0), np.int16))
    return frames


def _search(
    enc, lengths, projections, hidden, cell, project_encoder, encoder_bias,
    inputs, recurrent, between, between_bias, project, output, output_bias,
    blank, blank_penalty, temperature, max_symbols,
):  # fmt: skip
    """Greedy transducer search, stream after stream. The joiner sees some frames at once, up to the first token: until
    then the predictor stands still (arXiv 2406.06220).

    Args:
        enc: (B, T, D) encoder frames. lengths: (B,) valid ones.
        projections, hidden, cell: moved: the predictor's output in the joiner (B, J), the LSTM's state (B, Y, P) each.
        project_encoder, encoder_bias: to J, of the joiner, as of `panels` and `padded`.
        inputs: (V, 4P) the first layer's part of the gates by token, biases included.
        recurrent, between, between_bias: (Y, 4P, P), (Y - 1, 4P, P) and (Y - 1, 4P) of the LSTM.
        project: (J, P) of the joiner. output, output_bias: to V, as of `panels` and `padded`.
        blank_penalty, temperature, max_symbols: see search.options.SearchOptions.
    Returns:
        Tokens, their frames and their probabilities, stream after stream; and how many each stream emitted, (B,).
    """
    B, T, _ = enc.shape
    J, V = len(project), inputs.shape[0]
    no_pairs = np.empty((0, 0), np.int16)
    frames = project_frames(enc, project_encoder, encoder_bias)
    joined, logits = np.empty((ROWS, J), np.float32), np.empty((ROWS, len(output_bias)), np.float32)
    tokens, places, confidence = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.float32)
    counts, size = np.zeros(B, np.int64), 0
    for b in range(B):
        projection = projections[b]
        t, here, seen = 0, 0, 0  # `seen`: frames from `t` on whose logits are known
        while t < lengths[b]:
            if not seen:
                for i in range(ROWS):
                    for j in range(J):
                        joined[i, j] = tanh(frames[b * T + t + i, j] + projection[j])
                multiply(joined, ROWS, output, output_bias, 0, False, logits, no_pairs)
                seen = ROWS
            own = logits[ROWS - seen]
            own[blank] -= blank_penalty
            best = 0
            for v in range(V):
                if own[v] > own[best]:
                    best = v
            if best == blank:
                t, here, seen = t + 1, 0, seen - 1
                continue
            total = ZERO
            for v in range(V):
                total += exp((own[v] - own[best]) / temperature)
            if size == len(tokens):
                tokens, places = np.concatenate((tokens, tokens)), np.concatenate((places, places))
                confidence = np.concatenate((confidence, confidence))
            tokens[size], places[size], confidence[size] = best, t, ONE / total
            size, here, seen = size + 1, here + 1, 0  # the predictor moves, and with it all logits
            counts[b] += 1
            predict(best, hidden[b], cell[b], projection, inputs, recurrent, between, between_bias, project)
            if here == max_symbols:
                t, here = t + 1, 0
    return tokens[:size], places[:size], confidence[:size], counts


search_greedily = compiled(_search, nogil=True)
