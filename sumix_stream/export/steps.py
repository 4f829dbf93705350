"""A model's parts as functions of plain tensors, which is what an exported graph can hold.

B streams, W feature frames of a chunk's window, C encoder frames of a chunk, D encoder and P predictor channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_stream.context import BEYOND_ANY_LENGTH, ChunkContext
from sumix_stream.encoders.layered import LayeredEncoder
from sumix_stream.encoders.states import EncoderState
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.trees import leaves, map_leaves, named_leaves


class EncoderStep(nn.Module):
    """`LayeredEncoder.step` under one context, its state a list of tensors (B, ...).

    `fresh` holds the state of one stream that has not begun, all zeros, by the names of its fields
    (`layers.0.mixer.sums`); what is empty under this context (a ring of no chunks) is left out.

    Raises:
        ValueError: for a context that cannot stream, or under which the state grows with the audio.
    """

    def __init__(self, encoder: LayeredEncoder, context: ChunkContext) -> None:
        super().__init__()
        self.encoder, self.context = encoder, context
        self.window = encoder.window(context)
        if encoder.state_grows(context):
            raise ValueError(
                f"{encoder.describe()} with an unlimited left context keeps all it has heard, and an exported step has "
                "a state of fixed size: give --left-context a number of chunks"
            )
        self._template = encoder.init_state(1, context)
        self.fresh = {name: tensor for name, tensor in named_leaves(self._template) if tensor.numel()}
        assert not any(tensor.any() for tensor in self.fresh.values()), "a state that does not begin as zeros"

    def init_state(self, batch_size: int) -> list[Tensor]:
        return [tensor.repeat(batch_size, *[1] * (tensor.dim() - 1)) for tensor in self.fresh.values()]

    def forward(self, feats: Tensor, lengths: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """feats (B, W, 80), lengths (B,), fewer than W where a stream ends -> (B, C, D), (B,), and the next state."""
        out, out_lengths, after = self.encoder.step(feats, lengths, self._unflatten(feats, state), final=True)
        return out, out_lengths, *(tensor for tensor in leaves(after) if tensor.shape[1:].numel())

    def _unflatten(self, feats: Tensor, state: Sequence[Tensor]) -> EncoderState:
        given = iter(state)
        return map_leaves(
            lambda part: next(given) if part.numel() else part.new_zeros(feats.shape[0], *part.shape[1:]),
            self._template,
        )


class WholeEncoder(nn.Module):
    """`LayeredEncoder.forward` under full context, for any number of feature frames that is a whole number of encoder
    frames.

    A whole utterance is the first chunk of a stream: the mixers' own steps are what is exported.

    Raises:
        ValueError: for a mixer whose first chunk is not the whole utterance's forward in a graph of any length.
    """

    def __init__(self, encoder: LayeredEncoder) -> None:
        super().__init__()
        config = encoder.config
        if config.mixer not in ("summary", "none") or config.mean_decay is not None:
            raise ValueError(
                f"{encoder.describe()} has no graph for a second pass, only SummaryMixing (fast, full, lite): "
                "leave --second-pass out"
            )
        self.encoder, self.context = encoder, ChunkContext(BEYOND_ANY_LENGTH, 0)

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """feats (B, F, 80), lengths (B,) -> (B, F / s, D), (B,), s = subsampling."""
        encoder, size = self.encoder, feats.shape[0]
        x, lengths, _ = encoder.subsampling.step(feats, lengths, encoder.subsampling.init_state(size))
        for layer in encoder.layers:
            x, _ = layer.step(x, lengths, layer.init_state(size, self.context), self.context)
        return x, lengths


class LstmStep(nn.Module):
    """One time step of an nn.LSTM, written out: torch.onnx gives the states of the LSTM node a wrong rank, and products
    can have int8 weights."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        assert lstm.bias and not lstm.bidirectional and not lstm.proj_size, lstm
        self.lstm = lstm

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, E), hidden and cell (layers, B, P) -> (B, P), and the next hidden and cell."""
        after: list[tuple[Tensor, Tensor]] = []
        for (w_ih, w_hh, b_ih, b_hh), h, c in zip(self.lstm.all_weights, hidden.unbind(0), cell.unbind(0), strict=True):
            gates = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
            enter, keep, new, leave = gates.chunk(4, -1)
            c = keep.sigmoid() * c + enter.sigmoid() * new.tanh()
            x = leave.sigmoid() * c.tanh()
            after.append((x, c))
        return x, *(torch.stack(parts) for parts in zip(*after))


class PredictorStep(nn.Module):
    """tokens (B,), hidden and cell (B, layers, P) -> (B, P), hidden, cell. Begins with blank and zeros."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.embedding, self.lstm = model.predictor.embedding, LstmStep(model.predictor.lstm)

    def forward(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        out, *state = self.lstm(self.embedding(tokens), *(part.transpose(0, 1) for part in (hidden, cell)))
        return out, *(part.transpose(0, 1) for part in state)


class JoinerStep(nn.Module):
    """frames (B, D), predictor output (B, P) -> logits (B, V)."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.joiner = model.joiner

    def forward(self, frames: Tensor, predicted: Tensor) -> Tensor:
        return self.joiner(frames, predicted)
