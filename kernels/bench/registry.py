"""What can be timed: a benchmark is an op or a model, its shapes, what it must equal, and what stands beside it."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Shape = Mapping[str, Any]  # letter -> size
Inputs = dict[str, Any]  # name -> tensor, or what a contender prepared: a module, a mask
Outputs = Tensor | tuple[Tensor, ...]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PASSES = ("forward", "forward+backward")

# dtype -> (maximum error over the largest reference element, RMS error over the reference's RMS): an op that rounds its
# result once. The same numbers hold in the tests.
TOLERANCE = {"fp32": (1e-5, 3e-6), "fp16": (1.5e-3, 6e-4), "bf16": (1e-2, 4e-3)}


class Work(NamedTuple):
    """What a pass has to do at least: bytes to and from memory, floating point operations."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Contender:
    """One way to compute a benchmark's function.

    run: inputs, shape -> output or outputs, differentiable in the inputs named by `wrt` (of a module: its parameters).
    reference: the same from inputs in fp64, independently.
    prepare: what is made once a batch for all layers, and so not timed; its bytes count as the contender's memory.
    working_bytes: shape, bytes of an element -> least memory that it needs; it is not started where that is too much.
    obstacle: device type -> why it is not run there, or None.
    at: whether it is timed at a shape; one that compiles for each shape is not timed at all of them.
    dtypes: those it is timed in; None = the benchmark's.
    baseline: the others are compared with it.
    ours: this project's own: where it is wrong, nothing of its benchmark is timed. Another is then left out alone.
    """

    name: str
    run: Callable[[Inputs, Shape], Outputs]
    reference: Callable[[Inputs, Shape], Outputs]
    wrt: tuple[str, ...]
    prepare: Callable[[Inputs, Shape], Inputs] = lambda inputs, shape: {}
    working_bytes: Callable[[Shape, int], float] = lambda shape, itemsize: 0
    obstacle: Callable[[str], str | None] = lambda device_type: None
    at: Callable[[Shape], bool] = lambda shape: True
    dtypes: tuple[str, ...] | None = None
    baseline: bool = False
    ours: bool = False


def op_passes(contender: Contender, inputs: Inputs, shape: Shape) -> dict[str, Callable[[], object]]:
    """Forward without a graph; forward with the gradients of everything in `wrt`."""
    differentiable, leaves = with_leaves(inputs, contender.wrt)
    with torch.no_grad():
        grads = [torch.ones_like(y) for y in as_tuple(contender.run(inputs, shape))]  # made here: they count as inputs

    def forward() -> None:
        with torch.no_grad():
            contender.run(inputs, shape)

    def forward_backward() -> None:
        torch.autograd.grad(as_tuple(contender.run(differentiable, shape)), list(leaves.values()), grads)

    return dict(zip(PASSES, (forward, forward_backward)))


@dataclass(frozen=True)
class Benchmark:
    """A function with its contenders. `source` is the module that holds it as BENCHMARK.

    shapes, dtypes: by device type, "cpu" and "cuda"; the shapes of the goals first.
    axis: letter whose growth is plotted.
    gate_shape: where every contender is compared with its reference.
    make: shape, dtype, device -> inputs, the same numbers at every call.
    passes: contender, inputs, shape -> what is timed, by name.
    wall_clock: time from the call to the result, launches included, where a GPU's own time would not be what one waits.
    work: shape, bytes of an element -> least work by pass; empty where it was not counted.
    figures: shape, pass, row of results -> further columns.
    tolerance: as TOLERANCE, for functions that round more often than once.
    about: sentences for the report.
    """

    name: str
    source: str
    shapes: Mapping[str, tuple[Shape, ...]]
    dtypes: Mapping[str, tuple[str, ...]]
    gate_shape: Shape
    make: Callable[[Shape, torch.dtype, str], Inputs]
    contenders: tuple[Contender, ...]
    axis: str = "T"
    passes: Callable[[Contender, Inputs, Shape], dict[str, Callable[[], object]]] = op_passes
    pass_names: tuple[str, ...] = PASSES
    wall_clock: bool = False
    work: Callable[[Shape, int], Mapping[str, Work]] = lambda shape, itemsize: {}
    figures: Callable[[Shape, str, Mapping[str, Any]], dict[str, float]] = lambda shape, name, row: {}
    tolerance: Mapping[str, tuple[float, float]] = field(default_factory=lambda: TOLERANCE)
    about: str = ""

    def contender(self, name: str) -> Contender:
        return next(contender for contender in self.contenders if contender.name == name)


