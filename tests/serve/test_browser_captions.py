"""Captions that the page saves: those of the library's writers, to the last byte."""

import asyncio
import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chromium import NEEDED, PROGRAM, Browser, Page, chromium, tab
from serving import expected, library, run, serving, uri
from talkative import LetterTokenizer, sound

from sumix_stream.audio import read_audio
from sumix_stream.search.hypothesis import Hypothesis, Word, join_words
from sumix_stream.search.words import words_of
from sumix_stream.serve import protocol
from sumix_stream.serve.client import transcribe
from sumix_stream.serve.events import Final
from sumix_stream.serve.protocols import openai_text
from sumix_stream.streaming.captions import text_width
from sumix_stream.streaming.transcripts import FORMATS, Transcript

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NEEDED)

CAPTIONS = ("srt", "vtt")
LETTERS = ("abcdefgh", "äéñß", "жщы", "今天気서울", "กิน้ำ", "👍🏽é\u0301", "<&>")
SIGNS = ("", "", "", ".", ",", "?", "。", "،", "...", "!")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def captions(words: list[Word]) -> list[str]:
    """As bin/decode writes them."""
    transcript = Transcript("", Hypothesis(join_words(words), [], [], []), words, 0.0, 16_000)
    return [FORMATS[form](transcript) for form in CAPTIONS]


def spoken(rng: random.Random, count: int) -> list[Word]:
    """Words of many scripts, whose times lie on encoder frames, so that much is equal: pauses, spans, costs."""
    words, at = [], rng.choice([0, 0, 3_590_000])
    for _ in range(count):
        script = rng.choice(LETTERS)
        text = "".join(rng.choices(script, k=rng.choice([1, 1, 2, 3, 5, 9, 30]))) + rng.choice(SIGNS)
        end = at + 40 * rng.randint(-1 if at else 0, 20)
        words.append(Word(text, at / 1000, end / 1000, 1.0, rng.random() < 0.8))
        at = max(at, end) + rng.choice([0, 0, 0, 40, 80, 80, 200, 960, 1000, 1040, 2400])
    return words


def test_the_rule_is_the_library_s(browser):
    rng = random.Random(0)
    cases = [[], *(spoken(rng, count) for count in (1, 2, 3, 5, *[80] * 60))]
    texts = [[word.text for word in words] for words in cases]
    assert any(len(set(map(text_width, one))) > 4 for one in texts)

    async def test():
        async with serving() as (_, port), tab(browser, f"http://127.0.0.1:{port}/") as page:
            found = []
            for words in cases:
                given = [
                    {"text": w.text, "start": round(1000 * w.start), "end": round(1000 * w.end), "space": w.space}
                    for w in words
                ]
                found.append(await page.evaluate(f"(words => [toSrt(words), toVtt(words)])({json.dumps(given)})"))
            assert page.errors == []
            return found

    for found, words in zip(run(test), cases, strict=True):
        assert found == captions(words)


def test_every_character_has_the_columns_that_the_library_gives_it(browser):
    async def test():
        async with serving() as (_, port), tab(browser, f"http://127.0.0.1:{port}/") as page:
            every = "Array.from({length: 0x110000}, (_, code) => columnsOf(String.fromCodePoint(code))).join('')"
            return await page.evaluate(every)

    given = run(test)
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    later = {"\U0001171e"}  # of which Unicode 16 says something else
    assert {c for c in known if text_width(c) != int(given[ord(c)])} <= later


def final_of(number: int, found: Hypothesis) -> Final:
    tokens = [LetterTokenizer().piece(token) for token in found.tokens]
    words = words_of(found, LetterTokenizer(), 0.04)
    return Final(number, 0.0, "endpoint", found.text, words, tokens, found.timestamps)


async def saved(page: Page, folder: Path, name: str) -> list[str]:
    """Press both buttons; what the browser writes."""
    await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    found = []
    for form in CAPTIONS:
        await page.evaluate(f"document.getElementById('{form}').click()")
        path = folder / f"{name}.{form}"
        for _ in range(2000):
            if path.exists() and path.stat().st_size:
                break
            await asyncio.sleep(0.01)
        await page.until(f"document.getElementById('state').textContent === 'Saved {name}.{form}.'")
        found.append(path.read_bytes().decode())
    return found


def speech(path: Path, *seeds: int) -> np.ndarray:
    """A recording with pauses, of several segments."""
    silence = np.zeros(40_000, np.float32)
    soundfile.write(path, np.concatenate([part for seed in seeds for part in (sound(2.5, seed=seed), silence)]), 16_000)
    return read_audio(path)[0]


async def hear(page: Page, path: Path) -> None:
    await page.give_file("#file", path)
    await page.until("document.getElementById('state').textContent.startsWith('Done')")


