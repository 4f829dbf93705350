"""torch.export programs (.pt2): the same three functions as the plain ONNX files, for PyTorch without this package."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.export import plain
from sumix_stream.export.graph import export_program, quiet
from sumix_stream.export.steps import EncoderStep
from sumix_stream.runtime.bundle import TOKENS, Bundle, State
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

ENCODER, PREDICTOR, JOINER = "encoder.pt2", "predictor.pt2", "joiner.pt2"
GEOMETRY = "geometry.json"  # inside each program


def save(folder: Path, model: Transducer, tokenizer: Tokenizer, context: ChunkContext) -> None:
    """Write encoder.pt2, predictor.pt2, joiner.pt2 and tokens.txt into an existing folder."""
    encoder = EncoderStep(model.encoder, context)
    for name, (module, example, inputs, outputs) in plain.parts(model, encoder).items():
        about = {**plain.geometry(model, encoder), "inputs": inputs, "outputs": outputs}
        program = export_program(module, example, [0] * len(example))
        torch.export.save(program, folder / f"{name}.pt2", extra_files={GEOMETRY: json.dumps(about)})
    plain.write_tokens(folder / TOKENS, tokenizer)


class ProgramBundle(Bundle):
    """The programs, loaded again."""

    def __init__(self, folder: Path) -> None:
        about = {GEOMETRY: ""}
        with quiet():
            self._encoder = torch.export.load(folder / ENCODER, extra_files=about).module()
            self._predictor, self._joiner = (torch.export.load(folder / f).module() for f in (PREDICTOR, JOINER))
        geometry = json.loads(about[GEOMETRY])
        self.window, self.blank_id = geometry["window"], geometry["blank_id"]
        self._lstm = geometry["predictor_layers"], geometry["predictor_dim"]
        placeholders = [node for node in self._encoder.graph.nodes if node.op == "placeholder"]
        self._fresh = [node.meta["val"] for node in placeholders[2:]]

    def encoder_state(self, batch_size: int) -> State:
        return [torch.zeros(batch_size, *fresh.shape[1:], dtype=fresh.dtype).numpy() for fresh in self._fresh]

    def predictor_state(self, batch_size: int) -> State:
        return [np.zeros((batch_size, *self._lstm), np.float32) for _ in range(2)]

    def encode(self, feats: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        frames, frame_lengths, *after = _run(self._encoder, feats, lengths, *state)
        return frames, frame_lengths, after

    def predict(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        out, *after = _run(self._predictor, tokens, *state)
        return out, after

    def join(self, frames: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return _run(self._joiner, frames, predicted)[0]


@torch.inference_mode()
def _run(program: torch.nn.Module, *arrays: np.ndarray) -> list[np.ndarray]:
    out = program(*map(torch.from_numpy, arrays))
    return [tensor.numpy() for tensor in ((out,) if isinstance(out, Tensor) else out)]
