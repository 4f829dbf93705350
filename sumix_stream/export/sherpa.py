"""A bundle that stock sherpa-onnx (2.0 and later) runs: its streaming recogniser, its websocket server, its phone apps.

A decoder with more than one output makes sherpa-onnx take the contract of NeMo's streaming transducers, whose encoder
hands on three caches. Ours hold the mixers' sums (cache_last_channel), the histories of the convolutions and of the
front end (cache_last_time), and the encoder frames heard so far (cache_last_channel_len). Blank is the last id there,
so token i of the model is i - 1 in the bundle.

B streams, W feature frames of a window, T encoder frames of a chunk, D encoder and P predictor channels, V tokens.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sumix_stream.context import ChunkContext
from sumix_stream.export.graph import export_onnx
from sumix_stream.export.steps import EncoderStep, LstmStep
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.bundle import CACHES, DECODER, ENCODER, JOINER, LEFT_CONTEXT, SAMPLE_RATE, TOKENS, UNLIMITED
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import BLANK_PIECE, Tokenizer


def save(folder: Path, model: Transducer, tokenizer: Tokenizer, context: ChunkContext) -> None:
    """Write encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt into an existing folder."""
    encoder, decoder, joiner = SherpaEncoder(model, context), SherpaDecoder(model), SherpaJoiner(model)
    caches = encoder.init_state(2)
    export_onnx(
        encoder,
        (torch.randn(2, NUM_BINS, encoder.step.window), torch.full((2,), encoder.step.window), *caches),
        [0, 0, 0, 0, 0],
        folder / ENCODER,
        inputs=["audio_signal", "length", *CACHES],
        outputs=["outputs", "encoded_lengths", *(f"{name}_next" for name in CACHES)],
        metadata=_metadata(model, encoder),
    )
    states = torch.zeros(model.predictor.lstm.num_layers, 2, model.predictor.dim)
    export_onnx(
        decoder,
        (torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32), states, states.clone()),
        [0, 0, 1, 1],
        folder / DECODER,
        inputs=["targets", "target_length", "states.1", "states.2"],
        outputs=["outputs", "prednet_lengths", "next_states.1", "next_states.2"],
        metadata={},
    )
    export_onnx(
        joiner,
        (torch.zeros(2, model.config.encoder.dim, 1), torch.zeros(2, model.predictor.dim, 1)),
        [0, 0],
        folder / JOINER,
        inputs=["encoder_outputs", "decoder_outputs"],
        outputs=["outputs"],
        metadata={},
    )
    pieces = [tokenizer.piece(i) for i in range(1, model.vocab_size)] + [BLANK_PIECE]
    lines = (f"{piece} {i}\n" for i, piece in enumerate(pieces))
    (folder / TOKENS).write_text("".join(lines), encoding="utf-8")


def padding(num_samples: int, context: ChunkContext, timebase: Timebase | None = None) -> int:
    """Zero samples (16 kHz) for a client to send after the last word, so that sherpa-onnx decodes all of it.

    sherpa-onnx never decodes a part of a chunk, and a whole one only when a feature frame beyond it is there.
    """
    timebase = timebase or Timebase()
    window = timebase.feature_frames_per_chunk(context.chunk_size)
    num_chunks = -(-timebase.num_feature_frames(num_samples) // window)
    return (num_chunks * window + 1) * timebase.frame_shift - num_samples


class SherpaEncoder(nn.Module):
    """`EncoderStep` under NeMo's names and layouts; each cache holds its tensors one after the other, zero-padded."""

    def __init__(self, model: Transducer, context: ChunkContext) -> None:
        super().__init__()
        self.step = EncoderStep(model.encoder, context)
        self.width = model.config.encoder.dim
        layers, fresh = range(model.config.encoder.num_layers), self.step.fresh.items()
        # What the caches hold: each layer's mixer, and all else.
        self.mixers = [[part for name, part in fresh if name.startswith(f"layers.{i}.mixer.")] for i in layers]
        self.others = [part for name, part in fresh if ".mixer." not in name]
        self._is_mixer = [".mixer." in name for name in self.step.fresh]
        self.mixer_rows = max(1, *map(self._rows, self.mixers))
        self.other_rows = self._rows(self.others)

    @property
    def dims(self) -> dict[str, tuple[int, int, int]]:
        """Of one stream's first two caches."""
        return {
            "cache_last_channel": (len(self.mixers), self.mixer_rows, self.width),
            "cache_last_time": (1, self.other_rows, self.width),
        }

    def init_state(self, batch_size: int) -> list[Tensor]:
        caches = [torch.zeros(batch_size, *dims) for dims in self.dims.values()]
        return [*caches, torch.zeros(batch_size, dtype=torch.int64)]

    def forward(
        self,
        audio_signal: Tensor,
        length: Tensor,
        cache_last_channel: Tensor,
        cache_last_time: Tensor,
        cache_last_channel_len: Tensor,
    ) -> tuple[Tensor, ...]:
        """audio_signal (B, 80, W), length (B,), caches (B, d1, d2, d3) twice and (B,) -> (B, D, T), (B,), caches."""
        mixers = [part for i, fresh in enumerate(self.mixers) for part in _unpack(cache_last_channel[:, i], fresh)]
        mixers, others = iter(mixers), iter(_unpack(cache_last_time[:, 0], self.others))
        state = [next(mixers if is_mixer else others) for is_mixer in self._is_mixer]
        frames, lengths, *after = self.step(audio_signal.mT, length, *state)

        mixers = iter(part for part, is_mixer in zip(after, self._is_mixer) if is_mixer)
        rows = [_pack([next(mixers) for _ in fresh], self.mixer_rows, self.width, length) for fresh in self.mixers]
        others = [part for part, is_mixer in zip(after, self._is_mixer) if not is_mixer]
        time = _pack(others, self.other_rows, self.width, length).unsqueeze(1)
        return frames.mT, lengths, torch.stack(rows, 1), time, cache_last_channel_len + lengths

    def _rows(self, fresh: Sequence[Tensor]) -> int:
        return -(-sum(part.numel() for part in fresh) // self.width)


class SherpaDecoder(nn.Module):
    """The predictor: targets (B, 1) int32, states (layers, B, P) twice -> (B, P, 1), lengths, states."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.lstm = LstmStep(model.predictor.lstm)
        self.embedding = nn.Embedding.from_pretrained(_blank_last(model.predictor.embedding.weight, model))

    def forward(self, targets: Tensor, target_length: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        out, hidden, cell = self.lstm(self.embedding(targets.squeeze(1)), hidden, cell)
        return out.unsqueeze(2), target_length.clone(), hidden, cell


class SherpaJoiner(nn.Module):
    """(B, D, 1), (B, P, 1) -> logits (B, 1, 1, V)."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.joiner = deepcopy(model.joiner)
        for parameter in self.joiner.output.parameters():
            parameter.data = _blank_last(parameter, model)

    def forward(self, frames: Tensor, predicted: Tensor) -> Tensor:
        return self.joiner(frames.mT.unsqueeze(2), predicted.mT.unsqueeze(1))


def _metadata(model: Transducer, encoder: SherpaEncoder) -> dict[str, object]:
    left = encoder.step.context.left_context
    dims = {f"{name}_dim{i + 1}": size for name, sizes in encoder.dims.items() for i, size in enumerate(sizes)}
    return {
        "vocab_size": model.vocab_size - 1,  # NeMo does not count blank
        "window_size": encoder.step.window,
        "chunk_shift": encoder.step.window,
        "subsampling_factor": model.timebase.subsampling,
        "normalize_type": "NA",  # mean and deviation are in the graph
        "pred_rnn_layers": model.predictor.lstm.num_layers,
        "pred_hidden": model.predictor.dim,
        **dims,
        SAMPLE_RATE: model.timebase.sample_rate,
        LEFT_CONTEXT: UNLIMITED if left is None else left,
    }


def _blank_last(weight: Tensor, model: Transducer) -> Tensor:
    assert model.blank_id == 0, model.blank_id
    return weight.detach().roll(-1, 0)


def _unpack(cache: Tensor, fresh: Sequence[Tensor]) -> list[Tensor]:
    """(B, rows, width) -> tensors (B, ...) of the shapes and types of `fresh`, which are of one stream."""
    flat, sizes = cache.flatten(1), [part.numel() for part in fresh]
    parts = flat[:, : sum(sizes)].split(sizes, 1) if sizes else []
    return [part.reshape(-1, *like.shape[1:]).to(like.dtype) for part, like in zip(parts, fresh)]


def _pack(parts: Sequence[Tensor], rows: int, width: int, like: Tensor) -> Tensor:
    """Tensors (B, ...) -> (B, rows, width)."""
    if not parts:
        return torch.zeros(like.shape[0], rows, width)
    flat = torch.cat([part.reshape(like.shape[0], -1).float() for part in parts], 1)
    return F.pad(flat, (0, rows * width - flat.shape[1])).unflatten(1, (rows, width))
