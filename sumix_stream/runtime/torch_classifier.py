"""A classifier's chunks by PyTorch: of a stream in which keywords are spotted, and of a whole recording. V labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from sumix_stream.context import ChunkContext
from sumix_stream.labels import Labels
from sumix_stream.tasks.classification.model import Classifier
from sumix_stream.timebase import Timebase


class Classified(NamedTuple):
    """A label of a whole recording: `time` in seconds at its end, `score` the label's probability."""

    label: str
    time: float
    score: float


class TorchSteps:
    """A classifier's own `step`, of one stream: as `streaming.spotting.Steps`.

    Args:
        window: seconds that are averaged, rounded up to whole chunks.
    Raises ValueError for a context that cannot stream.
    """

    def __init__(self, model: Classifier, context: ChunkContext, window: float) -> None:
        self.model, self.context, self.timebase = model, context, model.timebase
        self.window = model.encoder.window(context)
        self.num_chunks = chunks_of(window, context, model.timebase)

    def begin(self) -> Any:
        return self.model.init_state(1, self.context, self.num_chunks)

    @torch.inference_mode()
    def step(self, feats: np.ndarray, state: Any, final: bool) -> tuple[np.ndarray, int, Any]:
        device = self.model.device
        given = torch.from_numpy(np.ascontiguousarray(feats))[None].to(device)
        found, frames, state = self.model.step(given, torch.tensor([len(feats)], device=device), state, final)
        return found[0].cpu().numpy(), int(frames[0]), state


def chunks_of(window: float, context: ChunkContext, timebase: Timebase) -> int:
    """Whole chunks that hold a window of seconds, 1 or more. Raises ValueError for full context."""
    if context.chunk_size is None:
        raise ValueError("--chunk full cannot stream: give a duration, such as 320ms")
    return max(1, -(-round(window * 1e6) // round(timebase.encoder_frame_time(context.chunk_size) * 1e6)))


def classify(model: Classifier, labels: Labels, feats: np.ndarray, context: ChunkContext) -> dict[str, Classified]:
    """The label of each set for a whole recording, feats (T0, 80), with its probability; `time` is its end."""
    with torch.inference_mode():
        given = torch.from_numpy(np.ascontiguousarray(feats))[None].to(model.device)
        logits, frames = model.logits(given, torch.tensor([len(feats)], device=model.device), context)
        best = [part[0].max(-1) for part in model.probabilities(logits).split(model.sizes, -1)]
    end = round(model.timebase.encoder_frame_time(int(frames[0])), 6)
    return {
        name: Classified(members[int(index)], end, float(score))
        for (name, members), (score, index) in zip(labels.sets.items(), best, strict=True)
    }
