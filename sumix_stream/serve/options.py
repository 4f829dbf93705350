"""What one stream may ask for beyond the server's own settings: the further keys of `start`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sumix_stream.context import ChunkContext
from sumix_stream.runtime.registry import reason_against
from sumix_stream.search.hotwords import Hotwords, unwritable
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.events import Started
from sumix_stream.streaming.endpointing import OWN, Endpointing, Own
from sumix_stream.streaming.second_pass import SecondPass
from sumix_stream.streaming.stream import StreamingRecognizer

CHUNKS = (0.16, 2.56)  # seconds: a shorter chunk costs its server several times as much
MOST_LEFT = 64  # chunks: what a stream keeps of each is 1 kB a layer and more
MOST_BEAM = 8
MOST_HOTWORDS, LONGEST_HOTWORD, MOST_SCORE = 100, 100, 10.0  # phrases, characters, nats a token
MOST_LM_SCALE = 2.0
ENDPOINTS = (0.1, 60.0)  # seconds; a segment has an end, as its words are sent again with every chunk


@dataclass(frozen=True)
class StreamOptions:
    """Of one stream; what is left out is the server's. Picklable.

    search: fields of SearchOptions that differ, with their values.
    speech_events: tell when speech begins and ends.
    """

    context: ChunkContext | None = None
    search: tuple[tuple[str, Any], ...] = ()
    hotwords: Hotwords | None = None
    endpointing: Endpointing | Own | None = OWN
    second_pass: SecondPass | Own | None = OWN
    speech_events: bool = False

    @property
    def kind(self) -> tuple:
        """Streams of equal kinds are recognised in one batch."""
        return self.context, self.search

    def recognizer(self, own: StreamingRecognizer) -> StreamingRecognizer:
        """One of this kind, by the weights of the server's own."""
        if self.kind == DEFAULTS.kind:
            return own
        return own.like(self.context or own.context, replace(own.search.options, **dict(self.search)))


DEFAULTS = StreamOptions()


class Wrong(ValueError):
    """An option that cannot be had; the message names the key and what is allowed."""


