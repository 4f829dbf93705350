"""Words kept from chunk to chunk are the words of the whole segment."""

import json

import numpy as np
import pytest
from talkative import LetterTokenizer

from sumix_stream.search.greedy import Emissions
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.words import words_of
from sumix_stream.serve import protocol
from sumix_stream.serve.transcript import Transcript
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import BLANK_PIECE, UNKNOWN_PIECE, PieceTokenizer, Tokenizer, train_tokenizer

CLOCK = Timebase()


def expected(found: Emissions, tokenizer) -> tuple[str, list[dict]]:
    seconds = [CLOCK.encoder_frame_time(frame) for frame in found.frames]
    words = words_of(Hypothesis("", found.tokens, seconds, found.confidence), tokenizer, CLOCK.encoder_frame_seconds)
    rows = []
    for word in words:
        times = {name: round(getattr(word, name), 3) for name in ("start", "end", "confidence")}
        rows.append({"text": word.text, **times, **({} if word.space else {"space": False})})
    return tokenizer.decode(found.tokens), rows


def chinese(folder) -> Tokenizer:
    return train_tokenizer(["今天天气很好。我们去北京", "用iPhone 拍「照」,5G"], folder / "zh.model", model_type="char")


def thai_bytes(folder) -> PieceTokenizer:
    """Thai and Chinese by bytes, as where a character is no piece."""
    characters = [f"<0x{byte:02X}>" for byte in sorted(set("น้ำ今".encode()))]
    return PieceTokenizer([BLANK_PIECE, UNKNOWN_PIECE, "▁", "ก", "า", "a", "▁b", *characters])


def bpe(folder) -> Tokenizer:
    text = ["seven to one", "one hundred and seventy", "a stone in two", "no end to it"]
    return train_tokenizer(text, folder / "t.model", vocab_size=30)


def pieces(folder) -> PieceTokenizer:
    """With pieces that are a space alone, and unknown ones."""
    return PieceTokenizer([BLANK_PIECE, UNKNOWN_PIECE, "▁", "▁a", "b", "▁cd", "e", "'", "▁f"])


MAKES = {"letters": lambda _: LetterTokenizer(), "bpe": bpe, "pieces": pieces, "zh": chinese, "bytes": thai_bytes}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("seed", range(5))
def test_any_growth_reads_like_the_whole(make, seed, tmp_path):
    """Tokens come in random numbers, several in one frame at times, and now and then old ones change."""
    tokenizer, rng = make(tmp_path), np.random.default_rng(seed)
    transcript, changed = Transcript(tokenizer, CLOCK), 0
    found = Emissions([], [], [])
    for _ in range(60):
        if found.tokens and rng.random() < 0.1:
            place = max(0, len(found.tokens) - int(rng.integers(1, 8)))
            found = Emissions(*(part[:place] for part in found))
            changed += 1
        for _ in range(rng.integers(0, 4)):
            found.tokens.append(int(rng.integers(1, tokenizer.vocab_size)))
            found.frames.append((found.frames or [0])[-1] + int(rng.integers(0, 4)))
            found.confidence.append(float(rng.random()))
        text, words = transcript.read(found)
        assert (text, [json.loads(protocol.word(word)) for word in words]) == expected(found, tokenizer)
    assert len(found.tokens) > 10 and changed


def test_only_the_end_is_worked_out_anew():
    class Counting(LetterTokenizer):
        decoded = 0

        def decode(self, tokens):
            self.decoded += len(tokens)
            return super().decode(tokens)

    tokenizer = Counting()
    transcript, found = Transcript(tokenizer, CLOCK), Emissions([], [], [])
    for n in range(400):
        for part, value in zip(found, (1 + n % 8, n, 0.5), strict=True):
            part.append(value)
        transcript.read(found)
    assert tokenizer.decoded < 400 * 20
