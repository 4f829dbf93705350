"""ONNX files under plain names: the model's own functions, token numbers and state, for a runtime of one's own.

B streams, W feature frames of a window, C encoder frames of a chunk, D encoder and P predictor channels, V tokens.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sumix_stream.export.bundle import Bundle, State, open_session
from sumix_stream.export.graph import export_onnx
from sumix_stream.export.steps import EncoderStep, JoinerStep, PredictorStep
from sumix_stream.features import NUM_BINS
from sumix_stream.model.transducer import Transducer
from sumix_stream.nn.chunking import ChunkContext
from sumix_stream.tokenizer import Tokenizer

ENCODER, PREDICTOR, JOINER, TOKENS = "encoder.onnx", "predictor.onnx", "joiner.onnx", "tokens.txt"
NEXT = "next."  # before the name of a state, that of the state after the step


def save(folder: Path, model: Transducer, tokenizer: Tokenizer, context: ChunkContext) -> None:
    """Write encoder.onnx, predictor.onnx, joiner.onnx and tokens.txt into an existing folder."""
    encoder = EncoderStep(model.encoder, context)
    metadata = geometry(model, encoder)
    for name, (module, example, inputs, outputs) in parts(model, encoder).items():
        file = {"encoder": ENCODER, "predictor": PREDICTOR, "joiner": JOINER}[name]
        axes = [0] * len(example)
        export_onnx(module, example, axes, folder / file, inputs=inputs, outputs=outputs, metadata=metadata)
    write_tokens(folder / TOKENS, tokenizer)


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
        "left_context": "unlimited" if left is None else left,  # chunks
        "vocab_size": model.vocab_size,
        "blank_id": model.blank_id,
        "predictor_layers": model.predictor.lstm.num_layers,
        "predictor_dim": model.predictor.dim,
        "state": json.dumps({name: list(fresh.shape[1:]) for name, fresh in encoder.fresh.items()}),
    }


def write_tokens(path: Path, tokenizer: Tokenizer) -> None:
    """One piece a line with its id, blank first."""
    lines = (f"{tokenizer.piece(i)} {i}\n" for i in range(tokenizer.vocab_size))
    path.write_text("".join(lines), encoding="utf-8")


class OnnxBundle(Bundle):
    """The files in onnxruntime."""

    def __init__(self, folder: Path) -> None:
        self._encoder, self._predictor, self._joiner = (open_session(folder / f) for f in (ENCODER, PREDICTOR, JOINER))
        meta = self._encoder.get_modelmeta().custom_metadata_map
        self.window, self.blank_id = int(meta["window"]), int(meta["blank_id"])
        self._lstm = int(meta["predictor_layers"]), int(meta["predictor_dim"])
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self._fresh = {i.name: (i.shape[1:], types[i.type]) for i in self._encoder.get_inputs()[2:]}

    def encoder_state(self, batch_size: int) -> State:
        return [np.zeros((batch_size, *shape), dtype) for shape, dtype in self._fresh.values()]

    def predictor_state(self, batch_size: int) -> State:
        return [np.zeros((batch_size, *self._lstm), np.float32) for _ in range(2)]

    def encode(self, feats: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        given: Mapping[str, np.ndarray] = dict(zip(self._fresh, state))
        frames, frame_lengths, *after = self._encoder.run(None, {"feats": feats, "lengths": lengths, **given})
        return frames, frame_lengths, after

    def predict(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        out, *after = self._predictor.run(None, {"tokens": tokens, "hidden": state[0], "cell": state[1]})
        return out, after

    def join(self, frames: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return self._joiner.run(None, {"frames": frames, "predicted": predicted})[0]