class Offer:
    """What streams may ask of a server's recogniser."""

    def __init__(self, recognizer: StreamingRecognizer) -> None:
        self._own = recognizer
        runtime = recognizer.runtime
        self._bound = getattr(runtime.source, "context", None) is not None  # a bundle has one context
        self._no_second_pass = reason_against(runtime.name, runtime.source, ChunkContext.full())
        self._read: dict[str, Callable[[Any, Mapping], dict]] = {
            "chunk": self._context,
            "left_context": self._context,
            "beam": self._search,
            "nbest": self._search,
            "lm_scale": self._search,
            "hotwords": self._hotwords,
            "endpoint": self._endpoint,
            "second_pass": self._second_pass,
            "speech_events": self._speech_events,
        }

    @property
    def recognizer(self) -> StreamingRecognizer:
        """The server's own."""
        return self._own

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._read)

    def describe(self) -> dict:
        """For clients: the keys, and what is allowed."""
        seconds, own = self._own.timebase.encoder_frame_time, self._own.context.chunk_size
        least, most = self._sizes
        chunks = [own, own] if self._bound else [min(least, own), max(most, own)]
        return {
            "chunk_seconds": [seconds(size) for size in chunks],
            "left_context": [self._own.context.left_context] * 2 if self._bound else [0, MOST_LEFT],
            "beam": [1, max(MOST_BEAM, self._own_beam)],
            "hotwords": MOST_HOTWORDS,
            "lm_scale": [0, MOST_LM_SCALE] if self._own.search.options.lm is not None else None,
            "endpoint": list(ENDPOINTS),
            "second_pass": self._no_second_pass is None,
        }

    def read(self, message: Mapping[str, Any]) -> StreamOptions:
        """The options among a message's keys. Raises Wrong naming the key and what is allowed."""
        given: dict[str, Any] = {}
        for read in dict.fromkeys(self._read[key] for key in self._read if key in message):
            given |= read(message)
        return StreamOptions(**given)

    def with_hotwords(self, phrases: Sequence[str]) -> StreamOptions:
        """The server's own options with hotwords, by a beam where its search is greedy. Raises Wrong as `read`."""
        beam = {} if self._own_beam else {"beam": SearchOptions().beam}
        return self.read({"hotwords": list(phrases), **beam})

    def with_silence(self, seconds: float) -> StreamOptions:
        """The server's own options with another silence after text that ends a segment."""
        own = self._own.endpointing or Endpointing()
        rules = (replace(r, min_trailing_silence=seconds) if r.needs_tokens else r for r in own.rules)
        return StreamOptions(endpointing=replace(own, rules=tuple(rules)))

    def started(self, options: StreamOptions) -> Started:
        """What a stream of these options has."""
        own, timebase = self._own, self._own.timebase
        context = options.context or own.context
        search = replace(own.search.options, **dict(options.search))
        rules = own.endpointing if options.endpointing is OWN else options.endpointing
        again = own.second_pass if options.second_pass is OWN else options.second_pass
        return Started(
            timebase.encoder_frame_time(context.chunk_size),
            round(timebase.chunk_latency_seconds(context.chunk_size), 4),
            context.left_context,
            None if search.method == "greedy" else search.beam,
            search.nbest,
            again is not None,
            None if rules is None else [max(rule.min_trailing_silence, rule.min_utterance) for rule in rules.rules],
        )

    def latency_seconds(self, options: StreamOptions) -> float:
        """Audio that a stream's first chunk takes."""
        context = options.context or self._own.context
        return self._own.timebase.chunk_latency_seconds(context.chunk_size)

    @property
    def _own_beam(self) -> int:
        options = self._own.search.options
        return 0 if options.method == "greedy" else options.beam

    def _context(self, message: Mapping[str, Any]) -> dict:
        own, timebase = self._own.context, self._own.timebase
        size, left = own.chunk_size, message.get("left_context", own.left_context)
        if "chunk" in message:
            size = self._chunk(message["chunk"])
        if left == "unlimited":
            left = None
        if left != own.left_context and not (_is_integer(left) and 0 <= left <= MOST_LEFT):
            raise Wrong(f"left_context must be an integer, 0 to {MOST_LEFT} chunks")
        context = ChunkContext(size, left)
        if self._bound and context != own:
            seconds = timebase.encoder_frame_time(own.chunk_size)
            key = "chunk" if size != own.chunk_size else "left_context"
            raise Wrong(f"{key}: this server's model was exported for chunks of {seconds:g} s, {own}; leave it out")
        return {} if context == own else {"context": context}

    @property
    def _sizes(self) -> tuple[int, int]:
        """The shortest and the longest chunk in encoder frames."""
        least, most = map(self._own.timebase.encoder_frames, CHUNKS)
        return least, most

    def _chunk(self, value: Any) -> int:
        own, timebase = self._own.context.chunk_size, self._own.timebase
        least, most = self._sizes
        low, high = (f"{round(1000 * timebase.encoder_frame_time(size))}ms" for size in (least, most))
        step = f"{round(1000 * timebase.encoder_frame_seconds)}ms"
        allowed = f"a duration such as 640ms, {low} to {high} in steps of {step}"
        try:
            if not isinstance(value, str) or value.strip().isdigit():
                raise ValueError
            size = ChunkContext.parse(value, None, timebase).chunk_size
        except ValueError:
            raise Wrong(f"chunk must be {allowed}") from None
        if size != own and (size is None or not least <= size <= most):
            raise Wrong(f"chunk must be {allowed}")
        return size

    def _search(self, message: Mapping[str, Any]) -> dict:
        own, changed = self._own.search.options, {}
        most = max(MOST_BEAM, self._own_beam)
        if "beam" in message:
            if not (_is_integer(message["beam"]) and 1 <= message["beam"] <= most):
                raise Wrong(f"beam must be an integer, 1 to {most}")
            changed |= {"method": "modified_beam", "beam": message["beam"]}
        beam = message.get("beam", self._own_beam)
        if "nbest" in message:
            if not beam:
                raise Wrong(f"nbest needs a beam, and this server's search is greedy: give beam too, 1 to {most}")
            if not (_is_integer(message["nbest"]) and 1 <= message["nbest"] <= beam):
                raise Wrong(f"nbest must be an integer, 1 to beam ({beam})")
            changed["nbest"] = message["nbest"]
        if "lm_scale" in message:
            scale = message["lm_scale"]
            if own.lm is None:
                raise Wrong("lm_scale: this server has no language model; leave it out")
            if not _is_number(scale) or not 0 <= scale <= MOST_LM_SCALE:
                raise Wrong(f"lm_scale must be a number, 0 to {MOST_LM_SCALE:g}")
            changed["lm_scale"] = float(scale)
        changed = {name: value for name, value in changed.items() if getattr(own, name) != value}
        if beam and own.nbest > beam and "nbest" not in message:
            changed["nbest"] = beam
        return {"search": tuple(sorted(changed.items()))} if changed else {}

    def _hotwords(self, message: Mapping[str, Any]) -> dict:
        given, tokenizer = message["hotwords"], self._own.tokenizer
        allowed = (
            f"a list of at most {MOST_HOTWORDS} phrases of at most {LONGEST_HOTWORD} characters, "
            f"or an object with a score for each, -{MOST_SCORE:g} to {MOST_SCORE:g} (null = the usual one)"
        )
        phrases = dict.fromkeys(given) if _is_list_of_texts(given) else given
        if not isinstance(phrases, dict) or len(phrases) > MOST_HOTWORDS:
            raise Wrong(f"hotwords must be {allowed}")
        if not phrases:
            return {}
        if not message.get("beam", self._own_beam):
            raise Wrong(f"hotwords need a beam, and this server's search is greedy: give beam too, 1 to {MOST_BEAM}")
        for text, score in phrases.items():
            if not text.strip() or len(text) > LONGEST_HOTWORD:
                raise Wrong(f"hotwords must be {allowed}")
            if score is not None and not (_is_number(score) and abs(score) <= MOST_SCORE):
                raise Wrong(f"hotwords must be {allowed}")
            if fault := unwritable(text, tokenizer):
                raise Wrong(f"hotwords: {fault}; spell it as transcripts do")
        try:
            return {"hotwords": Hotwords.compile(phrases, tokenizer)}
        except ValueError as error:
            raise Wrong(f"hotwords: {error}") from None

    def _endpoint(self, message: Mapping[str, Any]) -> dict:
        given, (low, high) = message["endpoint"], ENDPOINTS
        own = self._own.endpointing
        forgets = own is not None and own.reset_predictor
        if given is False:
            given = [high, high, high]
        allowed = f"three numbers of seconds, {low:g} to {high:g}: silence without text, silence after text, length"
        if not isinstance(given, list) or len(given) != 3 or not all(_is_number(x) and low <= x <= high for x in given):
            raise Wrong(f"endpoint must be {allowed}; or false, for none but the length of {high:g} s")
        return {"endpointing": Endpointing.sherpa(*map(float, given), reset_predictor=forgets)}

    def _second_pass(self, message: Mapping[str, Any]) -> dict:
        given = message["second_pass"]
        if not isinstance(given, bool):
            raise Wrong("second_pass must be true or false")
        if given and self._no_second_pass is not None:
            raise Wrong(f"second_pass: this server cannot have it: {self._no_second_pass}")
        return {"second_pass": (self._own.second_pass or SecondPass()) if given else None}

    def _speech_events(self, message: Mapping[str, Any]) -> dict:
        if not isinstance(message["speech_events"], bool):
            raise Wrong("speech_events must be true or false")
        return {"speech_events": message["speech_events"]}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
