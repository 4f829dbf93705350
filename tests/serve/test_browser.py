"""The page in a real browser: Chromium without a window, whose microphone plays a file."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chromium import NEEDED, PROGRAM, Browser, Page, chromium, tab
from serving import expected, library, run, serving, until, uri
from talkative import LetterTokenizer, sound
from websockets.asyncio.client import connect

from sumix_stream.audio import read_audio
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.words import words_of
from sumix_stream.serve.protocol import AudioFormat

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NEEDED)

TALK = "document.getElementById('talk').click()"
LINES = "[...document.querySelectorAll('#final p')].map(line => line.textContent)"
TITLES = "[...document.querySelectorAll('#final .w')].map(word => word.title)"
IDLE = "document.getElementById('talktext').textContent === 'Start microphone'"


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears; a test may write it anew before it opens the microphone."""
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    # Chromium repeats the last 10 ms of a file for ever.
    soundfile.write(path, np.concatenate([sound(2.5, 48_000, seed=7), np.zeros(24_000)]), 48_000)
    return path


@pytest.fixture(scope="module")
def browser(speech: Path) -> Iterator[Browser]:
    with chromium(microphone=speech) as running:
        yield running


class Heard:
    """What the server gets: for each connection its rate (Hz) and samples (S,)."""

    def __init__(self) -> None:
        self.streams: dict[AudioFormat, list[np.ndarray]] = {}
        self.formats: list[AudioFormat] = []

    @property
    def all(self) -> list[tuple[int, np.ndarray]]:
        return [(form.sample_rate, np.concatenate(self.streams[id(form)])) for form in self.formats]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    record, read = Heard(), AudioFormat.samples

    def samples(form: AudioFormat, message: bytes) -> np.ndarray:
        if id(form) not in record.streams:
            record.formats.append(form)  # kept, so that its id stays its own
        found = read(form, message)
        record.streams.setdefault(id(form), []).append(found)
        return found

    monkeypatch.setattr(AudioFormat, "samples", samples)
    return record


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


async def text_of(page: Page, name: str) -> str:
    return await page.evaluate(f"document.getElementById('{name}').textContent")


async def listen(page: Page, seconds: float) -> None:
    """Press the button, speak, press it again, wait for the last word."""
    await page.evaluate(TALK)
    await page.until("document.getElementById('state').textContent.startsWith('Listening')")
    await asyncio.sleep(seconds)
    await page.evaluate(TALK)
    await page.until(IDLE)


def word_starts(hypotheses: list[Hypothesis]) -> list[str]:
    """Start of each word as the page shows it, in seconds."""
    words = [word for found in hypotheses for word in words_of(found, LetterTokenizer(), 0.04)]
    return [f"{word.start:.2f}" for word in words]


async def shows(page: Page, hypotheses: list[Hypothesis]) -> None:
    assert await page.evaluate(LINES) == [found.text for found in hypotheses if found.tokens]
    assert [title.split()[0] for title in await page.evaluate(TITLES)] == word_starts(hypotheses)
    assert (await text_of(page, "fault"), await text_of(page, "partial"), page.errors) == ("", "", [])


RECORDINGS = {
    "16 kHz WAV": (16_000, 1, "WAV", "PCM_16"),
    "44.1 kHz stereo FLAC": (44_100, 2, "FLAC", "PCM_16"),
    "8 kHz 24 bit": (8_000, 1, "WAV", "PCM_24"),
    "48 kHz float": (48_000, 2, "WAV", "FLOAT"),
}


@pytest.mark.parametrize(("rate", "channels", "form", "subtype"), RECORDINGS.values(), ids=RECORDINGS)
def test_a_recording_is_heard_bit_by_bit(rate, channels, form, subtype, browser, heard, tmp_path):
    """No sample is changed on its way through the browser, so that its words are those of bin/stream_decode."""
    path = tmp_path / f"a.{form.lower()}"
    sounds = np.stack([sound(3.0, rate, seed=i) for i in range(channels)], 1)
    sounds *= 0.99 / np.abs(sounds).max()  # loud: a division of 16-bit samples by 32767 would show
    soundfile.write(path, sounds, rate, subtype, format=form)
    samples, _ = read_audio(path)

    async def test():
        async with serving() as (_, port), tab(browser, address(port)) as page:
            await page.give_file("#file", path)
            await page.until("document.getElementById('state').textContent.startsWith('Done: 3.0 s')")
            await shows(page, expected(samples, rate))
            assert "×" in await text_of(page, "pace")

    run(test)
    ((heard_rate, heard_samples),) = heard.all
    assert heard_rate == rate and heard_samples.dtype == np.float32
    np.testing.assert_array_equal(heard_samples, samples)


