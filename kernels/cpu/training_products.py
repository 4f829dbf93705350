"""Products of a training's branches with what happens to rows before and after them, a block of rows at a time.

A block's rows stay in the caches from one product to the next, where products of whole batches write each result to
memory and read it again. Each function takes blocks [begin, end) of `BLOCK` rows and `part`: see `training`.

N rows, D inputs and O outputs of a product. Arrays of "room" have rows up to a multiple of ROWS and columns up to one
of WIDTH (`products`), which are read and written and stand for nothing. Weights lie in panels, as `panels_of` and
`panels_back` make them; gradients by weights (P, O, D) are room and are added to.

Where weights are in bf16, all factors of products are rounded to it, those of gradients by weights too; sums and all
else are fp32.
"""

import numba
import numpy as np
from numba.extending import overload

from sumix_kernels.cpu.compiled import ONE, ZERO, compiled, inlined, sigmoid
from sumix_kernels.cpu.products import WIDTH, add_products, multiply, pair_rows
from sumix_kernels.cpu.training import dropped, is_padding, mean_and_scale

BLOCK = 48  # a multiple of ROWS; with 576 channels a block takes 110 kB


def pairs_for(weights, num_rows):
    """Room for rows in bf16, where weights are; see `multiply`."""


@overload(pairs_for)
def _pairs_room(weights, num_rows):
    if weights.dtype == numba.float32:
        return lambda weights, num_rows: np.empty((1, 2), np.int16)
    return lambda weights, num_rows: np.empty((num_rows, 2 * weights.shape[1]), np.int16)


def add_products_like(x, count, panels, none, weights, out):
    """`add_products` in the precision of the weights."""


@overload(add_products_like)
def _add_products_of(x, count, panels, none, weights, out):
    if weights.dtype == numba.float32:
        return lambda x, count, panels, none, weights, out: add_products(x, count, panels, none, out)

    def paired(x, count, panels, none, weights, out):
        half = (count + 1) // 2
        rows, columns = np.empty((half, x.shape[1]), np.int32), np.empty((len(panels), half, WIDTH), np.int32)
        pair_rows(x, count, rows)
        for p in range(len(panels)):
            pair_rows(panels[p], count, columns[p])
        add_products(rows, half, columns, none, out)

    return paired


@compiled
def panels_in_pairs(panels, out):
    """Panels (P, n, WIDTH) in bf16: out (P, ceil(n / 2), WIDTH) int32."""
    for p in range(len(panels)):
        pair_rows(panels[p], panels.shape[1], out[p])


@compiled
def panels_of(weight, out):
    """Weights (O, D) for products x W^T: out (ceil(O / WIDTH), D, WIDTH), filled up with zeros."""
    num_outputs, D = weight.shape
    for p in range(len(out)):
        count = min(WIDTH, num_outputs - p * WIDTH)
        if count < WIDTH:
            out[p] = ZERO
        for j in range(count):
            for d in range(D):
                out[p, d, j] = weight[p * WIDTH + j, d]


@compiled
def panels_back(weight, out):
    """Weights (O, D) for products g W: out (ceil(D / WIDTH), O, WIDTH), filled up with zeros."""
    num_outputs, D = weight.shape
    for p in range(len(out)):
        count = min(WIDTH, D - p * WIDTH)
        if count < WIDTH:
            out[p] = ZERO
        for n in range(num_outputs):
            for j in range(count):
                out[p, n, j] = weight[n, p * WIDTH + j]


@inlined
def into_panels(row, i, panels):
    """Row i of panels (P, n, WIDTH) = row, whose columns are filled up."""
    for p in range(len(panels)):
        own = panels[p, i]
        for j in range(WIDTH):
            own[j] = row[p * WIDTH + j]


@inlined
def _normalise(x, n, weight, bias, eps, stats, out):
    mean, inverse = mean_and_scale(x, n, eps)
    stats[n, 0], stats[n, 1] = mean, inverse
    for d in range(len(weight)):
        out[d] = (x[n, d] - mean) * inverse * weight[d] + bias[d]


@inlined
def _normal_again(x, n, weight, bias, stats, out):
    mean, inverse = stats[n, 0], stats[n, 1]
    for d in range(len(weight)):
        out[d] = (x[n, d] - mean) * inverse * weight[d] + bias[d]


