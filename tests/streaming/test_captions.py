"""Captions fit their lines and the eye, lose no word, and end where speech pauses."""

import json
import random
from itertools import pairwise

import pytest

from sumix_stream.search.hypothesis import Hypothesis, Word, join_words
from sumix_stream.streaming.captions import CaptionStyle, captions_of, text_width
from sumix_stream.streaming.transcripts import FORMATS, Transcript


def spoken(text: str, gap: float = 0.1, length: float = 0.3, start: float = 0.0) -> list[Word]:
    words = []
    for one in text.split():
        words.append(Word(one, round(start, 3), round(start + length, 3), 0.9))
        start += length + gap
    return words


def chinese(text: str, start: float = 0.0) -> list[Word]:
    return [Word(c, start + 0.2 * n, start + 0.2 * n + 0.2, 0.5, n == 0) for n, c in enumerate(text)]


@pytest.mark.parametrize("seed", range(20))
def test_what_every_caption_keeps_to(seed):
    rng, words, at = random.Random(seed), [], 0.0
    for _ in range(120):
        text = "".join(rng.choices("abcdefgh", k=rng.randint(1, 12))) + rng.choice(["", "", "", ".", ","])
        words.append(Word(text, at, at + rng.uniform(0.04, 0.6), 1.0))
        at = words[-1].end + rng.choice([0.0, 0.1, 0.3, 1.5])
    style = CaptionStyle(rng.randint(14, 50), rng.randint(1, 3), rng.uniform(2, 8), 1.0)
    captions = captions_of(words, style)
    assert " ".join(" ".join(caption.lines) for caption in captions) == join_words(words)
    count = 0
    for caption, following in zip(captions, [*captions[1:], None], strict=True):
        inside = words[count : count + len(" ".join(caption.lines).split())]
        count += len(inside)
        assert caption.start == inside[0].start and caption.end >= inside[-1].end
        assert len(caption.lines) <= style.lines
        assert all(text_width(line) <= style.columns for line in caption.lines)
        assert inside[-1].end - inside[0].start <= style.max_seconds or len(inside) == 1
        assert all(b.start - a.end < style.pause for a, b in pairwise(inside))
        if following is not None:
            assert caption.end <= following.start
    assert count == len(words)


def test_captions_end_with_sentences_and_lines_are_balanced():
    words = spoken("this is the first sentence of the two. and here the second one goes on for a while", gap=0.05)
    captions = captions_of(words, CaptionStyle(24, 2, 6.0))
    assert captions[0].lines == ("this is the first", "sentence of the two.")
    assert captions[0].start == 0.0 and captions[0].end == words[8].start
    assert [caption.lines[0].split()[0] for caption in captions][1] == "and"


def test_a_short_caption_stays_a_second_where_it_can():
    words = [Word("yes", 1.0, 1.04, 1.0), Word("no", 4.0, 4.04, 1.0), Word("oh", 5.2, 5.24, 1.0)]
    assert [(c.start, c.end) for c in captions_of(words)] == [(1.0, 2.0), (4.0, 5.0), (5.2, 6.2)]
    assert captions_of([]) == []


def test_wide_characters_take_two_columns_and_have_no_spaces():
    captions = captions_of(chinese("今天天气很好我们去北京看一看"), CaptionStyle(16, 2))
    assert [caption.lines for caption in captions] == [("今天天气很好我", "们去北京看一看")]
    captions = captions_of(chinese("今天天气很好我们去北京看一看"), CaptionStyle(8, 1))
    assert all(len(line) <= 4 for caption in captions for line in caption.lines)
    assert "".join(line for caption in captions for line in caption.lines) == "今天天气很好我们去北京看一看"
    assert text_width("a今\u0e19\u0e49") == 4


def test_a_word_wider_than_a_line_stands_alone():
    captions = captions_of(spoken("a " + "b" * 30 + " c"), CaptionStyle(10, 1))
    assert [caption.lines for caption in captions] == [("a",), ("b" * 30,), ("c",)]


@pytest.mark.parametrize("wrong", [{"columns": 1}, {"lines": 0}, {"max_seconds": 0.0}, {"pause": float("nan")}])
def test_styles_without_room_are_refused(wrong):
    with pytest.raises(ValueError, match="caption"):
        CaptionStyle(**wrong)


def transcript(words: list[Word], **more) -> Transcript:
    found = Hypothesis(join_words(words), [1] * len(words), [w.start for w in words], [w.confidence for w in words])
    return Transcript("talk one.wav", found, words, 3723.5, 44_100, **more)


def test_formats():
    words = [*spoken("two <b> & three"), *spoken("late", start=3723.0)]
    assert FORMATS["txt"](transcript(words)) == "two <b> & three\nlate\n"
    assert FORMATS["srt"](transcript(words)) == (
        "1\n00:00:00,000 --> 00:00:01,800\ntwo <b> & three\n\n2\n01:02:03,000 --> 01:02:04,000\nlate\n"
    )
    assert FORMATS["vtt"](transcript(words)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.800\ntwo &lt;b&gt; &amp; three\n\n01:02:03.000 --> 01:02:04.000\nlate\n"
    )
    assert FORMATS["tsv"](transcript(words, channel=1)).splitlines()[-1] == (
        "talk one.wav\t1\t3723.000\t3723.300\t0.900\tlate"
    )

    content = json.loads(FORMATS["json"](transcript(chinese("今天"), channel=0, about={"chunk_size": 16})))
    assert content["text"] == "今天" and content["confidence"] == 0.5 and content["channel"] == 0
    assert content["words"][1] == {"text": "天", "start": 0.2, "end": 0.4, "confidence": 0.5, "space": False}
    assert "space" not in content["words"][0] and content["chunk_size"] == 16 and content["seconds"] == 3723.5


def test_nothing_said():
    empty = transcript([])
    assert [FORMATS[form](empty) for form in ("txt", "srt", "vtt", "tsv")] == ["", "", "WEBVTT\n", ""]
    assert '"words": []' in FORMATS["json"](empty)
