"""The same audio through every way from samples to tokens, each held to the masked forward of the whole utterance.

From the repository's root, on a trained model and real recordings, all of them joined and cut into utterances:

    PYTHONPATH=tests .venv/bin/python tests/every_way.py --checkpoint EXP --audio FILE... --out TABLE.md
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import chromium
import numpy as np
import stock_sherpa
from every_client import Clients, Tokens, at_24_khz, browser_with_microphone, int16, letters, marked
from serving import RATE
from textbook import transcribe_masked

import sumix_stream as sx
from sumix_stream.audio import check_samples, read_audio, resample
from sumix_stream.context import ChunkContext
from sumix_stream.export.bundle import encode_streams, greedy
from sumix_stream.export.export import FORMATS
from sumix_stream.features import whole_fbank
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import StreamingRecognizer

FORMAT = FORMATS["sherpa-onnx"]
SEARCH = SearchOptions(max_symbols=stock_sherpa.MAX_SYMBOLS)
SECONDS = (0.3, 0.7, 2.0, 7.5, 20.0, 60.0, 300.0)
PUSHES = (1, 33, 1600, 7, 160_000, 4801, 333)  # samples, in turn


class Row(NamedTuple):
    """One utterance under one context: its tokens by the whole-utterance forward, and who found the same."""

    context: ChunkContext
    seconds: float
    num_tokens: int
    same: dict[str, bool | None]  # None = not tried


class Ways:
    """A recogniser under one context, its bundle, and utterances: int16 (S,) at 16 kHz.

    Every method gives the tokens of each utterance; the name of one is how it is reported.
    """

    def __init__(
        self, recognizer: Recognizer, context: ChunkContext, bundle: Path, audio: Sequence[np.ndarray]
    ) -> None:
        self.recognizer, self.context, self.bundle, self.audio = recognizer, context, bundle, audio
        self.floats = [samples / np.float32(32768) for samples in audio]
        self.padded = [stock_sherpa.padded(samples, context) for samples in self.floats]

    def whole(self, padded: bool = False) -> list[Tokens]:
        """The masked forward. Of padded audio: up to the end of the last chunk that sherpa-onnx decodes."""
        found = []
        for samples, longer in zip(self.floats, self.padded):
            (whole,) = self._transcribe([longer if padded else samples])
            chunk = self.recognizer.timebase.encoder_frame_samples * self.context.chunk_size
            end = len(longer) // chunk * chunk / RATE if padded else np.inf
            found.append([piece for piece, time in zip(self._pieces(whole), whole.timestamps) if time < end - 1e-6])
        return found

    def texts(self) -> list[Tokens]:
        """The masked forward's text: letters."""
        return [letters(self._transcribe([samples])[0].text) for samples in self.floats]

    def _transcribe(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        return transcribe_masked(self.recognizer.model, self.recognizer.tokenizer, waveforms, self.context, SEARCH)

    def _pieces(self, hypothesis: Hypothesis) -> Tokens:
        return [self.recognizer.tokenizer.piece(token) for token in hypothesis.tokens]

    def streaming(self, recognizer: Recognizer | None = None) -> StreamingRecognizer:
        recognizer = recognizer or self.recognizer
        return recognizer.streaming(self.context, search=SEARCH, endpointing=Endpointing.sherpa())

    def batched(self) -> list[Tokens]:
        return [self._pieces(whole) for whole in self._transcribe(self.floats)]

    def alone(self) -> list[Tokens]:
        """A stream of its own, in packets of 100 ms."""
        found = []
        for samples in self.audio:
            stream = self.streaming().create_stream()
            for start in range(0, len(samples), RATE // 10):
                stream.feed(RATE, samples[start : start + RATE // 10])
            found.append(self._pieces(stream.finish()))
        return found

    def together(self) -> list[Tokens]:
        """All at once in odd packets, each stream begun three rounds after the one before it."""
        recognizer = self.streaming()
        streams = [recognizer.create_stream() for _ in self.audio]
        rest = [_odd(samples, i) for i, samples in enumerate(self.audio)]
        for turn in count():
            for i, stream in enumerate(streams):
                if turn >= 3 * i and not stream.features.finished:
                    packet = next(rest[i], None)
                    if packet is None:
                        recognizer.input_finished(stream)
                    else:
                        recognizer.accept_waveform(stream, RATE, packet)
            moved = recognizer.decode(streams)
            if not moved and all(stream.is_finished for stream in streams):
                return [self._pieces(stream.result()) for stream in streams]

    def onnx(self) -> list[Tokens]:
        bundle, feats = FORMAT.open(self.bundle), [whole_fbank(samples) for samples in self.floats]
        found = greedy(bundle, encode_streams(bundle, feats), SEARCH.max_symbols)
        return [[self.recognizer.tokenizer.piece(token) for token in tokens] for tokens in found]

    def stock_python(self) -> list[Tokens]:
        return marked(stock_sherpa.recognise(self.bundle, self.padded)[0])

    def stock_cpp(self) -> list[Tokens]:
        with stock_sherpa.stock_server(self.bundle) as port:
            return marked(stock_sherpa.ask(port, self.padded, 600))

    def ours_bundle(self) -> list[Tokens]:
        """Our server with the bundle for a model."""
        return self.clients(sx.load(self.bundle)).ask_ours()

    def served(self, browser: chromium.Browser | None) -> dict[str, list]:
        """Our server, and its clients of every protocol."""
        return self.clients().ask(browser)

    def clients(self, recognizer: Recognizer | None = None) -> Clients:
        return Clients(self.streaming(recognizer), self.audio)

    def microphone(self, browser: chromium.Browser, longest: float) -> tuple[list[Tokens | None], list[Tokens | None]]:
        """The page, its microphone playing the utterance; and the masked forward of what came of it, which the browser
        has resampled. None for utterances of more than `longest` seconds."""
        found = self.clients().speak(browser, longest)
        told = [None if one is None else one.tokens for one in found]
        return told, [None if one is None else self._pieces(self._heard(one.samples, one.rate)) for one in found]

    def realtime_expected(self) -> list[str]:
        """The masked forward of what the server resamples from 24 kHz: texts."""
        return [self._heard(at_24_khz(samples), 24_000).text for samples in self.audio]

    def _heard(self, samples: np.ndarray, rate: int) -> Hypothesis:
        """The masked forward of samples of another rate, resampled as streams are."""
        (whole,) = self._transcribe([resample(check_samples(samples, rate), rate)])
        return whole


def _odd(samples: np.ndarray, first: int) -> Iterator[np.ndarray]:
    start = 0
    for turn in count(first):
        if start >= len(samples):
            return
        size = PUSHES[turn % len(PUSHES)]
        yield samples[start : start + size]
        start += size


def compare(
    recognizer: Recognizer,
    context: ChunkContext,
    audio: Sequence[np.ndarray],
    browser: chromium.Browser | None,
    longest: float = 20.0,
    bundle: Path | None = None,
) -> list[Row]:
    """Every way that this machine has: without `browser` no page, without its programs no stock server and client.

    browser: that of `browser_with_microphone`.
    longest: seconds of an utterance that is spoken to the page.
    bundle: the recogniser's; else it is exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        if bundle is None:
            bundle = Path(folder)
            FORMAT.save(bundle, recognizer.model, recognizer.tokenizer, context)
        ways = Ways(recognizer, context, bundle, audio)
        expected, longer = ways.whole(), ways.whole(padded=True)
        found = {
            "whole, in a batch": (ways.batched(), expected),
            "stream": (ways.alone(), expected),
            "streams, odd packets": (ways.together(), expected),
            "ONNX Runtime": (ways.onnx(), expected),
            "our server, bundle": (ways.ours_bundle(), expected),
            "sherpa-onnx, Python": (ways.stock_python(), longer),
        }
        if stock_sherpa.PROGRAM is not None:
            found["sherpa-onnx, C++ server"] = ways.stock_cpp(), longer
        texts = ways.texts()
        others = {"port of vosk": texts, "port of Wyoming": texts, "OpenAI, realtime": ways.realtime_expected()}
        found |= {name: (told, others.get(name, expected)) for name, told in ways.served(browser).items()}
        if browser is not None:
            found["page, microphone"] = ways.microphone(browser, longest)
    return [
        Row(
            context,
            len(samples) / RATE,
            len(tokens),
            {name: None if ours[i] is None else theirs[i] == ours[i] for name, (theirs, ours) in found.items()},
        )
        for i, (samples, tokens) in enumerate(zip(audio, expected))
    ]


def table(rows: Sequence[Row], recognizer: Recognizer) -> str:
    """Markdown: = where the tokens are those of the whole utterance, DIFFER where not; blank: not tried."""
    names = list(rows[0].same)
    lines = [f"| chunk, left context | seconds | tokens | {' | '.join(names)} |", "|---|--:|--:|" + ":-:|" * len(names)]
    for row in rows:
        chunk = 1000 * recognizer.timebase.encoder_frame_time(row.context.chunk_size)
        left = "unlimited" if row.context.left_context is None else f"{row.context.left_context} chunks"
        cells = [{True: "=", False: "DIFFER", None: ""}[row.same[name]] for name in names]
        lines.append(f"| {chunk:.0f} ms, {left} | {row.seconds:g} | {row.num_tokens} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cut(paths: Sequence[Path], seconds: Sequence[float]) -> list[np.ndarray]:
    """Utterances, int16 (S,) at 16 kHz, of these lengths out of recordings joined together: the loudest stretches."""
    joined = np.concatenate([resample(*read_audio(path)) for path in paths])
    sums = np.concatenate([[0.0], np.cumsum(np.square(joined, dtype=np.float64))])
    found = []
    for length in (round(RATE * one) for one in seconds):
        if length > len(joined):
            raise ValueError(f"the recordings hold {len(joined) / RATE:.1f} s, too little for {length / RATE:g} s")
        start = int(np.argmax(sums[length:] - sums[: len(sums) - length]))
        found.append(int16(joined[start : start + length]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="experiment directory or checkpoint directory")
    add("--audio", required=True, nargs="+", type=Path, help="recordings")
    add("--seconds", nargs="+", type=float, default=SECONDS, help="lengths of the utterances; default 0.3 s to 5 min")
    add("--chunk", default="640ms", help="chunk size; default 640ms")
    add("--left-context", nargs="+", default=["4", "unlimited"], help="chunks, or unlimited; default 4 unlimited")
    add("--longest", type=float, default=20.0, help="seconds of an utterance spoken to the page; default 20")
    add("--out", required=True, type=Path, help="the table, in Markdown")
    args = parser.parse_args()
    try:
        recognizer, audio, rows = sx.load(args.checkpoint), cut(args.audio, args.seconds), []
    except ValueError as error:
        parser.error(str(error))
    with browser_with_microphone() as browser:
        for left in args.left_context:
            context = recognizer.context(args.chunk, None if left == "unlimited" else int(left))
            rows += compare(recognizer, context, audio, browser, args.longest)
    args.out.write_text(table(rows, recognizer), encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))
    return 0 if all(same is not False for row in rows for same in row.same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
