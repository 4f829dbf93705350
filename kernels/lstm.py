"""The LSTM cell of predictors and language models in NumPy: weights laid out for steps, and a step where nothing is
compiled. V tokens, P channels, Y layers, N sequences."""

import numpy as np


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


def step_lstms(
    tokens: np.ndarray,
    hidden: np.ndarray,
    cell: np.ndarray,
    inputs: np.ndarray,
    recurrent: np.ndarray,
    between: np.ndarray,
    between_bias: np.ndarray,
) -> None:
    """One more token (N,) of each sequence: hidden and cell (N, Y, P) move. Weights: see `lstm_arrays`; the compiled
    one is `sumix_kernels.cpu.step_lstms`."""
    gates = inputs[tokens]
    for y in range(hidden.shape[1]):
        if y:
            gates = hidden[:, y - 1] @ between[y - 1].T + between_bias[y - 1]
        i, f, g, o = np.split(gates + hidden[:, y] @ recurrent[y].T, 4, axis=1)
        cell[:, y] = _sigmoid(f) * cell[:, y] + _sigmoid(i) * np.tanh(g)
        hidden[:, y] = _sigmoid(o) * np.tanh(cell[:, y])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
