"""Masked whole-utterance recognition: one forward under a chunk context, then the search over all of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sumix_stream.context import ChunkContext
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.base import AcousticModel
from sumix_stream.runtime.exported import ExportedModel
from sumix_stream.runtime.stream_encoders import make_encoder
from sumix_stream.search.beam import Scored, beam_decode
from sumix_stream.search.greedy import Emissions, greedy_decode
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.tokenizer import Tokenizer


@torch.inference_mode()
def encode_masked(
    model: AcousticModel, waveforms: Sequence[np.ndarray], context: ChunkContext
) -> tuple[Tensor, Tensor]:
    """Encoder frames (B, T, D) and lengths (B,) of whole utterances: float32 (S,) each, at the model's sample rate.

    Utterances too short for a feature frame have length 0. A bundle has no whole-utterance forward: its chunks one
    after another give the same.
    """
    feats = [torch.from_numpy(whole_fbank(samples)) for samples in waveforms]
    if isinstance(model, ExportedModel):
        return _encode_chunks(model, feats, context)
    lengths = torch.tensor([len(x) for x in feats], device=model.device)
    padded = pad_sequence(feats, batch_first=True).to(model.device)
    if padded.shape[1] == 0:
        return padded.new_zeros(len(feats), 0, model.config.encoder.dim), lengths
    return model.encoder(padded, lengths, context)


def _encode_chunks(model: ExportedModel, feats: Sequence[Tensor], context: ChunkContext) -> tuple[Tensor, Tensor]:
    """Features (T0, 80) of utterances -> encoder frames (B, T, D), lengths (B,)."""
    encoder = make_encoder(model, context)
    streams = [encoder.begin() for _ in feats]
    found = [[torch.zeros(0, model.bundle.frame_dim)] for _ in feats]
    for start in range(0, max(map(len, feats), default=0), encoder.window):
        rows = [row for row, part in enumerate(feats) if len(part) > start]
        chunks = [feats[row][start : start + encoder.window] for row in rows]
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        final = torch.ones_like(lengths, dtype=torch.bool)
        with encoder.step(
            pad_sequence(chunks, batch_first=True), lengths, final, [streams[row] for row in rows]
        ) as enc:
            for row, frames, length in zip(rows, enc, model.timebase.num_encoder_frames(lengths).tolist()):
                found[row].append(frames[:length])
    whole = [torch.cat(parts) for parts in found]
    return pad_sequence(whole, batch_first=True), torch.tensor([len(frames) for frames in whole])


def transcribe_batch(
    model: AcousticModel,
    tokenizer: Tokenizer,
    waveforms: Sequence[np.ndarray],
    context: ChunkContext,
    options: SearchOptions = GREEDY,
) -> list[Hypothesis]:
    """Recognise whole utterances (float32 (S,) each, at the model's sample rate) in one batch."""
    if options.method == "modified_beam":
        options = replace(options, nbest=1)
        return [best.hypothesis for (best,) in transcribe_nbest(model, tokenizer, waveforms, context, options)]
    emissions, _ = greedy_decode(model, *encode_masked(model, waveforms, context), options=options)
    return [to_hypothesis(model, tokenizer, emitted) for emitted in emissions]


class Alternative(NamedTuple):
    """One of several results; `score` is its natural log-probability with all that the options add."""

    hypothesis: Hypothesis
    score: float


def transcribe_nbest(
    model: AcousticModel,
    tokenizer: Tokenizer,
    waveforms: Sequence[np.ndarray],
    context: ChunkContext,
    options: SearchOptions,
) -> list[list[Alternative]]:
    """As `transcribe_batch` by modified beam search: options.nbest results of each utterance, best first."""
    found, _ = beam_decode(model, *encode_masked(model, waveforms, context), options=options)
    return [[Alternative(to_hypothesis(model, tokenizer, x), x.score) for x in nbest] for nbest in found]


def to_hypothesis(model: AcousticModel, tokenizer: Tokenizer, emitted: Emissions | Scored) -> Hypothesis:
    """Text and times of what a search over a whole utterance emitted."""
    seconds = [model.timebase.encoder_frame_time(frame) for frame in emitted.frames]
    return Hypothesis(tokenizer.decode(emitted.tokens), list(emitted.tokens), seconds, list(emitted.confidence))