def load(source: str) -> Benchmark:
    return importlib.import_module(source).BENCHMARK


OPS = ("chunk_summary", "mixer", "chunk_conv1d", "chunk_decay_mean", "loss")  # modules beside this one


def benchmarks() -> dict[str, Benchmark]:
    return {name: load(f"{__package__}.{name}") for name in OPS}


def find(op: str) -> Benchmark:
    """Raises ValueError for an op that has no benchmark."""
    known = benchmarks()
    if op not in known:
        raise ValueError(f"op must be one of {', '.join(known)}, got {op!r}")
    return known[op]


def compiled(run: Callable[[Inputs, Shape], Outputs]) -> Callable[[Inputs, Shape], Outputs]:
    """`run` under torch.compile, for the shape of the call."""

    @functools.cache
    def compile_() -> Callable[[Inputs, Shape], Outputs]:
        return torch.compile(run, dynamic=False)

    return lambda inputs, shape: compile_()(inputs, shape)


def grown(most: int, **rest: int) -> tuple[Shape, ...]:
    """B 1, from 1024 frames on, twice as many each."""
    return tuple({"B": 1, "T": T, **rest} for T in (1 << i for i in range(10, 18)) if T <= most)


def batches(shape: Shape) -> bool:
    """The goals' shapes, against those of one utterance, which show the growth."""
    return shape["B"] > 1


def only_on_gpu(why: str) -> Callable[[str], str | None]:
    return lambda device_type: None if device_type == "cuda" else why


COMPILED_ON_GPU = only_on_gpu("torch.compile is compared on a GPU")


def triton_contender(run: Callable[[Inputs, Shape], Outputs], reference: Callable, wrt: tuple[str, ...]) -> Contender:
    why = "Triton's interpreter has no speed to measure"
    return Contender("triton", run, reference, wrt, obstacle=only_on_gpu(why), ours=True)


def compiled_contender(run: Callable[[Inputs, Shape], Outputs], reference: Callable, wrt: tuple[str, ...]) -> Contender:
    """`run`, a torch backend, under torch.compile: a baseline at the goals' shapes, for each shape compiles anew."""
    return Contender(
        "torch, compiled", compiled(run), reference, wrt, at=batches, obstacle=COMPILED_ON_GPU, baseline=True
    )


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def with_leaves(inputs: Inputs, wrt: tuple[str, ...]) -> tuple[Inputs, dict[str, Tensor]]:
    """inputs ready to be differentiated, and the leaves by name: tensors, and the parameters of modules."""
    inputs, leaves = dict(inputs), {}
    for name in wrt:
        if isinstance(inputs[name], nn.Module):
            leaves |= {f"{name}.{key}": parameter for key, parameter in inputs[name].named_parameters()}
        else:
            leaves[name] = inputs[name] = inputs[name].detach().requires_grad_()
    return inputs, leaves


def random_tensors(dtype: torch.dtype, device: str, **shapes: tuple[int, ...]) -> Inputs:
    """Normal numbers, the same at every call and on every device."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}


def make_lengths(shape: Shape, device: str) -> Tensor:
    """(B,): all T, or falling evenly from T to shape["shortest"]."""
    B, T = shape["B"], shape["T"]
    fall = T - shape.get("shortest", T)
    return torch.tensor([T - b * fall // max(1, B - 1) for b in range(B)], device=device)