@inlined
def _normalise_back(grad, x, n, weight, stats, residual, normal, inner, weight_grad, bias_grad, out):
    """out[n] = residual[n] + gradient of a LayerNorm by x[n], from grad (D,); normal and inner (D,) are room."""
    D = len(weight)
    mean, inverse = stats[n, 0], stats[n, 1]
    total, along = ZERO, ZERO
    for d in range(D):
        g = grad[d]
        h = (x[n, d] - mean) * inverse
        weight_grad[d] += g * h
        bias_grad[d] += g
        g *= weight[d]
        normal[d], inner[d] = h, g
        total += g
        along += g * h
    total /= np.float32(D)
    along /= np.float32(D)
    for d in range(D):
        out[n, d] = residual[n, d] + (inner[d] - total - normal[d] * along) * inverse


def _product(begin, end, part, x, weights, bias, N, out):
    """out = x W^T + bias. x (N, D) and out (N, O) room."""
    pairs = pairs_for(weights, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        multiply(x[first:], count, weights, bias, 0, False, out[first:], pairs)


def _product_back(begin, end, part, grad, x, weights, N, out, weight_grads):
    """From grad (N, O), room: out (N, D), room, = grad W, and the gradient by W. x (N, D) was multiplied."""
    D, panels = x.shape[1], np.empty((len(weights), BLOCK, WIDTH), np.float32)
    row, none = np.zeros(len(weights) * WIDTH, np.float32), np.zeros(len(weights) * WIDTH, np.float32)
    pairs = pairs_for(weights, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        for i in range(count):
            for d in range(D):
                row[d] = x[first + i, d]
            into_panels(row, i, panels)
        add_products_like(grad[first:], count, panels, none, weights, weight_grads[part])
        multiply(grad[first:], count, weights, none, 0, False, out[first:], pairs)


def _product_add(begin, end, part, x, weights, bias, residual, lengths, num_frames, drop, out):
    """out (N, O) = residual + dropout(x W^T + bias), residual on padding. x (N, D) room."""
    key, second_key, threshold, scale = drop
    N, width = residual.shape
    y = np.empty((BLOCK, len(weights) * WIDTH), np.float32)
    pairs = pairs_for(weights, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        multiply(x[first:], count, weights, bias, 0, False, y, pairs)
        for i in range(count):
            n = first + i
            if is_padding(n, lengths, num_frames):
                for d in range(width):
                    out[n, d] = residual[n, d]
            else:
                for d in range(width):
                    out[n, d] = residual[n, d] + dropped(y[i, d], n * width + d, key, second_key, threshold, scale)


def _norm_product(begin, end, part, x, norm_weight, norm_bias, eps, weights, bias, stats, out):
    """out (N, O), room, = LayerNorm(x) W^T + bias; stats (N, 2): see `normalise_rows`."""
    N, D = x.shape
    normal = np.empty((BLOCK, D), np.float32)
    pairs = pairs_for(weights, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        for i in range(count):
            _normalise(x, first + i, norm_weight, norm_bias, eps, stats, normal[i])
        multiply(normal, count, weights, bias, 0, False, out[first:], pairs)


def _norm_product_back(
    begin, end, part, grad, x, stats, norm_weight, norm_bias, weights, residual,
    out, weight_grads, norm_weight_grads, norm_bias_grads,
):  # fmt: skip
    """From grad (N, O), room: out (N, D) = residual + gradient by x, and those by the parameters."""
    N, D = x.shape
    wide = len(weights) * WIDTH
    panels, x_grad = np.empty((len(weights), BLOCK, WIDTH), np.float32), np.empty((BLOCK, wide), np.float32)
    row, none = np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    normal, inner = np.empty(D, np.float32), np.empty(D, np.float32)
    weight_grad, bias_grad = norm_weight_grads[part], norm_bias_grads[part]
    pairs = pairs_for(weights, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        for i in range(count):
            _normal_again(x, first + i, norm_weight, norm_bias, stats, row)
            into_panels(row, i, panels)
        add_products_like(grad[first:], count, panels, none, weights, weight_grads[part])
        multiply(grad[first:], count, weights, none, 0, False, x_grad, pairs)
        for i in range(count):
            _normalise_back(
                x_grad[i], x, first + i, norm_weight, stats, residual, normal, inner, weight_grad, bias_grad, out
            )


def _feed_forward(
    begin, end, part, x, norm_weight, norm_bias, eps, w1, b1, w2, b2, factor, width, first_drop, second_drop,
    stats, hidden, out,
):  # fmt: skip
    """out = x + factor dropout(W2 dropout(SiLU(hidden)) + b2), hidden (N, `width`), room, = W1 LayerNorm(x) + b1."""
    key, second_key, threshold, scale = first_drop
    out_key, out_second_key, out_threshold, out_scale = second_drop
    N, D = x.shape
    normal, active = np.empty((BLOCK, D), np.float32), np.zeros((BLOCK, hidden.shape[1]), np.float32)
    y = np.empty((BLOCK, len(w2) * WIDTH), np.float32)
    w1_pairs, w2_pairs = pairs_for(w1, BLOCK), pairs_for(w2, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        for i in range(count):
            _normalise(x, first + i, norm_weight, norm_bias, eps, stats, normal[i])
        multiply(normal, count, w1, b1, 0, False, hidden[first:], w1_pairs)
        for i in range(count):
            n = first + i
            if threshold:
                for d in range(width):
                    a = hidden[n, d] * sigmoid(hidden[n, d])
                    active[i, d] = dropped(a, n * width + d, key, second_key, threshold, scale)
            else:
                for d in range(width):
                    active[i, d] = hidden[n, d] * sigmoid(hidden[n, d])
        multiply(active, count, w2, b2, 0, False, y, w2_pairs)
        for i in range(count):
            n = first + i
            if out_threshold:
                for d in range(D):
                    a = dropped(y[i, d], n * D + d, out_key, out_second_key, out_threshold, out_scale)
                    out[n, d] = x[n, d] + factor * a
            else:
                for d in range(D):
                    out[n, d] = x[n, d] + factor * y[i, d]


def _feed_forward_back(
    begin, end, part, grad, x, stats, hidden, norm_weight, norm_bias, w1, w2, factor, width, first_drop, second_drop,
    out, w1_grads, b1_grads, w2_grads, b2_grads, norm_weight_grads, norm_bias_grads,
):  # fmt: skip
    """out (N, D) = grad + gradient of the branch by x, and those by the parameters."""
    key, second_key, threshold, scale = first_drop
    out_key, out_second_key, out_threshold, out_scale = second_drop
    N, D = x.shape
    wide, widest = len(w1) * WIDTH, max(len(w1), len(w2)) * WIDTH
    y_grad, x_grad = np.zeros((BLOCK, wide), np.float32), np.empty((BLOCK, wide), np.float32)
    hidden_grad = np.zeros((BLOCK, len(w2) * WIDTH), np.float32)
    active, normal = np.empty((len(w2), BLOCK, WIDTH), np.float32), np.empty((len(w1), BLOCK, WIDTH), np.float32)
    row, none = np.zeros(widest, np.float32), np.zeros(widest, np.float32)
    own, inner = np.empty(D, np.float32), np.empty(D, np.float32)
    b1_grad, b2_grad = b1_grads[part], b2_grads[part]
    weight_grad, bias_grad = norm_weight_grads[part], norm_bias_grads[part]
    w1_pairs, w2_pairs = pairs_for(w1, BLOCK), pairs_for(w2, BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        count = min(BLOCK, N - first)
        for i in range(count):
            n, y = first + i, y_grad[i]
            if out_threshold:
                for d in range(D):
                    y[d] = factor * dropped(grad[n, d], n * D + d, out_key, out_second_key, out_threshold, out_scale)
                    b2_grad[d] += y[d]
            else:
                for d in range(D):
                    y[d] = factor * grad[n, d]
                    b2_grad[d] += y[d]
        multiply(y_grad, count, w2, none, 0, False, hidden_grad, w2_pairs)
        for i in range(count):
            n, h = first + i, hidden_grad[i]
            if threshold:
                for d in range(width):
                    z = hidden[n, d]
                    s = sigmoid(z)
                    kept = dropped(ONE, n * width + d, key, second_key, threshold, scale)
                    row[d] = z * s * kept
                    g = h[d] * kept * s * (ONE + z * (ONE - s))
                    h[d] = g
                    b1_grad[d] += g
            else:
                for d in range(width):
                    z = hidden[n, d]
                    s = sigmoid(z)
                    row[d] = z * s
                    g = h[d] * s * (ONE + z * (ONE - s))
                    h[d] = g
                    b1_grad[d] += g
            into_panels(row, i, active)
        add_products_like(y_grad, count, active, none, w2, w2_grads[part])
        for i in range(count):
            _normal_again(x, first + i, norm_weight, norm_bias, stats, row)
            into_panels(row, i, normal)
        add_products_like(hidden_grad, count, normal, none, w1, w1_grads[part])
        multiply(hidden_grad, count, w1, none, 0, False, x_grad, w1_pairs)
        for i in range(count):
            _normalise_back(x_grad[i], x, first + i, norm_weight, stats, grad, own, inner, weight_grad, bias_grad, out)


product = compiled(_product, nogil=True)
product_back = compiled(_product_back, nogil=True)
product_add = compiled(_product_add, nogil=True)
norm_product = compiled(_norm_product, nogil=True)
norm_product_back = compiled(_norm_product_back, nogil=True)
feed_forward = compiled(_feed_forward, nogil=True)
feed_forward_back = compiled(_feed_forward_back, nogil=True)
