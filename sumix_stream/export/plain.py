"""ONNX files under plain names: the model's own functions, token numbers and state, for a runtime of one's own.

B streams, W feature frames of a window, C encoder frames of a chunk, D encoder and P predictor channels, V tokens.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.export.graph import export_onnx
from sumix_stream.export.steps import EncoderStep, JoinerStep, PredictorStep, WholeEncoder
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.bundle import ENCODER, JOINER, NEXT, PREDICTOR, TOKENS, UNLIMITED, WHOLE
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import BLANK_PIECE, Tokenizer


def save(folder: Path, model: Transducer, tokenizer: Tokenizer, context: ChunkContext) -> None:
    """Write encoder.onnx, predictor.onnx, joiner.onnx and tokens.txt into an existing folder."""
    encoder = EncoderStep(model.encoder, context)
    metadata = geometry(model, encoder)
    for name, (module, example, inputs, outputs) in parts(model, encoder).items():
        file = {"encoder": ENCODER, "predictor": PREDICTOR, "joiner": JOINER}[name]
        axes = [0] * len(example)
        export_onnx(module, example, axes, folder / file, inputs=inputs, outputs=outputs, metadata=metadata)
    write_tokens(folder / TOKENS, tokenizer)


def save_whole(folder: Path, model: Transducer) -> None:
    """Write whole.onnx, which hears a whole segment again. Raises ValueError for a mixer that has no such graph."""
    module, step = WholeEncoder(model.encoder), model.timebase.subsampling
    example = torch.randn(2, 24 * step, NUM_BINS), torch.tensor([24 * step, 50])
    names = {"inputs": ["feats", "lengths"], "outputs": ["frames", "frame_lengths"]}
    metadata = {"sample_rate": model.timebase.sample_rate, "subsampling": step}
    export_onnx(module, example, [0, 0], folder / WHOLE, metadata=metadata, steps={0: step}, **names)


def parts(
    model: Transducer, encoder: EncoderStep
) -> dict[str, tuple[torch.nn.Module, tuple[Tensor, ...], list[str], list[str]]]:
    """encoder, predictor, joiner: each with inputs of two streams, and the names of its inputs and outputs."""
    state = list(encoder.fresh)
    lstm = torch.zeros(2, model.predictor.lstm.num_layers, model.predictor.dim)
    feats, frames = torch.randn(2, encoder.window, NUM_BINS), torch.zeros(2, model.config.encoder.dim)
    return {
        "encoder": (
            encoder,
            (feats, torch.full((2,), encoder.window), *encoder.init_state(2)),
            ["feats", "lengths", *state],
            ["frames", "frame_lengths", *(NEXT + name for name in state)],
        ),
        "predictor": (
            PredictorStep(model),
            (torch.zeros(2, dtype=torch.int64), lstm, lstm.clone()),
            ["tokens", "hidden", "cell"],
            ["predicted", NEXT + "hidden", NEXT + "cell"],
        ),
        "joiner": (JoinerStep(model), (frames, lstm[:, 0].clone()), ["frames", "predicted"], ["logits"]),
    }


def geometry(model: Transducer, encoder: EncoderStep) -> dict[str, object]:
    """What a program needs to run the graphs, as it travels with them."""
    left = encoder.context.left_context
    return {
        "sample_rate": model.timebase.sample_rate,
        "num_bins": NUM_BINS,
        "window": encoder.window,  # feature frames of a step
        "shift": encoder.window,  # feature frames from a step to the next
        "subsampling": model.timebase.subsampling,
        "chunk_size": encoder.context.chunk_size,  # encoder frames
        "left_context": UNLIMITED if left is None else left,  # chunks
        "vocab_size": model.vocab_size,
        "blank_id": model.blank_id,
        "predictor_layers": model.predictor.lstm.num_layers,
        "predictor_dim": model.predictor.dim,
        "state": json.dumps({name: list(fresh.shape[1:]) for name, fresh in encoder.fresh.items()}),
    }


def write_tokens(path: Path, tokenizer: Tokenizer) -> None:
    """One piece a line with its id, blank first."""
    pieces = [BLANK_PIECE, *map(tokenizer.piece, range(1, tokenizer.vocab_size))]
    lines = (f"{piece} {i}\n" for i, piece in enumerate(pieces))
    path.write_text("".join(lines), encoding="utf-8")
