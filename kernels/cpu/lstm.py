"""The LSTM cell of predictors and language models. P channels, Y layers, N sequences."""

from sumix_kernels.cpu.compiled import compiled, dot, sigmoid, tanh


@compiled
def step_lstm(token, hidden, cell, inputs, recurrent, between, between_bias):
    """One more token of a sequence: its hidden and cell (Y, P) move. Weights: see `sumix_kernels.lstm.lstm_arrays`."""
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
