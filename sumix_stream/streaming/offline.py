"""Whole utterances: the chunks of a stream one after another, of which full context has one; then one search."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sumix_stream.features import NUM_BINS, whole_fbank
from sumix_stream.runtime.base import Frames, Runtime, chunk_frames, plain
from sumix_stream.search.beam import Scored, beam_decode
from sumix_stream.search.greedy import Emissions, greedy_decode
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer


def encode_whole(runtime: Runtime, waveforms: Sequence[np.ndarray]) -> tuple[Frames, np.ndarray]:
    """Encoder frames (B, T, D) and lengths (B,) of whole utterances: float32 (S,) each, at the model's sample rate.

    Utterances too short for a feature frame have length 0.
    """
    feats = [whole_fbank(samples) for samples in waveforms]
    longest = max(map(len, feats), default=0)
    window = chunk_frames(runtime.timebase, runtime.context) or max(longest, 1)
    states = [runtime.fresh_state() for _ in feats]
    parts: list[list[np.ndarray]] = [[] for _ in feats]
    for start in range(0, longest, window):
        rows = [row for row, part in enumerate(feats) if len(part) > start]
        chunks, lengths = pad_chunks([feats[row][start : start + window] for row in rows])
        final = np.ones(len(rows), bool)
        frames, after = runtime.encode(chunks, lengths, [states[row] for row in rows], final)
        if longest <= window and len(rows) == len(feats):
            return frames, runtime.timebase.num_encoder_frames(lengths)
        num_frames = runtime.timebase.num_encoder_frames(lengths).tolist()
        for row, state, own, length in zip(rows, after, plain(frames), num_frames, strict=True):
            states[row] = state
            parts[row].append(own[:length])
    lengths = np.array([sum(map(len, of_row)) for of_row in parts], np.int64)
    found = np.zeros((len(parts), max(lengths, default=0), runtime.frame_dim), np.float32)
    for row, of_row in zip(found, parts, strict=True):
        if of_row:
            row[: sum(map(len, of_row))] = np.concatenate(of_row)
    return found, lengths


def pad_chunks(chunks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Chunks (n, 80) -> (B, longest, 80), zero past the lengths (B,)."""
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    feats = np.zeros((len(chunks), lengths.max(), NUM_BINS), np.float32)
    for row, chunk in zip(feats, chunks, strict=True):
        row[: len(chunk)] = chunk
    return feats, lengths


def transcribe_batch(
    runtime: Runtime,
    tokenizer: Tokenizer,
    waveforms: Sequence[np.ndarray],
    options: SearchOptions = GREEDY,
) -> list[Hypothesis]:
    """Recognise whole utterances (float32 (S,) each, at the model's sample rate) in one batch."""
    if options.method == "modified_beam":
        options = replace(options, nbest=1)
        return [best.hypothesis for (best,) in transcribe_nbest(runtime, tokenizer, waveforms, options)]
    emissions, _ = greedy_decode(runtime, *encode_whole(runtime, waveforms), options=options)
    return [to_hypothesis(runtime.timebase, tokenizer, emitted) for emitted in emissions]


class Alternative(NamedTuple):
    """One of several results; `score` is its natural log-probability with all that the options add."""

    hypothesis: Hypothesis
    score: float


def transcribe_nbest(
    runtime: Runtime,
    tokenizer: Tokenizer,
    waveforms: Sequence[np.ndarray],
    options: SearchOptions,
) -> list[list[Alternative]]:
    """As `transcribe_batch` by modified beam search: options.nbest results of each utterance, best first."""
    found, _ = beam_decode(runtime, *encode_whole(runtime, waveforms), options=options)
    return [[Alternative(to_hypothesis(runtime.timebase, tokenizer, x), x.score) for x in nbest] for nbest in found]


def to_hypothesis(timebase: Timebase, tokenizer: Tokenizer, emitted: Emissions | Scored) -> Hypothesis:
    """Text and times of what a search over a whole utterance emitted."""
    seconds = [timebase.encoder_frame_time(frame) for frame in emitted.frames]
    return Hypothesis(tokenizer.decode(emitted.tokens), list(emitted.tokens), seconds, list(emitted.confidence))
