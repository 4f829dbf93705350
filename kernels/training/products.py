"""Room for products by blocks of rows (`sumix_kernels.cpu.training_products`), and threads that share the blocks.

P parts, N rows, O outputs and D inputs of a weight (O, D). `bf16`: factors of products are rounded to bfloat16.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sumix_kernels.cpu.products import ROWS, WIDTH
from sumix_kernels.cpu.training_products import (
    BLOCK,
    norm_product,
    norm_product_back,
    panels_back,
    panels_in_pairs,
    panels_of,
    product,
    product_back,
)
from sumix_kernels.training.rows import num_parts, share


def room(num_rows: int, num_columns: int) -> Tensor:
    """(num_rows, num_columns) or more fp32, each a multiple of what products take at once; not initialised."""
    return torch.empty(-(-num_rows // ROWS) * ROWS, -(-num_columns // WIDTH) * WIDTH)


def in_panels(weight: Tensor, bf16: bool = False) -> Tensor:
    """A weight (O, D) as products x W^T take it."""
    num_outputs, num_inputs = weight.shape
    out = torch.empty(-(-num_outputs // WIDTH), num_inputs, WIDTH)
    panels_of(weight.detach().contiguous().numpy(), out.numpy())
    return _in_pairs(out) if bf16 else out


def in_panels_back(weight: Tensor, bf16: bool = False) -> Tensor:
    """A weight (O, D) as products g W take it."""
    num_outputs, num_inputs = weight.shape
    out = torch.empty(-(-num_inputs // WIDTH), num_outputs, WIDTH)
    panels_back(weight.detach().contiguous().numpy(), out.numpy())
    return _in_pairs(out) if bf16 else out


def _in_pairs(panels: Tensor) -> Tensor:
    """Panels (P, n, WIDTH) in bf16; as they are where n is odd: the last pair's other half would be read as well."""
    if panels.shape[1] % 2:
        return panels
    out = torch.empty(len(panels), panels.shape[1] // 2, WIDTH, dtype=torch.int32)
    panels_in_pairs(panels.numpy(), out.numpy())
    return out


def filled(bias: Tensor) -> Tensor:
    """A bias (O,) with zeros for the columns that fill up a panel."""
    return functional.pad(bias.detach(), (0, -len(bias) % WIDTH))


def weight_room(parts: int, weight: Tensor) -> Tensor:
    """Zeros (P, O, D), with room, to which a product's gradients by its weight are added."""
    num_outputs, num_inputs = weight.shape
    return torch.zeros(parts, -(-num_outputs // ROWS) * ROWS, -(-num_inputs // WIDTH) * WIDTH)


def weight_grad(sums: Tensor, weight: Tensor) -> Tensor:
    """The gradient (O, D) from the sums (P, O, D), with room, of all parts."""
    total = sums[0] if len(sums) == 1 else sums.sum(0)
    return total[: weight.shape[0], : weight.shape[1]].contiguous()


def num_block_parts(num_rows: int) -> int:
    """Threads that share the blocks of so many rows."""
    return num_parts(-(-num_rows // BLOCK), 1)


def share_blocks(function: Callable, num_rows: int, *arguments) -> None:
    """function(begin, end, part, *arguments) for even pieces of the rows' blocks, each in a thread."""
    share(function, -(-num_rows // BLOCK), num_block_parts(num_rows), *arguments)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, num_rows: int, out: Tensor, bf16: bool = False) -> None:
    """out (N, O) = x (N, D) W^T + bias, both with room."""
    bias = torch.zeros(out.shape[1]) if bias is None else filled(bias)
    share_blocks(product, num_rows, x, in_panels(weight, bf16), bias, num_rows, out)


def multiply_back(grad: Tensor, x: Tensor, weight: Tensor, num_rows: int, out: Tensor, bf16: bool = False) -> Tensor:
    """out (N, D) = grad (N, O) W, both with room; the gradient by W, that x (N, D) was multiplied by."""
    sums = weight_room(num_block_parts(num_rows), weight)
    share_blocks(product_back, num_rows, grad, x, in_panels_back(weight, bf16), num_rows, out, sums)
    return weight_grad(sums, weight)


def multiply_normal(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    stats: Tensor,
    out: Tensor,
    bf16: bool = False,
) -> None:
    """out (N, O), with room, = LayerNorm(x (N, D)) W^T + bias, and the statistics (N, 2)."""
    norm = (norm_weight, norm_bias, np.float32(eps))
    share_blocks(norm_product, x.shape[0], x, *norm, in_panels(weight, bf16), filled(bias), stats, out)


def multiply_normal_back(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    residual: Tensor,
    bf16: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x (N, D), plus `residual`, by W, and by the norm's weight and bias; grad (N, O) with room."""
    N, D = x.shape
    parts, out = num_block_parts(N), torch.empty_like(x)
    sums = (weight_room(parts, weight), *x.new_zeros(2, parts, D).unbind())
    arguments = (grad, x, stats, norm_weight, norm_bias, in_panels_back(weight, bf16), residual)
    share_blocks(norm_product_back, N, *arguments, out, *sums)
    return out, weight_grad(sums[0], weight), sums[1].sum(0), sums[2].sum(0)
