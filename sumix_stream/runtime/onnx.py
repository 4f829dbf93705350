"""The runtime `onnx`: an exported bundle in ONNX Runtime on the CPU, under the bundle's own context. Letters as in
base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import Frames, PredictorState, check_chunk
from sumix_stream.runtime.bundle import OnnxFiles
from sumix_stream.runtime.rows import Rows


class OnnxRuntime:
    """Its joiner's projections are within the files: frames and predictor outputs are handed through."""

    name, device = "onnx", "cpu"
    search_greedily = None
    beam_arrays = None
    batch_sizes = ()
    can_fork = False  # ONNX Runtime's threads do not come along

    def __init__(self, bundle: OnnxFiles, context: ChunkContext) -> None:
        self.bundle = self.source = bundle
        self.context, self.frame_dim = context, bundle.frame_dim
        self.blank_id = (bundle.blank_id + bundle.offset) % bundle.vocab_size
        self.vocab_size, self.timebase, self.fingerprint = bundle.vocab_size, bundle.timebase, bundle.fingerprint
        self._rows = Rows({str(n): part for n, part in enumerate(bundle.encoder_state(1))})

    @classmethod
    def can_run(cls, model: Any, context: ChunkContext) -> str | None:
        if not isinstance(model, OnnxFiles):
            return "it runs exported bundles, not checkpoints: export the checkpoint"
        if context == ChunkContext.full() and model.has_second_pass:
            return None
        if context.chunk_size is None:
            return f"{model} has no graph for whole segments: export the checkpoint with --second-pass"
        if context != model.context:
            return f"{model} was exported for chunks of {model.context}, not {context}"
        return None

    def fresh_state(self) -> np.ndarray:
        if self.context.chunk_size is None:
            return np.zeros(0, np.uint8)
        return self._rows.table(self.bundle.encoder_state(1))[0]

    def encode(
        self, feats: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray], final: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        if self.context.chunk_size is None:
            check_chunk(feats, lengths, final, None)
            return self.bundle.encode_whole(feats, lengths)[0], list(states)
        check_chunk(feats, lengths, final, self.bundle.window)
        window = np.zeros((len(feats), self.bundle.window, NUM_BINS), np.float32)
        window[:, : feats.shape[1]] = feats
        before = [np.ascontiguousarray(part) for part in self._rows.views(np.stack(states)).values()]
        frames, _, after = self.bundle.encode(window, lengths, before)
        frames = np.ascontiguousarray(frames[:, : self.timebase.num_encoder_frames(feats.shape[1])])
        return frames, [row.copy() for row in self._rows.table(after)]

    def nbytes(self, state: np.ndarray) -> int:
        return state.nbytes

    def save(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return self._rows.save(state)

    def load(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._rows.load(arrays)

    def predictor_state(self, count: int) -> PredictorState:
        return PredictorState(*self.bundle.predictor_state(count))

    def predict(self, tokens: np.ndarray, state: PredictorState) -> tuple[np.ndarray, PredictorState]:
        own = (tokens - self.bundle.offset) % self.vocab_size
        out, after = self.bundle.predict(own, [np.ascontiguousarray(part) for part in state])
        return out, PredictorState(*after)

    def project(self, frames: Frames) -> np.ndarray:
        return frames

    def join(self, enc: np.ndarray, pred: np.ndarray) -> np.ndarray:
        lead = np.broadcast_shapes(enc.shape[:-1], pred.shape[:-1])
        given = (np.broadcast_to(part, (*lead, part.shape[-1])) for part in (enc, pred))
        logits = self.bundle.join(*(np.ascontiguousarray(part.reshape(-1, part.shape[-1])) for part in given))
        if self.bundle.offset:
            logits = np.roll(logits, self.bundle.offset, -1)
        return logits.reshape(*lead, -1)