def test_a_recording_can_be_dropped(browser, heard, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(2.0, seed=3), 16_000)
    (tmp_path / "b.wav").write_text("no sound")

    async def test():
        async with serving() as (_, port), tab(browser, address(port)) as page:
            corner = "(box => [box.x + 40, box.y + 40])(document.getElementById('paper').getBoundingClientRect())"
            x, y = await page.evaluate(corner)
            await page.drop_file(tmp_path / "a.wav", x, y)
            await page.until("document.getElementById('state').textContent.startsWith('Done')")
            await shows(page, expected(read_audio(tmp_path / "a.wav")[0]))
            await page.drop_file(tmp_path / "b.wav", x, y)
            await page.until("document.getElementById('fault').textContent.includes('no audio')")
            assert await page.evaluate(IDLE)

    run(test)


def test_speech_becomes_words(browser, heard):
    """The words are those of exactly the samples that the microphone gave, to the last."""

    async def test():
        async with serving() as (_, port), tab(browser, address(port)) as page:
            await listen(page, 2.5)
            ((rate, pcm),) = heard.all
            assert rate == await page.evaluate("new AudioContext().sampleRate") and len(pcm) > 2 * rate
            await shows(page, expected(pcm, rate))
            assert len(pcm) % 128 == 0, "browsers give sound by 128 samples: some are left behind"
            done, seconds, *_ = (await text_of(page, "state")).split()
            assert done == "Done:" and abs(float(seconds) - len(pcm) / rate) < 0.1  # rounded, of whole encoder frames
            pace = await text_of(page, "pace")
            assert pace.endswith(" s") and 0 < float(pace[:-2]) < 10
            assert len((await page.evaluate("document.querySelector('polyline').getAttribute('points')")).split()) >= 4

    run(test)


