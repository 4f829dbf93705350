"""A trained model and its tokenizer, ready to be given audio: what `sumix_stream.load` returns."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from sumix_stream.audio import check_samples, read_audio, resample
from sumix_stream.decode.endpoint import Endpointing
from sumix_stream.decode.hypothesis import Hypothesis, Word
from sumix_stream.decode.offline import transcribe_batch
from sumix_stream.decode.search import Search
from sumix_stream.decode.streaming import Stream, StreamingRecognizer, as_context
from sumix_stream.decode.words import words_of
from sumix_stream.model.checkpoint import load_model
from sumix_stream.model.transducer import Transducer
from sumix_stream.nn.chunking import ChunkContext
from sumix_stream.nn.conformer import ConformerEncoder
from sumix_stream.tokenizer import Tokenizer

Audio = str | os.PathLike | tuple[np.ndarray, int]


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> "Recognizer":
    """Load an experiment directory (its best checkpoint, else its last) or one checkpoint. No pickled code is run.

    Raises ValueError naming the path for a missing or damaged checkpoint, and for a device that is not there.
    """
    device = _check_device(device)
    model, tokenizer = load_model(path)
    return Recognizer(model.to(device), tokenizer)


class Recognizer:
    """Speech to text, whole utterances or live.

    Args:
        model, tokenizer: that belong together. The model is put in evaluation mode.
    """

    def __init__(self, model: Transducer, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model {model.vocab_size}: not a pair"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._streaming: dict[ChunkContext, StreamingRecognizer] = {}

    @property
    def encoder(self) -> ConformerEncoder:
        """The encoder: masked `forward`, and `init_state` and `step` for streams."""
        return self.model.encoder

    def context(self, chunk: str | int | ChunkContext, left_context: int | None = None) -> ChunkContext:
        """`full`, `640ms`, `0.64s`, 16 (encoder frames) with `left_context` in chunks (None = unlimited).

        Raises ValueError for a duration that is no whole number of this model's encoder frames.
        """
        return as_context(self.model, chunk, left_context)

    def transcribe(
        self, audio: Audio, context: str | int | ChunkContext = "full", left_context: int | None = None
    ) -> Hypothesis:
        """Recognise a whole utterance: a file's path, or samples (S,) and their rate in Hz.

        Args:
            context: what each frame may see, the whole utterance by default. Any chunk size gives what `stream` of
                that chunk size gives.
            left_context: chunks; None = unlimited.
        Raises:
            ValueError: naming the file or what is wrong with the samples.
        """
        context = self.context(context, left_context)
        if isinstance(audio, tuple):
            samples, sample_rate = audio
            samples = check_samples(samples, sample_rate)
        else:
            samples, sample_rate = read_audio(audio)
        samples = resample(samples, sample_rate, self.model.timebase.sample_rate)
        return transcribe_batch(self.model, self.tokenizer, [samples], context)[0]

    def stream(self, chunk: str | int | ChunkContext = "640ms", left_context: int | None = 4) -> Stream:
        """Open a live utterance. Raises ValueError for full context, which cannot stream."""
        context = self.context(chunk, left_context)
        if context not in self._streaming:
            self._streaming[context] = StreamingRecognizer(self.model, self.tokenizer, context)
        return self._streaming[context].create_stream()

    def streaming(
        self,
        chunk: str | int | ChunkContext = "640ms",
        left_context: int | None = 4,
        *,
        search: Search | None = None,
        endpointing: Endpointing | None = None,
    ) -> StreamingRecognizer:
        """A recogniser of many streams, with its own latency, search and endpoints. Raises ValueError as `stream`."""
        context = self.context(chunk, left_context)
        return StreamingRecognizer(self.model, self.tokenizer, context, search=search, endpointing=endpointing)

    def decode_streams(self, streams: Sequence[Stream]) -> int:
        """One batched step of all streams of `stream` that are ready; how many there were. Raises ValueError if their
        contexts differ."""
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
