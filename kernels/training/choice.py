"""Where the compiled branches take the place of PyTorch's parts."""

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

from sumix_kernels.backend import resolve
from sumix_kernels.machine import why_not_compiled


def training_branches(x: Tensor, *modules: nn.Module) -> ModuleType | None:
    """`sumix_kernels.training.branches` where it can compute a pass with gradients over x (B, T, ...), else None.

    It can in fp32 on the CPU, outside torch.compile and tracing, with Numba installed, parameters of the modules
    included, and unless a backend of the kernels is preferred by name; under autocast to bf16 as well, where the
    processor multiplies bfloat16. There products of a layer's frames are in bf16, where they have an even number of
    inputs; convolutions of the front end, products of summaries, sums and results are fp32.
    """
    if x.numel() == 0 or not torch.is_grad_enabled() or not compiled_here(x):
        return None
    dtypes = {torch.float32}
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not multiplies_bf16():
            return None
        dtypes.add(torch.bfloat16)
    if x.dtype not in dtypes:
        return None
    parameters = (parameter for module in modules for parameter in module.parameters())
    if any(parameter.device.type != "cpu" or parameter.dtype != torch.float32 for parameter in parameters):
        return None
    from sumix_kernels.training import branches

    return branches


def compiled_here(x: Tensor) -> bool:
    """Whether functions compiled by Numba may compute with x: on the CPU, outside torch.compile and tracing, with Numba
    installed, on x86-64, and unless a backend of the kernels is preferred by name."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return resolve("auto") == "auto" and has_numba()


@cache
def has_numba() -> bool:
    return find_spec("numba") is not None and why_not_compiled() is None


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16, and Numba is installed."""
    if not has_numba():
        return False
    from sumix_kernels.cpu.products import HAS_BF16

    return HAS_BF16