def test_the_microphone_s_sound_is_left_as_it_is(browser, speech, heard):
    """Noise suppression, gain control and echo cancellation would leave little of a noise."""

    async def test() -> np.ndarray:
        async with serving() as (_, port), tab(browser, address(port)) as page:
            rate = int(await page.evaluate("new AudioContext().sampleRate"))  # nothing is resampled either
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * rate)
            soundfile.write(speech, np.concatenate([noise, np.zeros(rate)]), rate)
            await listen(page, 2.0)
            return noise

    noise = run(test)
    ((_, pcm),) = heard.all
    pcm = pcm / 32768
    pieces = [noise[start : start + 1000] for start in range(0, len(noise) // 2, 4000)]
    found = [np.abs(np.correlate(pcm, piece)).max() / np.square(piece).sum() for piece in pieces]
    assert np.median(found) == pytest.approx(1, abs=1e-3), found


def test_a_broken_connection_loses_nothing_that_was_said(browser, speech, heard):
    soundfile.write(speech, np.concatenate([sound(5.0, 48_000, seed=8), np.zeros(24_000)]), 48_000)

    async def test():
        async with serving() as (server, port), tab(browser, address(port)) as page:
            await page.evaluate(TALK)
            await page.until("document.querySelectorAll('#final p').length >= 1")
            for connection in list(server._sockets):
                connection.transport.abort()
            await page.until("document.getElementById('state').textContent.startsWith('The connection broke')")
            await page.until("document.getElementById('state').textContent.startsWith('Listening')")
            before = len(await page.evaluate(LINES))
            await asyncio.sleep(1.0)
            await page.evaluate(TALK)
            await page.until(IDLE)
            (rate, first), (_, second) = heard.all
            again = next(k for k in range(len(first)) if np.array_equal(first[k : k + 2000], second[:2000]))
            np.testing.assert_array_equal(first[again:], second[: len(first) - again])
            assert len(second) > len(first) - again
            ends = "[...document.querySelectorAll('#final p:first-child .w')].map(word => word.title.split(' ')[2])"
            assert max(map(float, await page.evaluate(ends))) <= again / rate + 0.05, "what is final is not said again"
            lines = await page.evaluate(LINES)
            assert lines[:1] == [found.text for found in expected(first, rate)][:1]
            assert lines[before:] == [found.text for found in expected(second, rate) if found.tokens]
            assert await text_of(page, "fault") == ""

    run(test)


def test_what_goes_wrong_is_said(browser):
    refuse = "navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{}'); }}"
    fault = "document.getElementById('fault').textContent.includes({!r})"

    async def test():
        async with serving(max_streams=1) as (_, port), tab(browser, address(port)) as page:
            async with connect(uri(port)):
                await page.evaluate(TALK)
                await page.until(fault.format("All streams are taken"))
                await page.until(IDLE)
            for name, words in (("NotAllowedError", "does not let"), ("NotFoundError", "no microphone")):
                await page.evaluate(refuse.format(name))
                await page.evaluate(TALK)
                await page.until(fault.format(words))
                assert await page.evaluate(IDLE)
            await page.evaluate("navigator.mediaDevices.getUserMedia = () => new Promise(() => {})")
            await page.evaluate(TALK)
            await page.evaluate(TALK)  # nobody answered the browser's question
            assert await page.evaluate(IDLE) and await text_of(page, "state") == "Stopped."
        async with serving(token="open sesame") as (server, port), tab(browser, address(port)) as page:
            await page.evaluate(TALK)
            await page.until(fault.format("token"))
            await page.until(IDLE)
            await page.call("Page.navigate", url=f"{address(port)}?token=open%20sesame")
            await page.until("location.search && document.readyState === 'complete'")
            await page.evaluate(TALK)
            await until(lambda: server.num_streams == 1)
        async with serving() as (server, port), tab(browser, address(port)) as page:
            await server.stop()
            await page.evaluate(TALK)
            await page.until(fault.format("cannot be reached"))
            assert await page.evaluate(IDLE) and page.errors == []

    run(test)


def test_a_second_pass_replaces_what_was_streamed_and_marks_it(browser, tmp_path):
    samples = sound(2.0, seed=3)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    (text, streamed), *more = library(samples, chunk=16, second_pass=True)
    assert text != streamed

    async def test():
        async with serving() as (_, port), tab(browser, address(port)) as page:
            await page.evaluate("document.getElementById('chunk').value = '640ms'")
            await page.evaluate("document.getElementById('again').click()")
            await page.give_file("#file", tmp_path / "a.wav")
            await page.until("document.getElementById('state').textContent.startsWith('Done: 2.0 s')")
            assert await page.evaluate(LINES) == [text, *(later for later, _ in more if later)]
            mended = "[...document.querySelectorAll('#final p:first-child .w.mended')].map(word => word.textContent)"
            marked = await page.evaluate(mended)
            assert marked and len(marked) >= len(text.split()) - len(set(text.split()) & set(streamed.split()))
            assert all(word in text.split() for word in marked)
            assert await page.evaluate("document.querySelector('#final p').dir") == "auto" and page.errors == []

    run(test)


def test_it_works_with_the_keyboard_alone_and_says_what_things_are(browser):
    async def test():
        async with serving() as (server, port), tab(browser, address(port)) as page:
            found = []
            for _ in range(6):
                await page.press("Tab")
                found.append(await page.evaluate("document.activeElement.id"))
            assert found == ["talk", "file", "copy", "clear", "chunk", "again"]
            nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            seen = [node for node in nodes if not node["ignored"]]
            named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in seen}
            assert {
                ("heading", "Live speech recognition"),
                ("button", "Start microphone"),
                ("button", "Copy text"),
                ("button", "Clear"),
                ("button", "Save captions (SRT)"),
                ("button", "Save captions (VTT)"),
                ("region", "Transcript"),
                ("log", "Recognised text"),
                ("meter", "Input level"),
                ("group", "Latency"),
            } <= named
            assert any("Choose a recording" in name for _, name in named)
            roles = [role for role, _ in named]
            assert {"status", "alert"} <= set(roles) and "image" not in roles and "graphics-document" not in roles
            await page.evaluate("document.getElementById('talk').focus()")
            await page.press("Space")
            await until(lambda: server.num_streams == 1)
            await page.press("Enter")
            await page.until(IDLE)

    run(test)


# Text and what lies behind it, by the style's names; shading may lie behind words.
PAIRS = (
    *(("ink", "card"), ("ink", "ground"), ("quiet", "card"), ("quiet", "ground"), ("accent-ink", "accent")),
    *(("stop-ink", "stop"), ("bad", "ground"), ("ink", "mark")),
)
CONTRAST = """pairs => {
  const brush = document.createElement('canvas').getContext('2d'), root = getComputedStyle(document.documentElement);
  const light = (name) => {
    brush.fillStyle = root.getPropertyValue('--' + name);
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return pairs.map(pair => pair.map(light).sort((a, b) => b - a)).map(([a, b]) => (a + 0.05) / (b + 0.05));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_any_screen(scheme, browser):
    """Contrast of WCAG 2.2 AA (4.5), and nothing wider than a small phone."""

    async def test():
        async with serving() as (_, port), tab(browser, address(port)) as page:
            await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            ratios = await page.evaluate(f"({CONTRAST})({[list(pair) for pair in PAIRS]})")
            assert min(ratios) >= 4.5, dict(zip(PAIRS, ratios))
            words = [{"text": "word" * (1 + i % 9), "start": i, "end": i + 1, "confidence": i / 40} for i in range(40)]
            await page.evaluate(f"show({words}, true, 3600); show({words}, false, 0)")
            for width in (320, 390, 1280):
                size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
                await page.call("Emulation.setDeviceMetricsOverride", **size)
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    run(test)
