"""One chunk step of the encoder for many streams at once: how long it takes, how many streams run in real time.

S streams, C frames of a chunk, L chunks of left context.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sumix_kernels.bench.registry import Benchmark, Contender, Inputs, Shape, only_on_gpu, random_tensors
from sumix_stream.bench.encoder import TOLERANCE, autocast, context_of, mixer_config
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import Encoder, make_encoder
from sumix_stream.encoders.states import EncoderState
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.cuda_graph import StepGraphs
from sumix_stream.runtime.torch import TensorRows
from sumix_stream.timebase import Timebase

Step = Callable[[Tensor, Tensor], Tensor]  # features of a chunk and their lengths -> output; the state goes on inside


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Features (fp32) of as many chunks of each stream as the shape says, or one."""
    num_frames = shape.get("chunks", 1) * _window(shape)
    feats = random_tensors(torch.float32, device, feats=(shape["S"], num_frames, NUM_BINS))
    return feats | {"lengths": torch.full((shape["S"],), num_frames, device=device), "dtype": dtype}


def _window(shape: Shape) -> int:
    return Timebase().feature_frames_per_chunk(shape["C"])


class _Rounded(nn.Module):
    """An encoder whose features are rounded to its weights' precision."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.init_state, self.window = encoder.init_state, encoder.window

    def forward(self, feats: Tensor, lengths: Tensor, context: ChunkContext) -> tuple[Tensor, Tensor]:
        return self.encoder(self._rounded(feats), lengths, context)

    def step(
        self, feats: Tensor, lengths: Tensor, state: EncoderState, final: bool | Tensor = False
    ) -> tuple[Tensor, Tensor, EncoderState]:
        return self.encoder.step(self._rounded(feats), lengths, state, final)

    def _rounded(self, feats: Tensor) -> Tensor:
        return feats.to(next(self.parameters()).dtype)


def _prepare(mixer: str, stepper: Callable[[Inputs, Shape], Step]):
    """SummaryMixing in half precision throughout; the twin, whose cache is fp32, under autocast."""

    def prepare(inputs: Inputs, shape: Shape) -> Inputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = _Rounded(make_encoder(mixer_config(shape, mixer).encoder)).eval()
        dtype = torch.float32 if mixer == "attention" else inputs["dtype"]
        return {"encoder": encoder.to(inputs["feats"].device, dtype), "stepper": stepper}

    return prepare


def _eager(inputs: Inputs, shape: Shape) -> Step:
    encoder = inputs["encoder"]
    state = encoder.init_state(shape["S"], context_of(shape))
    rounded = next(encoder.parameters()).dtype == inputs["dtype"]

    def step(feats: Tensor, lengths: Tensor) -> Tensor:
        nonlocal state
        with contextlib.nullcontext() if rounded else autocast(inputs, shape):
            out, _, state = encoder.step(feats, lengths, state)
        return out

    return step


def _graph(inputs: Inputs, shape: Shape) -> Step:
    """As one CUDA graph, on a GPU."""
    encoder, context = inputs["encoder"], context_of(shape)
    fresh = encoder.init_state(1, context)
    rows = TensorRows(fresh)
    graphs = StepGraphs(rows.of_step(encoder.step), encoder.window(context), rows.size, inputs["feats"].device)
    table = torch.zeros(shape["S"], rows.size, dtype=torch.uint8, device=inputs["feats"].device)

    def step(feats: Tensor, lengths: Tensor) -> Tensor:
        nonlocal table
        out, table = graphs.step(feats, lengths, table)
        return out

    return step


def _run(inputs: Inputs, shape: Shape) -> Tensor:
    """All chunks, one after another."""
    step, window = inputs["stepper"](inputs, shape), _window(shape)
    lengths = torch.full_like(inputs["lengths"], window)
    with torch.no_grad():
        return torch.cat([step(feats, lengths).clone() for feats in inputs["feats"].split(window, 1)], 1)


def _whole(inputs: Inputs, shape: Shape) -> Tensor:
    with torch.no_grad():
        return inputs["encoder"](inputs["feats"], inputs["lengths"], context_of(shape))[0]


def _passes(contender: Contender, inputs: Inputs, shape: Shape) -> dict[str, Callable[[], object]]:
    step, window = inputs["stepper"](inputs, shape), _window(shape)
    feats, lengths = inputs["feats"][:, :window].contiguous(), torch.full_like(inputs["lengths"], window)

    def one_step() -> None:
        with torch.no_grad():
            step(feats, lengths)

    return {"step": one_step}


def _figures(shape: Shape, name: str, row: dict[str, Any]) -> dict[str, float]:
    """Streams that one device carries in real time, each step as long as the median one."""
    chunk_seconds = shape["C"] * Timebase().encoder_frame_seconds
    return {"p95, ms": row["ms_p95"], "streams in real time": shape["S"] * chunk_seconds / (1e-3 * row["ms_p50"])}


def _shapes(preset: str, streams: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple({"preset": preset, "S": S, "C": 16, "L": 4} for S in streams)


_ON_GPU = only_on_gpu("a CUDA graph needs a GPU")

BENCHMARK = Benchmark(
    name="stream",
    source=__name__,
    shapes={"cpu": _shapes("tiny", (1, 4, 16)), "cuda": _shapes("large", (1, 256, 16, 64))},
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape={"preset": "tiny", "S": 3, "C": 4, "L": 2, "chunks": 5},
    make=_make,
    contenders=(
        Contender(
            "summary, CUDA graph", _run, _whole, (), prepare=_prepare("summary", _graph), obstacle=_ON_GPU, ours=True
        ),
        Contender("summary, eager", _run, _whole, (), prepare=_prepare("summary", _eager), ours=True, baseline=True),
        Contender(
            "attention, eager", _run, _whole, (), prepare=_prepare("attention", _eager), ours=True, baseline=True
        ),
    ),
    axis="S",
    passes=_passes,
    pass_names=("step",),
    wall_clock=True,
    figures=_figures,
    tolerance=TOLERANCE,
    about="A step of S streams, a whole chunk each. The gate holds the chunks' outputs equal to the encoder on the "
    "whole utterance in fp64. Weights count as memory. Times are from the call to the result, on the host's clock.",
)
