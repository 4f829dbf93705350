"""A trained model and its tokenizer, ready to be given audio: what `sumix_stream.load` returns."""

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from sumix_stream.audio import check_samples, read_audio, resample
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.runtime.bundle import is_bundle, load_tokenizer, open_bundle
from sumix_stream.runtime.exported import ExportedModel
from sumix_stream.runtime.packed import pack
from sumix_stream.runtime.stream_encoders import DEFAULT, as_context
from sumix_stream.search.base import Search
from sumix_stream.search.beam_search import make_search
from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.search.words import words_of
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.offline import transcribe_batch
from sumix_stream.streaming.stream import Stream, StreamingRecognizer
from sumix_stream.tasks.checkpoint import load_model
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import PieceTokenizer, Tokenizer

Audio = str | os.PathLike | tuple[np.ndarray, int]
Chunk = str | int | ChunkContext
WHOLE = ("full", None)  # chunk and left context of a whole utterance


def load(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    average: int | str | None = None,
    precision: str = "fp32",
) -> "Recognizer":
    """Load an experiment directory (its best checkpoint, else its last), one checkpoint, or an exported ONNX bundle.

    Args:
        average: of weights: of the last so many checkpoints (5), of the best ("best5"), or "none": without the running
            average that is otherwise used where training kept one. See sumix_stream.checkpoint.reading.
        precision: fp32, or bf16: of the factors of the encoder's products, on a CPU that has instructions for it. See
            sumix_stream.runtime.packed.

    No pickled code is run. Raises ValueError naming the path for one that is missing or damaged, for a device that is
    not there, for a bundle anywhere but on the CPU, for checkpoints that cannot be averaged, and for a precision that
    is not to be had.
    """
    device = _check_device(device)
    if is_bundle(path):
        if device.type != "cpu":
            raise ValueError(f"{path} is a bundle, which runs on the CPU, not on {device}: load the checkpoint there")
        if average is not None:
            raise ValueError(f"{path} is a bundle, whose weights are fixed: leave average out")
        if precision != "fp32":
            raise ValueError(f"{path} is a bundle, whose arithmetic is fixed: leave precision out")
        bundle = open_bundle(path)
        return Recognizer(ExportedModel(bundle), load_tokenizer(bundle))
    model, tokenizer = load_model(path, average)
    model = model.to(device)
    return Recognizer(model if precision == "fp32" else pack(model.eval(), precision), tokenizer)


class Recognizer:
    """Speech to text, whole utterances or live.

    Args:
        model, tokenizer: that belong together. A PyTorch model is put in evaluation mode.
    """

    def __init__(self, model: Transducer | ExportedModel, tokenizer: Tokenizer | PieceTokenizer) -> None:
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model {model.vocab_size}: not a pair"
            )
        self.model = model.eval() if isinstance(model, Transducer) else model
        self.tokenizer = tokenizer
        self._streaming: dict[tuple[ChunkContext, SearchOptions], StreamingRecognizer] = {}

    @property
    def encoder(self) -> ConformerEncoder:
        """The encoder: masked `forward`, and `init_state` and `step` for streams. Raises ValueError for a bundle."""
        if isinstance(self.model, ExportedModel):
            raise ValueError(f"{self.model.bundle.folder} is a bundle, which has no encoder of PyTorch: use `stream`")
        return self.model.encoder

    def context(self, chunk: Chunk = DEFAULT, left_context: int | str | None = DEFAULT) -> ChunkContext:
        """Of a stream: `640ms`, `0.64s`, 16 (encoder frames) with `left_context` in chunks (None = unlimited).

        "default" is a bundle's own, else 640ms and 4. Raises ValueError for a duration that is no whole number of this
        model's encoder frames, and for another context than a bundle's.
        """
        return as_context(self.model, chunk, left_context)

    def whole_context(self, chunk: Chunk = DEFAULT, left_context: int | str | None = DEFAULT) -> ChunkContext:
        """The same of a whole utterance, whose default is full context with all there is to the left."""
        return as_context(self.model, chunk, left_context, WHOLE)

    def transcribe(
        self,
        audio: Audio,
        context: Chunk = DEFAULT,
        left_context: int | str | None = DEFAULT,
        *,
        search: SearchOptions = GREEDY,
    ) -> Hypothesis:
        """Recognise a whole utterance: a file's path, or samples (S,) and their rate in Hz.

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
        samples = resample(samples, sample_rate, self.model.timebase.sample_rate)
        return transcribe_batch(self.packed, self.tokenizer, [samples], context, search)[0]

    def stream(
        self, chunk: Chunk = DEFAULT, left_context: int | str | None = DEFAULT, *, search: SearchOptions = GREEDY
    ) -> Stream:
        """Open a live utterance; arguments as of `context` and `transcribe`. Raises ValueError for full context, which
        cannot stream."""
        key = self.context(chunk, left_context), search
        if key not in self._streaming:
            self._streaming[key] = self.streaming(key[0], search=search)
        return self._streaming[key].create_stream()

    def streaming(
        self,
        chunk: Chunk = DEFAULT,
        left_context: int | str | None = DEFAULT,
        *,
        search: Search | SearchOptions = GREEDY,
        endpointing: Endpointing | None = None,
    ) -> StreamingRecognizer:
        """A recogniser of many streams, with its own latency, search and endpoints. Raises ValueError as `stream`."""
        context = self.context(chunk, left_context)
        if isinstance(search, SearchOptions):
            search = make_search(self.packed, search)
        slots = self.model.device.type == "cuda"  # where a step by itself costs more in launches than in work
        return StreamingRecognizer(
            self.packed, self.tokenizer, context, search=search, endpointing=endpointing, slots=slots
        )

    @cached_property
    def packed(self) -> Transducer | ExportedModel:
        """The model as it recognises: on a CPU with packed weights, which later changes of the model do not reach."""
        return pack(self.model) if isinstance(self.model, Transducer) else self.model

    def decode_streams(self, streams: Sequence[Stream]) -> int:
        """One batched step of all streams of `stream` that are ready; how many there were. Raises ValueError if their
        contexts or searches differ."""
        return len(streams[0].recognizer.decode(streams)) if streams else 0

    def words(self, hypothesis: Hypothesis) -> list[Word]:
        """The words of a hypothesis, with times in seconds and confidences; see words.py for what they mean."""
        return words_of(hypothesis, self.tokenizer, self.model.timebase.encoder_frame_seconds)


def _check_device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from None
    return device
