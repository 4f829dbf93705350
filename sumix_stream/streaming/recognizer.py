"""A trained model and its tokenizer, ready to be given audio: what `sumix_stream.load` returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sumix_stream.audio import check_samples, read_audio, resample
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.base import Runtime
from sumix_stream.runtime.bundle import OnnxFiles, is_bundle, load_tokenizer, open_bundle
from sumix_stream.runtime.registry import AUTO, DEFAULT, as_context, check_name, choose, make_runtime
from sumix_stream.runtime.weights import Weights
from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.search.words import words_of
from sumix_stream.streaming.after_fork import use_one_thread_after_fork
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.offline import transcribe_batch
from sumix_stream.streaming.second_pass import SecondPass
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import PieceTokenizer, Tokenizer

Audio = str | os.PathLike | bytes | tuple[np.ndarray, int]
Chunk = str | int | ChunkContext
WHOLE = ("full", None)  # chunk and left context of a whole utterance


def load(
    path: str | os.PathLike,
    device: Any = "cpu",
    average: int | str | None = None,
    precision: str = "fp32",
    runtime: str = AUTO,
) -> Recognizer:
    """Load an experiment directory (its best checkpoint, else its last), one checkpoint, or an exported ONNX bundle.

    Args:
        average: of weights: of the last so many checkpoints (5), of the best ("best5"), or "none": without the running
            average that is otherwise used where training kept one. See sumix_stream.checkpoint.reading.
        precision: fp32, or bf16: of the factors of the encoder's products, on a CPU that has instructions for it.
        runtime: who computes: torch, compiled or onnx, or auto, which tells the log whom it took and why.

    No pickled code is run. Raises ValueError naming the path for one that is missing or damaged, for a device that is
    not there, for a bundle anywhere but on the CPU, for checkpoints that cannot be averaged, and with the reason for a
    runtime or a precision that cannot be had.
    """
    device = str(device)
    check_name(runtime)
    if is_bundle(path):
        if device != "cpu":
            raise ValueError(f"{path} is a bundle, which runs on the CPU, not on {device}: load the checkpoint there")
        if average is not None:
            raise ValueError(f"{path} is a bundle, whose weights are fixed: leave average out")
        if precision != "fp32":
            raise ValueError(f"{path} is a bundle, whose arithmetic is fixed: leave precision out")
        bundle = open_bundle(path)
        return Recognizer(bundle, load_tokenizer(bundle), runtime)
    weights, tokenizer = Weights.read(path, average, device=device, precision=precision)
    choose(weights, as_context(weights), runtime)  # what cannot run is said now
    return Recognizer(weights, tokenizer, runtime)


class Recognizer:
    """Speech to text, whole utterances or live.

    Args:
        model, tokenizer: that belong together: `Weights`, an opened bundle, or a `Transducer`, which is put in
            evaluation mode.
        runtime: a name of registry.NAMES.
    """

    def __init__(
        self, model: Weights | OnnxFiles | Any, tokenizer: Tokenizer | PieceTokenizer, runtime: str = AUTO
    ) -> None:
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model {model.vocab_size}: not a pair"
            )
        use_one_thread_after_fork()
        self.source = Weights.of(model.eval()) if hasattr(model, "state_dict") else model
        self.tokenizer, self.runtime_name = tokenizer, check_name(runtime)
        self._runtimes: dict[ChunkContext, Runtime] = {}
        self._streaming: dict[tuple[ChunkContext, SearchOptions, SecondPass | None], StreamingRecognizer] = {}

    def __getstate__(self) -> dict:
        """For pickle and copy: what is made from these is made anew there."""
        return {"model": self.source, "tokenizer": self.tokenizer, "runtime": self.runtime_name}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    @property
    def timebase(self) -> Timebase:
        """The model's clock."""
        return self.source.timebase

    @cached_property
    def model(self) -> Any:
        """The `Transducer`, made when first asked for. Raises ValueError for a bundle, which has none."""
        if isinstance(self.source, OnnxFiles):
            raise ValueError(f"{self.source} is a bundle, which has no model of PyTorch: use `stream`")
        from sumix_stream.runtime.torch import module_of

        return module_of(self.source)

    @property
    def encoder(self) -> Any:
        """The encoder: masked `forward`, and `init_state` and `step` for streams. Raises ValueError for a bundle."""
        return self.model.encoder

    def runtime(self, context: ChunkContext) -> Runtime:
        """Who computes under a context. Raises ValueError with the reason where it cannot be had."""
        if context not in self._runtimes:
            self._runtimes[context] = make_runtime(self.source, context, self.runtime_name)
        return self._runtimes[context]

    def context(self, chunk: Chunk = DEFAULT, left_context: int | str | None = DEFAULT) -> ChunkContext:
        """Of a stream: `640ms`, `0.64s`, 16 (encoder frames) with `left_context` in chunks (None = unlimited).

        "default" is a bundle's own, else 640ms and 4. Raises ValueError for a duration that is no whole number of this
        model's encoder frames, and for another context than a bundle's.
        """
        return as_context(self.source, chunk, left_context)

    def whole_context(self, chunk: Chunk = DEFAULT, left_context: int | str | None = DEFAULT) -> ChunkContext:
        """The same of a whole utterance, whose default is full context with all there is to the left."""
        return as_context(self.source, chunk, left_context, WHOLE)

    def transcribe(
        self,
        audio: Audio,
        context: Chunk = DEFAULT,
        left_context: int | str | None = DEFAULT,
        *,
        search: SearchOptions = GREEDY,
    ) -> Hypothesis:
        """Recognise a whole utterance: a file's path or its bytes (see `read_audio`), or samples (S,) and their
        rate in Hz.

        Args:
            context: what each frame may see, the whole utterance by default. Any chunk size gives what `stream` of
                that chunk size gives. A bundle knows its own alone.
            left_context: chunks; None = unlimited, the default.
            search: beam, language model, hotwords...; greedy by default.
        Raises:
            ValueError: naming the file or what is wrong with the samples.
        """
        context = self.whole_context(context, left_context)
        if isinstance(audio, tuple):
            samples, sample_rate = audio
            samples = check_samples(samples, sample_rate)
        else:
            samples, sample_rate = read_audio(audio)
        samples = resample(samples, sample_rate, self.timebase.sample_rate)
        return transcribe_batch(self.runtime(context), self.tokenizer, [samples], search)[0]

    def stream(
        self,
        chunk: Chunk = DEFAULT,
        left_context: int | str | None = DEFAULT,
        *,
        search: SearchOptions = GREEDY,
        second_pass: SecondPass | bool = False,
    ) -> Stream:
        """Open a live utterance.

        Args:
            chunk, left_context, search: as of `context` and `transcribe`.
            second_pass: `finish` and `commit` hear it again, under full context; True = as SecondPass() says.
        Raises:
            ValueError: for full context, which cannot stream, and for a second pass by a bundle that has none.
        """
        again = _second_pass(second_pass)
        key = self.context(chunk, left_context), search, again
        if key not in self._streaming:
            self._streaming[key] = self.streaming(key[0], search=search, second_pass=again)
        return self._streaming[key].create_stream()

    def streaming(
        self,
        chunk: Chunk = DEFAULT,
        left_context: int | str | None = DEFAULT,
        *,
        search: SearchOptions = GREEDY,
        endpointing: Endpointing | None = None,
        second_pass: SecondPass | bool | None = False,
    ) -> StreamingRecognizer:
        """A recogniser of many streams, with its own latency, search and endpoints. Raises ValueError as `stream`."""
        context = self.context(chunk, left_context)
        model = self.source if context.chunk_size is None else self.runtime(context)
        options = {"search": search, "endpointing": endpointing, "second_pass": _second_pass(second_pass)}
        return StreamingRecognizer(model, self.tokenizer, context, **options)

    def decode_streams(self, streams: Sequence[Stream]) -> int:
        """One batched step of all streams of `stream` that are ready; how many there were. Raises ValueError if their
        contexts or searches differ."""
        return len(streams[0].recognizer.decode(streams)) if streams else 0

    def words(self, hypothesis: Hypothesis) -> list[Word]:
        """The words of a hypothesis, with times in seconds and confidences; see words.py for what they mean."""
        return words_of(hypothesis, self.tokenizer, self.timebase.encoder_frame_seconds)


def _second_pass(given: SecondPass | bool | None) -> SecondPass | None:
    return (SecondPass() if given else None) if given is None or isinstance(given, bool) else given