async def stops(page: Page, count: int) -> list[str]:
    """Where the key Tab leads from the first button."""
    await page.evaluate("document.getElementById('talk').focus()")
    found = []
    for _ in range(count):
        await page.press("Tab")
        found.append(await page.evaluate("document.activeElement.id"))
    return found


def test_captions_of_a_recording_are_those_of_bin_decode(browser, tmp_path):
    """Of several segments; only of the newest recording; the keyboard reaches the buttons once there are words."""
    samples, others = speech(tmp_path / "a talk.v2.wav", 3, 4, 5), speech(tmp_path / "b.wav", 6)
    finals, more = ([final_of(*found) for found in enumerate(expected(one))] for one in (samples, others))
    words = openai_text.words_of(finals)
    assert len(finals) > 4 and any(final.tokens[:1] and final.tokens[0][0] != "▁" for final in finals[1:])
    (first, _), (second, _) = captions(words), captions(openai_text.words_of(more))
    assert first.count("-->") > 3 and first != second

    async def test():
        async with serving() as (_, port), tab(browser, f"http://127.0.0.1:{port}/") as page:
            assert await stops(page, 3) == ["file", "copy", "clear"], "there is nothing to be saved"
            await hear(page, tmp_path / "a talk.v2.wav")
            assert await stops(page, 5) == ["file", "copy", "srt", "vtt", "clear"]
            assert await saved(page, tmp_path, "a talk.v2") == captions(words)
            await hear(page, tmp_path / "b.wav")
            assert await saved(page, tmp_path, "b") == captions(openai_text.words_of(more))
            await page.evaluate("document.getElementById('clear').click()")
            assert await stops(page, 3) == ["file", "copy", "clear"] and page.errors == []

    run(test)


def test_captions_of_a_second_pass_have_what_was_heard_again(browser, tmp_path):
    samples = speech(tmp_path / "a.wav", 3, 8)
    assert any(text != streamed for text, streamed in library(samples, chunk=16, second_pass=True))

    async def test():
        async with serving() as (_, port), tab(browser, f"http://127.0.0.1:{port}/") as page:
            options = {"chunk": "640ms", "second_pass": True}
            heard = await transcribe(uri(port), samples, options=options)
            await page.evaluate("document.getElementById('chunk').value = '640ms'")
            await page.evaluate("document.getElementById('again').click()")
            await hear(page, tmp_path / "a.wav")
            return heard, await saved(page, tmp_path, "a")

    heard, found = run(test)
    assert any(one["text"] != one["streaming_text"] for one in heard.segments)
    assert found == captions(openai_text.words_of([final_from(one) for one in heard.segments]))


def final_from(message: dict) -> Final:
    words = [Word(**word) for word in message["words"]]
    return Final(0, 0.0, "end", message["text"], words, message["tokens"], message["timestamps"])


def test_captions_go_on_after_a_broken_connection(browser):
    """Times of the new stream begin where it begins; the first half of a word stays with its other half."""
    first = [Word("one", 0.4, 0.8, 0.9), Word("tw", 0.96, 1.0, 0.9)], ["▁one", "▁tw"]
    second = [Word("o", 1.08, 1.2, 0.9), Word("three", 2.6, 2.8, 0.9)], ["o", "▁three"]
    third = [Word("four", 0.04, 0.2, 0.9), Word("今", 0.4, 0.44, 0.9), Word("天", 0.44, 0.48, 0.9, False)], ["▁four"]
    finals = [Final(n, 3.0, "endpoint", join_words(w), w, tokens, []) for n, (w, tokens) in enumerate((first, second))]
    after = Final(0, 1.0, "end", "", *third, [])

    async def test():
        async with serving() as (_, port), tab(browser, f"http://127.0.0.1:{port}/") as page:
            await page.evaluate(
                "one = new Run(48000, LIVE_FORMAT, true, 'speech'); one.socket = {send() {}, close() {}}"
            )
            await page.evaluate(
                "one.opened = () => {}; one.heard({type: 'ready', protocol: PROTOCOL, chunk_seconds: 0.64})"
            )
            await tell(page, finals)
            await page.evaluate(
                "one.base = 4.5 * 48000; one.heard({type: 'ready', protocol: PROTOCOL, chunk_seconds: 0.64})"
            )
            await tell(page, [after])
            return await page.evaluate("[toSrt(spoken), toVtt(spoken)]")

    later = after._replace(words=[word._replace(start=4.5 + word.start, end=4.5 + word.end) for word in after.words])
    found = run(test)
    assert found == captions(openai_text.words_of([*finals, later]))
    assert "one two\n" in found[0] and "00:00:04,540 --> " in found[0] and "four 今天" in found[0]


async def tell(page: Page, finals: Sequence[Final]) -> None:
    for final in finals:
        await page.evaluate(f"one.heard({protocol.write(final).text})")
