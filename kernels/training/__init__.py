"""Branches of a conformer layer, and the transducer's joiner, in training on a CPU, compiled by Numba.

PyTorch alone takes some dozen passes over memory between two products, and random numbers for dropout take as long as a
product. Here each branch is one function of autograd; products go by blocks of rows (`sumix_kernels.cpu.products`),
so that what is done between them happens in the caches. Gradients are written out by hand; tests compare them with the
modules in fp64. Where `training_branches` gives None the modules compute the same.
"""

from sumix_kernels.training.choice import training_branches

__all__ = ["training_branches"]
