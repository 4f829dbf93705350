"""What can be timed: ops, the shapes they are timed at, what stands beside them; and the gate before the clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = Mapping[str, int]  # letter -> size; T is the axis of the plot

# Largest error allowed, over the reference's largest element: fp32, sums of up to a thousand terms.
GATE_TOLERANCE = 1e-5


class GateError(Exception):
    """A contender computes the wrong thing: its op is not timed."""


@dataclass(frozen=True)
class Contender:
    """One way to compute the op.

    run: x, lengths, shape -> output; differentiable in x.
    reference: the same in fp64, independently.
    working_bytes: least bytes beyond input and output that a run needs; it is not started where they are too many.
    """

    name: str
    run: Callable[[Tensor, Tensor, Shape], Tensor]
    reference: Callable[[Tensor, Tensor, Shape], Tensor]
    working_bytes: Callable[[Shape], int] = lambda shape: 0


@dataclass(frozen=True)
class Benchmark:
    """An op, its shapes (each with at least B, T and D) and its contenders; all take x (B, T, D) in fp32."""

    op: str
    shapes: tuple[Shape, ...]
    gate_shape: Shape
    contenders: tuple[Contender, ...]

    def contender(self, name: str) -> Contender:
        return next(contender for contender in self.contenders if contender.name == name)


def benchmarks() -> dict[str, Benchmark]:
    from sumix_kernels.bench import chunk_summary

    return {benchmark.op: benchmark for benchmark in (chunk_summary.BENCHMARK,)}


def find(op: str) -> Benchmark:
    """Raises ValueError for an op that has no benchmark."""
    known = benchmarks()
    if op not in known:
        raise ValueError(f"op must be one of {', '.join(sorted(known))}, got {op!r}")
    return known[op]


def make_input(shape: Shape, device: str, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape["B"], shape["T"], shape["D"], generator=generator).to(device)
    return x.requires_grad_(requires_grad)


def check(benchmark: Benchmark, device: str) -> None:
    """Hold output and gradient of every contender equal to its reference, on utterances of unequal length.

    Raises GateError naming op, contender and error.
    """
    shape = benchmark.gate_shape
    lengths = torch.tensor([max(1, shape["T"] - 363 * b) for b in range(shape["B"])], device=device)
    for contender in benchmark.contenders:
        x = make_input(shape, device, requires_grad=True)
        reference_x = x.detach().double().requires_grad_()
        y, expected = contender.run(x, lengths, shape), contender.reference(reference_x, lengths, shape)
        if y.shape != expected.shape:
            raise GateError(f"{benchmark.op}: {contender.name} gives {tuple(y.shape)}, not {tuple(expected.shape)}")
        weights = torch.randn_like(y)
        (grad,) = torch.autograd.grad(y, x, weights)
        (expected_grad,) = torch.autograd.grad(expected, reference_x, weights.double())
        for name, actual, wanted in (("output", y, expected), ("gradient", grad, expected_grad)):
            error = ((actual - wanted).abs().max() / wanted.abs().max()).item()
            if not error <= GATE_TOLERANCE:
                raise GateError(
                    f"{benchmark.op}: {contender.name} is not timed, for its {name} is wrong at {dict(shape)}: "
                    f"relative error {error:.3g}, allowed {GATE_TOLERANCE:g}"
                )
