"""The whole training step: encoder, predictor, losses, backward, clipping, AdamW; SummaryMixing and its attention twin.

B utterances of `seconds` each with U tokens, V vocabulary, C frames of a chunk, L chunks of left context.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sumix_kernels import preferred_backend
from sumix_kernels.bench.registry import Benchmark, Contender, Inputs, Shape
from sumix_kernels.training.choice import multiplies_bf16
from sumix_stream.bench.encoder import TOLERANCE, audio_figures, autocast, context_of, make_features, mixer_config
from sumix_stream.tasks.build import build_model
from sumix_stream.timebase import Timebase
from sumix_stream.train.allocation import keep_freed_memory

_WEIGHTS = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    inputs = make_features(shape, device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, shape["V"], (shape["B"], shape["U"]), generator=generator).to(device)
    token_lengths = inputs["lengths"] * shape["U"] // inputs["feats"].shape[1]
    return inputs | {"tokens": tokens, "token_lengths": token_lengths, "dtype": dtype}


def _prepare(mixer: str):
    def prepare(inputs: Inputs, shape: Shape) -> Inputs:
        keep_freed_memory()  # as bin/train does
        model = build_model(mixer_config(shape, mixer), shape["V"])
        return {"model": model.to(inputs["feats"].device).train()}

    return prepare


def _loss(inputs: Inputs, shape: Shape) -> Tensor:
    batch = (inputs[name] for name in ("feats", "lengths", "tokens", "token_lengths"))
    with autocast(inputs, shape):
        return inputs["model"](*batch, context_of(shape), _WEIGHTS).total


def _by_operators(inputs: Inputs, shape: Shape) -> Tensor:
    with preferred_backend("torch"):
        return _loss(inputs, shape)


def _passes(contender: Contender, inputs: Inputs, shape: Shape) -> dict[str, Callable[[], object]]:
    parameters = list(inputs["model"].parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        contender.run(inputs, shape).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimiser's state is there before anything is measured
    return {"step": step}


def _figures(shape: Shape, name: str, row: dict[str, Any]) -> dict[str, float]:
    seconds = 1e-3 * row["ms_p50"]
    frames = shape["B"] * shape["seconds"] / Timebase().encoder_frame_seconds
    rates = {"tokens / s": shape["B"] * shape["U"] / seconds, "encoder frames / s": frames / seconds}
    return rates | audio_figures(shape, name, row)


_CPU = {"preset": "tiny", "B": 2, "seconds": 5, "U": 20, "V": 100, "C": 16, "L": 4}

BENCHMARK = Benchmark(
    name="train-step",
    source=__name__,
    shapes={
        "cpu": (_CPU, {**_CPU, "seconds": 10, "U": 40}),
        "cuda": tuple(
            {"preset": "large", "B": B, "seconds": seconds, "U": 3 * seconds, "V": 500, "C": 16, "L": 4}
            for B, seconds in ((32, 30), (16, 60))
        ),
    },
    dtypes={"cpu": ("fp32", "bf16") if multiplies_bf16() else ("fp32",), "cuda": ("bf16",)},
    gate_shape={"preset": "tiny", "B": 2, "seconds": 2, "U": 6, "V": 30, "C": 8, "L": 1, "shortest": 1},
    make=_make,
    contenders=(
        Contender("summary", _loss, _loss, ("model",), prepare=_prepare("summary"), ours=True),
        Contender("torch's operators", _by_operators, _loss, ("model",), prepare=_prepare("summary"), ours=True),
        Contender("attention", _loss, _loss, ("model",), prepare=_prepare("attention"), ours=True, baseline=True),
    ),
    axis="seconds",
    wall_clock=True,
    passes=_passes,
    pass_names=("step",),
    figures=_figures,
    tolerance=TOLERANCE,
    about="Forward, loss, backward, clipping, fused AdamW, without dropout. Weights count as memory. "
    "`torch's operators`: without what is compiled, on a CPU by Numba, on a GPU by Triton. The reference is "
    "the same model in fp64, on the torch backend.",
)
