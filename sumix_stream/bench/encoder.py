"""The whole encoder, forward and with every gradient: SummaryMixing beside its attention twin, over lengths.

B utterances of `seconds` each, D channels, C frames of a chunk, L chunks of left context.
"""

import contextlib
import dataclasses

import torch
from torch import Tensor

from sumix_kernels.bench.registry import Benchmark, Contender, Inputs, Shape, Work, random_tensors
from sumix_stream.config import PRESETS, ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.base import make_encoder
from sumix_stream.features import NUM_BINS
from sumix_stream.timebase import Timebase

FEATURE_FRAMES_PER_SECOND = Timebase().sample_rate // Timebase().frame_shift


def mixer_config(shape: Shape, mixer: str) -> ModelConfig:
    """The preset with that mixer and without dropout, whose random numbers differ from its reference's."""
    config = PRESETS[shape["preset"]]
    encoder = dataclasses.replace(config.encoder, mixer=mixer, dropout=0.0)
    return dataclasses.replace(config, encoder=encoder, predictor=dataclasses.replace(config.predictor, dropout=0.0))


def make_features(shape: Shape, device: str) -> Inputs:
    """Features (B, T0, 80) in fp32 and their lengths, all alike but for shape["shortest"] seconds of the last."""
    num_frames = shape["seconds"] * FEATURE_FRAMES_PER_SECOND
    lengths = torch.full((shape["B"],), num_frames, device=device)
    lengths[-1] = shape.get("shortest", shape["seconds"]) * FEATURE_FRAMES_PER_SECOND
    return random_tensors(torch.float32, device, feats=(shape["B"], num_frames, NUM_BINS)) | {"lengths": lengths}


def context_of(shape: Shape) -> ChunkContext:
    return ChunkContext(shape["C"], shape["L"])


def autocast(inputs: Inputs, shape: Shape) -> contextlib.AbstractContextManager:
    """As a mixed-precision training step: weights fp32, products in `dtype`; nothing for fp32, and for fp64 inputs."""
    dtype, feats = inputs["dtype"], inputs["feats"]
    if dtype == torch.float32 or feats.dtype == torch.float64:
        return contextlib.nullcontext()
    return torch.autocast(feats.device.type, dtype)


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return make_features(shape, device) | {"dtype": dtype}


def _prepare(mixer: str):
    def prepare(inputs: Inputs, shape: Shape) -> Inputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = make_encoder(mixer_config(shape, mixer).encoder)
        return {"encoder": encoder.to(inputs["feats"].device)}

    return prepare


def _run(inputs: Inputs, shape: Shape) -> Tensor:
    with autocast(inputs, shape):
        return inputs["encoder"](inputs["feats"], inputs["lengths"], context_of(shape))[0]


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """A multiply-add for each weight of the layers and frame, again for both gradients; weights and features once.

    Attention's scores and the front end are not counted.
    """
    config = mixer_config(shape, "summary").encoder
    weights = config.num_layers * (4 * config.dim * config.ffn_dim + (4 + 3) * config.dim**2)  # two FFNs, mixer, conv
    frames = shape["B"] * shape["seconds"] * FEATURE_FRAMES_PER_SECOND // Timebase().subsampling
    num_bytes = itemsize * weights + 4 * shape["B"] * shape["seconds"] * FEATURE_FRAMES_PER_SECOND * NUM_BINS
    return {
        "forward": Work(num_bytes, 2 * weights * frames),
        "forward+backward": Work(2 * num_bytes, 6 * weights * frames),
    }


def audio_figures(shape: Shape, name: str, row) -> dict[str, float]:
    """Hours of audio an hour."""
    return {"audio hours / h": shape["B"] * shape["seconds"] / (1e-3 * row["ms_p50"])}


def _shapes(preset: str, batch_size: int, seconds: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple({"preset": preset, "B": batch_size, "seconds": s, "C": 16, "L": 4} for s in seconds)


# The reference is the same encoder in fp64, on the torch backend; every layer rounds again.
TOLERANCE = {"fp32": (2e-5, 1e-5), "fp16": (2e-2, 1e-2), "bf16": (1e-1, 4e-2)}

BENCHMARK = Benchmark(
    name="encoder",
    source=__name__,
    shapes={"cpu": _shapes("tiny", 1, (5, 10, 20)), "cuda": _shapes("large", 16, (30, 10, 60, 120))},
    dtypes={"cpu": ("fp32",), "cuda": ("bf16",)},
    gate_shape={"preset": "tiny", "B": 2, "seconds": 2, "C": 8, "L": 1, "shortest": 1},
    make=_make,
    contenders=(
        Contender("summary", _run, _run, ("encoder",), prepare=_prepare("summary"), ours=True),
        Contender("attention", _run, _run, ("encoder",), prepare=_prepare("attention"), ours=True, baseline=True),
    ),
    axis="seconds",
    wall_clock=True,
    work=_work,
    figures=audio_figures,
    tolerance=TOLERANCE,
    about="Weights count as memory. The reference is the same encoder in fp64, on the torch backend. The twin is timed "
    "as the toolkit has it: SDPA with a mask that each layer makes.",
)
