"""The encoder's states of many streams in one place, stepped together: eager, or as one CUDA graph.

S slots, C frames of a chunk, D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.encoders import states
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.encoders.states import EncoderState
from sumix_stream.features import NUM_BINS

_WARM_UPS = 3  # before a capture: libraries are loaded and kernels tuned, which a graph cannot hold


class EncoderSlots:
    """`num_slots` streams of any age; a step moves those that have a chunk and leaves the others as they are.

    On a GPU a step is hundreds of small kernels, whose launches cost more than their work. Captured once, the same step
    is played as a whole: states, inputs and outputs keep their memory, so nothing is allocated or launched by itself.

    Args:
        encoder: in evaluation mode, on its device; parameters changed later in place are seen, replaced ones are not.
        context: a chunk size in encoder frames and a left context in chunks.
        cuda_graph: None = on CUDA devices.
        can_undo: keep the states before the last step too, for `undo`.

    Raises:
        ValueError: for a context that cannot stream, a state that grows (attention without a window) under a graph, a
            graph without CUDA, or an encoder in training mode.
    """

    @torch.inference_mode()
    def __init__(
        self,
        encoder: ConformerEncoder,
        context: ChunkContext,
        num_slots: int,
        *,
        cuda_graph: bool | None = None,
        can_undo: bool = False,
    ) -> None:
        if encoder.training:
            raise ValueError(
                "the encoder is in training mode, whose dropout has no place in a stream: call eval() first"
            )
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        device = next(encoder.parameters()).device
        if cuda_graph and device.type != "cuda":
            raise ValueError(f"cuda_graph=True needs an encoder on a CUDA device, got {device}")
        self.encoder, self.context, self.num_slots = encoder, context, num_slots
        self._fresh = encoder.init_state(1, context)
        self._state = encoder.init_state(num_slots, context)
        self._before = encoder.init_state(num_slots, context) if can_undo else None
        self._feats = torch.zeros(num_slots, encoder.window(context), NUM_BINS, device=device)
        self._lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: tuple[Tensor, Tensor] | None = None
        if device.type == "cuda" if cuda_graph is None else cuda_graph:
            self._capture()

    @torch.inference_mode()
    def step(self, feats: Tensor, lengths: Tensor, final: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One chunk of the slots whose length is not 0.

        Args:
            feats: (S, window, 80) feature frames, of any device; what lies past a length does not count.
            lengths: (S,) feature frames of each slot's chunk: a whole window, fewer where the stream ends, 0 to wait.
            final: (S,) bool, whether the stream ends with this chunk; checked where it and lengths are on the CPU.
        Returns:
            Encoder frames (S, C, D) and how many of each slot are valid (S,). Under a CUDA graph both are overwritten
            by the next step.
        Raises:
            ValueError: for other shapes, or a short chunk that is not final.
        """
        window = self._feats.shape[1]
        if feats.shape != self._feats.shape or lengths.shape != self._lengths.shape:
            raise ValueError(
                f"feats and lengths must be {tuple(self._feats.shape)} and {tuple(self._lengths.shape)}, "
                f"got {tuple(feats.shape)} and {tuple(lengths.shape)}"
            )
        if final is not None and lengths.device.type == "cpu" and final.device.type == "cpu":
            short = (lengths != window) & (lengths != 0) & ~final
            if short.any() or lengths.max() > window or lengths.min() < 0:
                raise ValueError(
                    f"lengths must be {window} or 0, or less where final, got {lengths.tolist()} and {final.tolist()}"
                )
        self._feats.copy_(feats, non_blocking=True)
        self._lengths.copy_(lengths, non_blocking=True)
        if self._graph is None:
            return self._advance()
        self._graph.replay()
        return self._out

    @torch.inference_mode()
    def undo(self) -> None:
        """Put all slots back to where they were before the last step. Raises ValueError without `can_undo`."""
        if self._before is None:
            raise ValueError("these slots were made without can_undo=True")
        states.map_states(Tensor.copy_, self._state, self._before)

    @torch.inference_mode()
    def adopt(self, other: "EncoderSlots") -> None:
        """Take over the streams of fewer slots, under the same numbers."""
        if other.context != self.context or other.num_slots > self.num_slots:
            raise ValueError(
                f"{other.num_slots} slots of context {other.context} do not fit {self.num_slots} of {self.context}"
            )
        states.map_states(lambda mine, theirs: mine[: other.num_slots].copy_(theirs), self._state, other._state)

    @torch.inference_mode()
    def reset(self, slots: Sequence[int]) -> None:
        """Give slots to new streams."""
        for slot in slots:
            self.load(slot, self._fresh)

    @torch.inference_mode()
    def load(self, slot: int, state: EncoderState) -> None:
        """Put a stream's state, of batch size 1, into a slot. Raises ValueError for one of another context."""
        if state.context != self.context:
            raise ValueError(f"the slots are of context {self.context}, the state is of {state.context}")
        self._check(slot)
        states.map_states(lambda mine, given: mine[slot].copy_(given[0]), self._state, state)

    @torch.inference_mode()
    def state(self, slot: int) -> EncoderState:
        """A copy of a slot's state, of batch size 1."""
        self._check(slot)
        return states.map_states(lambda mine: mine[slot : slot + 1].clone(), self._state)

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot must be in 0..{self.num_slots - 1}, got {slot}")

    def _advance(self) -> tuple[Tensor, Tensor]:
        if self._before is not None:
            states.map_states(Tensor.copy_, self._before, self._state)
        active = self._lengths > 0
        out, out_lengths, state = self.encoder.step(self._feats, self._lengths, self._state, final=True)

        def update(mine: Tensor, moved: Tensor) -> Tensor:
            if mine.shape != moved.shape:
                raise ValueError(f"this encoder's state grows under context {self.context}: give it a left context")
            return mine.copy_(torch.where(active.view(-1, *[1] * (mine.dim() - 1)), moved, mine))

        states.map_states(update, self._state, state)
        return out, out_lengths

    def _capture(self) -> None:
        side = torch.cuda.Stream(self._feats.device)
        side.wait_stream(torch.cuda.current_stream(self._feats.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._advance()  # all slots wait, so that their states stay as they are
        torch.cuda.current_stream(self._feats.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = self._advance()
