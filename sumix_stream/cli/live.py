"""What is said into a microphone, on the terminal: settled words in normal type, those that may change dim."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from sumix_stream.audio.channels import MIX, OneChannel, check_channel, one_channel, parse_channel
from sumix_stream.audio.microphone import BLOCK_SECONDS, open_microphone
from sumix_stream.context import ChunkContext
from sumix_stream.search.hypothesis import Word, join_words
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming.captions import text_width
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.live import SoFar, play, words_so_far
from sumix_stream.streaming.recognizer import Recognizer

_DIM, _NORMAL, _CLEAR = "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Screen:
    """One line at a time. On a terminal it is drawn anew when something changes, and what does not fit moves up; in a
    file or a pipe a line is written when its segment is over."""

    def __init__(self, out: TextIO, columns: int | None = None) -> None:
        self._out, self._redraws = out, out.isatty()
        self._columns = columns
        self._done = 0  # words of this segment on lines above

    def show(self, words: SoFar) -> None:
        """The segment so far."""
        if not self._redraws:
            return
        width = (self._columns or shutil.get_terminal_size().columns) - 1
        settled = words.settled[self._done :]
        while (
            settled and text_width(_text(settled + words.open)) > width and len(_fitting(settled, width)) < len(settled)
        ):
            line = _fitting(settled, width)
            self._write(_CLEAR + _text(line) + "\n")
            self._done += len(line)
            settled = settled[len(line) :]
        shown = _text(settled)
        rest = _text(settled + words.open)[len(shown) :]
        while rest and text_width(shown + rest) > width:
            rest = rest[:-1]
        self._write(f"{_CLEAR}{shown}{_DIM}{rest}{_NORMAL}")

    def end(self, words: list[Word]) -> None:
        """The segment is over."""
        if self._redraws:
            self.show(SoFar(words, []))
            self._write("\n" if words else _CLEAR)
        elif words:
            self._write(_text(words) + "\n")
        self._done = 0

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _text(words: list[Word]) -> str:
    return join_words([words[0]._replace(space=True), *words[1:]]) if words else ""


def _fitting(words: list[Word], width: int) -> list[Word]:
    """As many of the first words as fit, at least one."""
    count = 1
    while count < len(words) and text_width(_text(words[: count + 1])) <= width:
        count += 1
    return words[:count]


def listen(
    recognizer: Recognizer, device: str, channel: str, context: ChunkContext, options: SearchOptions = GREEDY
) -> int:
    """Recognise a microphone until Ctrl-C, a line for each segment; the last words are recognised then."""
    streaming = recognizer.streaming(context, search=options, endpointing=Endpointing.sherpa())
    streaming.warm_up(1)
    stream, screen, one = streaming.create_stream(), Screen(sys.stdout), parse_channel(channel)
    with first_interrupt() as stopped, open_microphone(device, stopped) as microphone:
        about = f"{microphone.name}, {microphone.sample_rate} Hz"
        print(f"listening to {about}; Ctrl-C ends it", file=sys.stderr, flush=True)
        check_channel(one, microphone.num_channels)
        mixed = OneChannel(
            one if microphone.num_channels > 1 else MIX, microphone.num_channels, microphone.sample_rate, about
        )

        blocks = one_channel(microphone.blocks(), mixed)
        for heard in play(streaming, stream, blocks, microphone.sample_rate, BLOCK_SECONDS):
            found = words_so_far(streaming, stream)
            if heard.is_final:
                screen.end(found.settled + found.open)
            else:
                screen.show(found)
    return 0


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; another ends the program."""
    stopped = threading.Event()

    def once(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stopped.set()

    before = signal.signal(signal.SIGINT, once)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
