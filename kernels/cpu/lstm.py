"""The LSTM cell of predictors and language models. V tokens, P channels, Y layers, N sequences."""

import numpy as np

from sumix_kernels.cpu.compiled import compiled, dot, sigmoid, tanh


def lstm_arrays(embedding: np.ndarray, layers: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """What `step_lstm` takes of an embedding (V, E) and (w_ih, w_hh, b_ih, b_hh) of each layer, as PyTorch names them.

    The first layer's part of the gates by token (V, 4P), biases included; the weights between a layer's own steps
    (Y, 4P, P), and those from layer to layer (Y - 1, 4P, P) with biases (Y - 1, 4P).
    """
    (first, *others), P = layers, layers[0][1].shape[1]
    inputs = embedding @ first[0].T + (first[2] + first[3])
    recurrent = np.stack([w_hh for _, w_hh, _, _ in layers])
    between = np.stack([w_ih for w_ih, _, _, _ in others]) if others else np.zeros((0, 4 * P, P), np.float32)
    biases = np.stack([b_ih + b_hh for _, _, b_ih, b_hh in others]) if others else np.zeros((0, 4 * P), np.float32)
    return tuple(np.ascontiguousarray(part, np.float32) for part in (inputs, recurrent, between, biases))


@compiled
def step_lstm(token, hidden, cell, inputs, recurrent, between, between_bias):
    """One more token of a sequence: its hidden and cell (Y, P) move. Weights as of `lstm_arrays`."""
    P = hidden.shape[1]
    gates = inputs[token].copy()
    for y in range(len(hidden)):
        if y:
            for n in range(4 * P):
                gates[n] = between_bias[y - 1, n] + dot(between[y - 1, n], hidden[y - 1])
        for n in range(4 * P):
            gates[n] += dot(recurrent[y, n], hidden[y])
        for p in range(P):
            i, f, g, o = gates[p], gates[P + p], gates[2 * P + p], gates[3 * P + p]
            cell[y, p] = sigmoid(f) * cell[y, p] + sigmoid(i) * tanh(g)
            hidden[y, p] = sigmoid(o) * tanh(cell[y, p])


@compiled
def step_lstms(tokens, hidden, cell, inputs, recurrent, between, between_bias):
    """`step_lstm` for each of tokens (N,): hidden and cell (N, Y, P) move."""
    for n in range(len(tokens)):
        step_lstm(tokens[n], hidden[n], cell[n], inputs, recurrent, between, between_bias)
