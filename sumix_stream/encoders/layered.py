"""What encoders made of layers have in common: the front end, then layers, whole-utterance and chunk by chunk.

B batch, T0 feature frames, T encoder frames, C frames of a chunk, D channels.
"""

import torch
from torch import Tensor, nn

from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.states import EncoderState
from sumix_stream.encoders.subsampling import make_subsampling
from sumix_stream.features import NUM_BINS
from sumix_stream.timebase import Timebase


class LayeredEncoder(nn.Module):
    """Log-mel features (B, T0, 80) -> (B, T, D): one function, `forward` on whole utterances, `step` by chunks.

    layer: the class of its layers, made of the configuration; each has a `mixer`, `residual_outputs`, `init_state`,
        `forward` and `step`.
    """

    layer: type[nn.Module]

    def __init__(self, config: EncoderConfig, timebase: Timebase | None = None) -> None:
        super().__init__()
        self.config = config
        self.timebase = timebase or config.timebase
        self.subsampling = make_subsampling(config, self.timebase)
        self.layers = nn.ModuleList(self.layer(config) for _ in range(config.num_layers))

    def forward(self, feats: Tensor, lengths: Tensor, context: ChunkContext) -> tuple[Tensor, Tensor]:
        """feats (B, T0, 80), lengths (B,) in feature frames -> (B, T, D), (B,) in encoder frames."""
        check_feats(feats, lengths)
        x, lengths = self.subsampling(feats, lengths)
        for layer in self.layers:
            x = layer(x, lengths, context)
        return x, lengths

    @property
    def peak_rate(self) -> float:
        return min(layer.mixer.peak_rate for layer in self.layers)

    def describe(self) -> str:
        return f"{self.config.kind} with {self.layers[0].mixer.describe()}"

    def state_grows(self, context: ChunkContext) -> bool:
        return any(layer.mixer.state_grows(context) for layer in self.layers)

    def window(self, context: ChunkContext) -> int:
        """Feature frames that a step takes."""
        return self.timebase.feature_frames_per_chunk(check_streaming(context).chunk_size)

    def shift(self, context: ChunkContext) -> int:
        """Feature frames from the start of a step's window to the next: the window, as the front end sees no future."""
        return self.window(context)

    def init_state(self, batch_size: int, context: ChunkContext) -> EncoderState:
        """State of `batch_size` streams that have heard nothing. Raises ValueError for a context that cannot stream."""
        check_streaming(context)
        layers = tuple(layer.init_state(batch_size, context) for layer in self.layers)
        return EncoderState(context, self.subsampling.init_state(batch_size), layers)

    def step(
        self, feats: Tensor, lengths: Tensor, state: EncoderState, final: bool | Tensor = False
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """One chunk of each stream.

        Args:
            feats: (B, <= window, 80); a whole window unless every stream is at its end.
            lengths: (B,) valid feature frames; fewer than a window only where `final`.
            final: whether the streams end here; a bool, or bools of shape (B,).
        Returns:
            out (B, <= C, D), out_lengths (B,) and the next state.
        Raises:
            ValueError: for a short chunk that is not final (where lengths lie on the CPU), or too long a chunk.
        """
        check_feats(feats, lengths)
        window, context = self.window(state.context), state.context
        if feats.shape[1] > window:
            raise ValueError(f"a step takes at most {window} feature frames, got {feats.shape[1]}")
        # Lengths on a GPU are taken as they are: a look would make the host wait, and cannot be part of a CUDA graph.
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            short = (lengths != window) & ~torch.as_tensor(final, device=lengths.device)
            if bool(short.any()):
                raise ValueError(
                    f"only a final chunk may be shorter than {window} feature frames, got lengths {lengths.tolist()}"
                )
        x, lengths, subsampling = self.subsampling.step(feats, lengths, state.subsampling)
        layers = []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x, next_state = layer.step(x, lengths, layer_state, context)
            layers.append(next_state)
        return x, lengths, EncoderState(context, subsampling, tuple(layers))


def check_streaming(context: ChunkContext) -> ChunkContext:
    """Raises ValueError unless a stream can be run under the context."""
    if not isinstance(context.chunk_size, int):
        raise ValueError(f"streaming needs one chunk size (such as 640ms or 16), got {context}")
    if context.left_context is not None and not isinstance(context.left_context, int):
        raise ValueError(f"streaming needs one left context for the batch, got {context}")
    return context


def check_feats(feats: Tensor, lengths: Tensor) -> None:
    if feats.dim() != 3 or feats.shape[2] != NUM_BINS or feats.shape[1] == 0:
        raise ValueError(f"feats must be (B, T0 >= 1, {NUM_BINS}), got {tuple(feats.shape)}")
    if lengths.shape != feats.shape[:1]:
        raise ValueError(f"lengths must be ({feats.shape[0]},), got {tuple(lengths.shape)}")
