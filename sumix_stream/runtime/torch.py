"""The runtime `torch`: PyTorch's modules as they are, on any device, every mixer; on a GPU a step is one CUDA graph.

A stream's state is its row of bytes on the device, or an EncoderState where it grows. Letters as in base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.encoders import states
from sumix_stream.encoders.states import EncoderState
from sumix_stream.runtime.base import Found, Frames, GreedyState, PredictorState, check_chunk, chunk_frames
from sumix_stream.runtime.cuda_graph import GRAPH_SIZES, Step, StepGraphs
from sumix_stream.runtime.rows import Rows
from sumix_stream.runtime.torch_greedy import search_greedily
from sumix_stream.runtime.weights import Weights
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.trees import fill, leaves, map_leaves, named_leaves

State = Tensor | EncoderState


class TensorRows(Rows):
    """Rows as tensors (B, bytes) uint8 on the device of a state.

    Args:
        fresh: any state of batch size 1, whose shapes and types all others share.
    """

    def __init__(self, fresh: EncoderState) -> None:
        super().__init__({name: part.cpu().numpy() for name, part in named_leaves(fresh)})
        self._fresh = fresh

    def state(self, table: Tensor) -> EncoderState:
        """The state whose rows these are, which share their memory."""
        named = zip(self.starts.values(), self.parts.values(), strict=False)
        bytes_of = ((table[:, start : start + part.nbytes], part) for start, part in named)
        views = iter([x.view(getattr(torch, str(part.dtype))).view(len(x), *part.shape[1:]) for x, part in bytes_of])
        return map_leaves(lambda _: next(views), self._fresh)

    def of_step(self, step: Callable) -> Step:
        """`Encoder.step` from rows to rows."""

        def step_rows(feats: Tensor, lengths: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
            frames, _, after = step(feats, lengths, self.state(table), final=True)
            moved = torch.zeros_like(table)
            map_leaves(Tensor.copy_, self.state(moved), after)
            return frames, moved

        return step_rows


class TorchRuntime:
    """A `Transducer` in evaluation mode; one that is given is used itself, so that its later weights are seen."""

    name = "torch"
    beam_arrays = None

    @torch.inference_mode()
    def __init__(self, weights: Weights, context: ChunkContext) -> None:
        self.weights = self.source = weights
        self.context, self.frame_dim = context, weights.config.encoder.dim
        self.blank_id, self.vocab_size, self.timebase = weights.blank_id, weights.vocab_size, weights.timebase
        self.model = module_of(weights)
        self._device = self.model.device
        self.device = str(self._device)
        self._window = chunk_frames(self.timebase, context)
        self._rows = self._fresh = None  # under full context there is no state, where it grows there are no rows
        if self._window is not None:
            self._fresh = self.model.encoder.init_state(1, context)
            if not self.model.encoder.state_grows(context):
                self._rows = TensorRows(self._fresh)
                self._step_rows = self._rows.of_step(self.model.encoder.step)
        on_gpu = self._device.type == "cuda" and weights.cuda_graph and self._rows is not None
        self._graphs = StepGraphs(self._step_rows, self._window, self._rows.size, self._device) if on_gpu else None
        self.batch_sizes = GRAPH_SIZES if on_gpu else ()
        self.can_fork = self._device.type == "cpu"

    @classmethod
    def can_run(cls, model: Any, context: ChunkContext) -> str | None:
        if not isinstance(model, Weights):
            return "it runs checkpoints, not exported bundles"
        if model.precision != "fp32":
            return f"precision {model.precision} is for the runtime `compiled`: use fp32"
        if context.chunk_size is not None and not model.config.encoder.streams:
            return f"mixer {model.config.encoder.mixer} hears whole utterances only: use full context (--chunk full)"
        try:
            torch.empty(0, device=model.device)
        except (RuntimeError, AssertionError) as error:
            return f"device {model.device!r} cannot be used ({str(error).splitlines()[0]}); try cpu"
        return None

    @property
    def fingerprint(self) -> str:
        return self.weights.fingerprint

    def fresh_state(self) -> State | None:
        if self._rows is None:
            return self._fresh
        return torch.zeros(self._rows.size, dtype=torch.uint8, device=self._device)

    @torch.inference_mode()
    def encode(
        self, feats: np.ndarray, lengths: np.ndarray, states: Sequence[State], final: np.ndarray
    ) -> tuple[Tensor, list[State]]:
        assert not self.model.training, "dropout has no place in recognition: call eval() first"
        check_chunk(feats, lengths, final, self._window)
        feats, lengths = torch.from_numpy(feats).to(self._device), torch.from_numpy(lengths).to(self._device)
        if self._window is None:
            return self.model.encoder(feats, lengths, self.context)[0], list(states)
        if self._rows is None:
            joined = EncoderState.stack(states)
            frames, _, after = self.model.encoder.step(feats, lengths, joined, final=True)
            return frames, after.unstack()
        step = self._step_rows if self._graphs is None else self._graphs.step
        frames, table = step(feats, lengths, torch.stack(list(states)))
        return frames, [row.clone() for row in table]

    def nbytes(self, state: State | None) -> int:
        return sum(tensor.nbytes for tensor in leaves(state))

    def save(self, state: State) -> dict[str, np.ndarray]:
        if self._rows is not None:
            return self._rows.save(state.cpu().numpy())
        return {name: part.cpu().numpy() for name, part in named_leaves(state)}

    @torch.inference_mode()
    def load(self, arrays: Mapping[str, np.ndarray]) -> State:
        if self._rows is not None:
            return torch.from_numpy(self._rows.load(arrays)).to(self._device)
        tensors = {name: torch.from_numpy(part).to(self._device) for name, part in arrays.items()}
        return fill(self._fresh, tensors, growing=True)

    def predictor_state(self, count: int) -> PredictorState:
        return PredictorState(*(part.cpu().numpy() for part in self.model.predictor.init_state(count)))

    @torch.inference_mode()
    def predict(self, tokens: np.ndarray, state: PredictorState) -> tuple[np.ndarray, PredictorState]:
        past = states.PredictorState(*map(self._tensor, state))
        out, after = self.model.predictor.step(self._tensor(tokens), past)
        projection = self.model.joiner.project_predictor(out)
        return projection.cpu().numpy(), PredictorState(*(part.cpu().numpy() for part in after))

    @torch.inference_mode()
    def project(self, frames: Frames) -> np.ndarray:
        return self.model.joiner.project_encoder(self._tensor(frames)).cpu().numpy()

    @torch.inference_mode()
    def join(self, enc: np.ndarray, pred: np.ndarray) -> np.ndarray:
        return self.model.joiner.join(self._tensor(enc), self._tensor(pred)).float().cpu().numpy()

    @torch.inference_mode()
    def search_greedily(
        self,
        frames: Frames,
        lengths: np.ndarray,
        state: GreedyState,
        blank_penalty: float,
        temperature: float,
        max_symbols: int,
    ) -> tuple[list[Found], GreedyState]:
        given = self._tensor(frames), self._tensor(lengths), map_leaves(self._tensor, state)
        found, after = search_greedily(self.model, *given, blank_penalty, temperature, max_symbols)
        return found, map_leaves(lambda part: part.cpu().numpy(), after)

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array).to(self._device)


def module_of(weights: Weights) -> Transducer:
    """The model in PyTorch, on its device; made once."""
    if weights.module is None:
        model = build_model(weights.config, weights.vocab_size)
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.arrays.items()})
        weights.module = model.to(weights.device).eval()
    return weights.module
