"""A classifier's chunk as an ONNX graph, for programs that spot keywords without PyTorch.

A bundle is a folder with `classifier.onnx` and `labels.yaml`. The graph takes feats (B, W, 80), lengths (B,) and the
state, tensors (B, ...) that begin as zeros, and gives probabilities (B, V), encoder frames (B,) and the next state.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.labels import Labels
from sumix_stream.timebase import Timebase

GRAPH, LABELS = "classifier.onnx", "labels.yaml"
TOLERANCE = 1e-4  # of a probability, against PyTorch
CHECKED = 7  # chunks, the last of them short


def is_classifier_bundle(path: str | Path) -> bool:
    return (Path(path) / GRAPH).is_file()


def export_classifier(model: Any, labels: Labels, context: ChunkContext, window: float, folder: str | Path) -> float:
    """Write a bundle, hold it to PyTorch on synthetic features, and return the largest difference of a probability.

    Args:
        window: seconds that a score is of.
    Raises:
        ValueError: the folder is not empty, the state would grow with the audio, or the graph's results are others.
    """
    import torch

    from sumix_stream.export.graph import export_onnx
    from sumix_stream.runtime.torch_classifier import TorchSteps, chunks_of

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--export {folder} is not empty: name another folder")
    module = _step(model, context, chunks_of(window, context, model.timebase))
    state = module.init_state(2)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "window": module.step.window,
        "chunk_size": context.chunk_size,
        "left_context": "unlimited" if context.left_context is None else context.left_context,
        "sample_rate": model.timebase.sample_rate,
        "state": json.dumps({name: list(part.shape[1:]) for name, part in zip(module.names, state, strict=True)}),
    }
    export_onnx(
        module,
        (torch.randn(2, module.step.window, NUM_BINS), torch.full((2,), module.step.window), *state),
        [0] * (2 + len(state)),
        folder / GRAPH,
        inputs=["feats", "feat_lengths", *module.names],
        outputs=["probabilities", "frame_lengths", *(f"next.{name}" for name in module.names)],
        metadata=metadata,
    )
    (folder / LABELS).write_bytes(labels.to_bytes())
    difference = _difference(TorchSteps(model, context, window), open_classifier(folder)[0])
    if not difference <= TOLERANCE:
        shutil.rmtree(folder)
        raise ValueError(f"{folder}: probabilities {difference:.1e} from PyTorch's, {TOLERANCE:.0e} are allowed")
    return difference


def _step(model: Any, context: ChunkContext, num_chunks: int) -> Any:
    import torch
    from torch import nn

    from sumix_kernels import SummaryState, chunk_summary_step
    from sumix_stream.export.steps import EncoderStep

    class ClassifierStep(nn.Module):
        """`Classifier.step`, its state a list of tensors; those that are empty are left out."""

        def __init__(self) -> None:
            super().__init__()
            self.step, self.model = EncoderStep(model.encoder, context), model
            self.sums = SummaryState.init(1, model.config.encoder.dim, num_chunks - 1)
            self.keeps = num_chunks > 1
            self.names = [*self.step.fresh, *(["score.sums", "score.counts"] if self.keeps else [])]

        def init_state(self, size: int) -> list[torch.Tensor]:
            own = [self.sums.sums, self.sums.counts] if self.keeps else []
            return [*self.step.init_state(size), *(part.repeat(size, *[1] * (part.dim() - 1)) for part in own)]

        def forward(self, feats: torch.Tensor, lengths: torch.Tensor, *state: torch.Tensor) -> tuple:
            count = len(self.step.fresh)
            frames, frame_lengths, *after = self.step(feats, lengths, *state[:count])
            size, dim = feats.shape[0], frames.shape[2]
            sums, counts = state[count:] if self.keeps else (feats.new_zeros(size, 0, dim), feats.new_zeros(size, 0))
            past = SummaryState(sums, feats.new_zeros(size, 0, dim), counts)
            mean, past = chunk_summary_step(frames, frame_lengths, past, backend="torch")
            kept = [past.sums, past.counts] if self.keeps else []
            return self.model.probabilities(self.model.head(mean)), frame_lengths, *after, *kept

    return ClassifierStep().eval()


class OnnxSteps:
    """`streaming.spotting.Steps` of a bundle, by ONNX Runtime; one thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            meta = self._session.get_modelmeta().custom_metadata_map
            self.window, self._shapes = int(meta["window"]), json.loads(meta["state"])
        except Exception as error:  # ONNX Runtime's own have no common kind
            raise ValueError(
                f"{path}: no exported classifier ({str(error).splitlines()[0]}); export it anew"
            ) from error
        self.timebase = Timebase()

    def begin(self) -> dict[str, np.ndarray]:
        return {name: np.zeros((1, *shape), np.float32) for name, shape in self._shapes.items()}

    def step(self, feats: np.ndarray, state: dict[str, np.ndarray], final: bool) -> tuple[np.ndarray, int, Any]:
        padded = np.zeros((1, self.window, NUM_BINS), np.float32)
        padded[0, : len(feats)] = feats
        given = {"feats": padded, "feat_lengths": np.array([len(feats)]), **state}
        found, frames, *after = self._session.run(None, given)
        return found[0], int(frames[0]), dict(zip(state, after, strict=True))


def open_classifier(folder: str | Path) -> tuple[OnnxSteps, Labels]:
    """Raises ValueError naming the file that is missing or damaged."""
    return OnnxSteps(Path(folder) / GRAPH), Labels.load(Path(folder) / LABELS)


def _difference(one: Any, other: Any) -> float:
    rng, largest = np.random.default_rng(0), 0.0
    states = one.begin(), other.begin()
    for number in range(CHECKED):
        last = number == CHECKED - 1
        feats = rng.standard_normal((one.window - 3 * last, NUM_BINS)).astype(np.float32)
        results = [steps.step(feats, state, last) for steps, state in zip((one, other), states, strict=True)]
        states = results[0][2], results[1][2]
        largest = max(largest, float(np.abs(results[0][0] - results[1][0]).max()))
    return largest
