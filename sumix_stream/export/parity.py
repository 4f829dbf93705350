"""The proof that an export is the model: the same audio through both, before anything is given away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sumix_stream.audio import read_audio, resample
from sumix_stream.context import ChunkContext
from sumix_stream.data.babble import babble
from sumix_stream.export.bundle import encode_streams, greedy
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.bundle import Bundle, OnnxFiles
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.timebase import Timebase

TOLERANCE = 1e-4  # absolute, on LayerNormed encoder frames

# The decoder's greedy search: model, encoder frames (B, T, D), lengths (B,) -> tokens of each stream.
Search = Callable[[Transducer, Tensor, Tensor], list[list[int]]]


class ParityError(ValueError):
    """The exported model does not compute what the model computes."""


@dataclass(frozen=True)
class Parity:
    """What was compared, and how far apart it was."""

    audio: str
    num_streams: int
    num_frames: int  # encoder frames
    num_tokens: int
    max_difference: float

    def __str__(self) -> str:
        return (
            f"{self.audio}, {self.num_streams} streams of mixed age, {self.num_frames} encoder frames: "
            f"largest difference {self.max_difference:.1e}, {self.num_tokens} tokens identical"
        )


def check_parity(
    bundle: Bundle,
    model: Transducer,
    context: ChunkContext,
    utterances: Sequence[np.ndarray],
    audio: str,
    search: Search,
) -> Parity:
    """Stream utterances, float32 (S,) at 16 kHz, through bundle and model.

    Raises ParityError where an encoder frame differs by more than 1e-4, or a token differs.
    """
    feats = [torch.from_numpy(whole_fbank(samples)) for samples in utterances]
    feats = [part for part in feats if len(part)]
    if not feats:
        raise ValueError("the audio for the parity check holds no feature frame: give longer recordings")
    expected = [stream_encoder(model, part, context) for part in feats]
    actual = encode_streams(bundle, [part.numpy() for part in feats])
    difference = 0.0
    for i, (ours, theirs) in enumerate(zip(expected, actual)):
        if ours.shape != theirs.shape:
            raise ParityError(f"stream {i}: {theirs.shape} encoder frames exported, {tuple(ours.shape)} in the model")
        error = np.abs(ours.numpy() - theirs).max(1)
        if not (error <= TOLERANCE).all():  # NaN is no match either
            frame = int(np.argmax(~(error <= TOLERANCE)))
            raise ParityError(
                f"stream {i}: encoder frame {frame} of the export differs from the model's by {error[frame]:.2e} "
                f"(allowed {TOLERANCE:g}); nothing was written"
            )
        difference = max(difference, float(error.max()))
    wanted = [search(model, ours[None], torch.tensor([len(ours)]))[0] for ours in expected]
    for i, (ours, theirs) in enumerate(zip(wanted, greedy(bundle, actual))):
        if ours != theirs:
            place = next(
                (n for n, pair in enumerate(zip(ours, theirs)) if len(set(pair)) > 1), min(map(len, (ours, theirs)))
            )
            raise ParityError(
                f"stream {i}: token {place} of the export differs from the model's ({len(theirs)} tokens, "
                f"{len(ours)} in the model); nothing was written"
            )
    return Parity(audio, len(feats), sum(map(len, expected)), sum(map(len, wanted)), difference)


@torch.inference_mode()
def check_whole(bundle: OnnxFiles, model: Transducer, utterances: Sequence[np.ndarray]) -> float:
    """The largest difference under full context. Raises ParityError where an encoder frame differs by more than
    1e-4."""
    largest = 0.0
    for number, samples in enumerate(utterances):
        feats = whole_fbank(samples)
        if not len(feats):
            continue
        lengths = torch.tensor([len(feats)])
        ours = model.encoder(torch.from_numpy(feats)[None], lengths, ChunkContext.full())[0][0].numpy()
        theirs = bundle.encode_whole(feats[None], lengths.numpy())[0][0]
        error = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
        if not error <= TOLERANCE:
            raise ParityError(
                f"utterance {number}, whole: the export differs from the model by {error:.2e} (allowed {TOLERANCE:g}); "
                "nothing was written"
            )
        largest = max(largest, float(error))
    return largest


@torch.inference_mode()
def stream_encoder(model: Transducer, feats: Tensor, context: ChunkContext) -> Tensor:
    """Encoder frames (T, D) of an utterance's features (T0, 80), chunk after chunk."""
    state, window, found = model.encoder.init_state(1, context), model.encoder.window(context), []
    for start in range(0, len(feats), window):
        chunk = feats[None, start : start + window]
        out, _, state = model.encoder.step(chunk, torch.tensor([chunk.shape[1]]), state, final=True)
        found.append(out[0])
    return torch.cat(found)


def read_utterances(paths: Sequence[Path]) -> list[np.ndarray]:
    """Files as float32 (S,) at 16 kHz. Raises ValueError naming one that cannot be read."""
    return [resample(*read_audio(path)) for path in paths]


def synthetic_speech(num_utterances: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Babble of different lengths."""
    rng, rate = np.random.default_rng(seed), Timebase().sample_rate
    return [babble(rng, rate, seconds) for seconds in np.linspace(0.7, 6.0, num_utterances)]
