"""The gate before the clock: outputs and gradients of every contender against its fp64 reference."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sumix_kernels.bench.registry import DTYPES, Benchmark, Contender, Inputs, as_tuple, with_leaves


class GateError(Exception):
    """A contender computes the wrong thing: its benchmark is not timed."""


class Verdict(NamedTuple):
    """The largest errors found, over the reference's largest element and over its RMS; or why there are none."""

    max_error: float | None
    rms_error: float | None
    note: str = ""


def check(benchmark: Benchmark, dtype: str, device: str, contenders: tuple[Contender, ...]) -> dict[str, Verdict]:
    """Compare each contender with its reference on utterances of unequal length.

    A contender that cannot run at all (no such backend, no such package) is not wrong; its verdict says why.

    Raises GateError naming benchmark, contender and error where a contender of ours is wrong; of another the verdict
    says it.
    """
    verdicts = {}
    for contender in contenders:
        try:
            verdicts[contender.name] = _verdict(benchmark, contender, dtype, device)
        except GateError as error:
            if contender.ours:
                raise
            verdicts[contender.name] = Verdict(None, None, f"not run: {error}")
    return verdicts


def _verdict(benchmark: Benchmark, contender: Contender, dtype: str, device: str) -> Verdict:
    shape = benchmark.gate_shape
    inputs = benchmark.make(shape, DTYPES[dtype], device)
    try:
        inputs |= contender.prepare(inputs, shape)
        inputs, leaves = with_leaves(inputs, contender.wrt)
        outputs = as_tuple(contender.run(inputs, shape))
    except Exception as error:
        return Verdict(None, None, why(error))
    reference_inputs, reference_leaves = with_leaves(_doubled(inputs), contender.wrt)
    references = as_tuple(contender.reference(reference_inputs, shape))
    for y, reference in zip(outputs, references, strict=True):
        if y.shape != reference.shape:
            raise GateError(f"{benchmark.name}: {contender.name} gives {tuple(y.shape)}, not {tuple(reference.shape)}")
    pairs = {f"output {i}" if i else "output": pair for i, pair in enumerate(zip(outputs, references))}
    if leaves:
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
        try:
            grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
        except Exception as error:
            return Verdict(None, None, why(error))
        weights = [weight.double() for weight in weights]
        reference_grads = torch.autograd.grad(references, list(reference_leaves.values()), weights)
        for name in contender.wrt:
            own = [i for i, leaf in enumerate(leaves) if leaf.split(".")[0] == name]  # of a module: all its parameters
            flat = (torch.cat([g[i].flatten().double() for i in own]) for g in (grads, reference_grads))
            pairs[f"gradient of {name}"] = tuple(flat)
    errors = {name: _errors(*pair) for name, pair in pairs.items()}
    allowed = benchmark.tolerance[dtype]
    for name, error in errors.items():
        if not all(found <= most for found, most in zip(error, allowed)):
            raise GateError(
                f"{benchmark.name}: {contender.name} is not timed, for its {name} is wrong in {dtype} at "
                f"{dict(shape)}: relative error {error[0]:.3g} at most, {error[1]:.3g} RMS; allowed "
                f"{allowed[0]:g} and {allowed[1]:g}"
            )
    return Verdict(*(max(column) for column in zip(*errors.values())))


def _errors(actual: Tensor, reference: Tensor) -> tuple[float, float]:
    if reference.numel() == 0:
        return 0.0, 0.0
    error = (actual.detach().double() - reference.detach()).abs()
    largest, rms = reference.detach().abs().max().item(), reference.detach().square().mean().sqrt().item()
    return error.max().item() / (largest or 1.0), error.square().mean().sqrt().item() / (rms or 1.0)


def _doubled(inputs: Inputs) -> Inputs:
    return {name: _double(value) for name, value in inputs.items()}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    return copy.deepcopy(value).double() if isinstance(value, nn.Module) else value


def why(error: BaseException) -> str:
    """The first line of an error, for a row that has no figures."""
    first = next(iter(str(error).strip().splitlines()), "no message")
    return f"not run: {type(error).__name__}: {first}"
