"""bin/stream_decode --microphone with a sounddevice of ours: live words, endpoints, errors."""

import io
import signal
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.audio import AudioError
from sumix_stream.audio.microphone import list_devices, open_microphone
from sumix_stream.cli import stream_decode
from sumix_stream.cli.live import Screen, listen
from sumix_stream.search.hypothesis import Word
from sumix_stream.streaming.live import SoFar
from sumix_stream.streaming.recognizer import Recognizer

RATE = 44_100


class FakeDevice(types.SimpleNamespace):
    """The module: two devices with input channels, one without. Its stream plays `sound_in` and then presses Ctrl-C."""

    def __init__(self, sound_in: np.ndarray | None = None, **more: object) -> None:
        devices = [
            {"name": "speakers", "max_input_channels": 0, "default_samplerate": 48_000.0},
            {"name": "webcam", "max_input_channels": 1, "default_samplerate": 16_000.0},
            {"name": "headset", "max_input_channels": 2, "default_samplerate": float(RATE)},
        ]
        super().__init__(
            devices=devices,
            default=types.SimpleNamespace(device=[2, 0]),
            PortAudioError=type("E", (Exception,), {}),
            **more,
        )
        self.sound_in, self.status = sound_in, ""

    def query_devices(self, device=None, kind=None):
        if kind is None:
            return self.devices
        if device == "missing":
            raise ValueError("No input device matching 'missing'")
        return self.devices[2 if device is None else device if isinstance(device, int) else 1]

    def InputStream(self, **options):
        self.options = options
        return _Stream(self, options)


class _Stream:
    def __init__(self, module: FakeDevice, options: dict) -> None:
        self.module, self.options = module, options

    def __enter__(self):
        self.thread = threading.Thread(target=self.speak)
        self.thread.start()

    def __exit__(self, *_):
        self.thread.join()

    def speak(self) -> None:
        samples, size = self.module.sound_in, self.options["blocksize"]
        buffer = np.empty((size, samples.shape[1]), np.float32)  # used again, as PortAudio does
        for start in range(0, len(samples) - size + 1, size):
            buffer[:] = samples[start : start + size]
            self.options["callback"](buffer, size, None, self.module.status)
        buffer[:] = np.nan
        signal.raise_signal(
            signal.SIGINT
        ) if threading.current_thread() is threading.main_thread() else signal.pthread_kill(
            threading.main_thread().ident, signal.SIGINT
        )


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer(talkative_model(), LetterTokenizer())


def with_device(monkeypatch, *arguments, **options) -> FakeDevice:
    module = FakeDevice(*arguments, **options)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def spoken() -> np.ndarray:
    """Two stretches of sound with a second and a half of nothing between, on both channels, in blocks of 0.1 s."""
    first, second = sound(2.0, RATE, 1), sound(1.5, RATE, 2)
    one = np.concatenate([first, np.zeros(3 * RATE // 2, np.float32), second])
    return np.stack([one, one], 1)


def test_what_is_said_is_what_a_file_of_it_gives(monkeypatch, capsys, recognizer):
    module = with_device(monkeypatch, spoken())
    context = recognizer.context("320ms", 2)
    assert listen(recognizer, "", "mix", context) == 0
    out, err = capsys.readouterr()
    assert err == f"listening to headset, {RATE} Hz; Ctrl-C ends it\n"
    assert module.options["samplerate"] == RATE and module.options["channels"] == 2
    stream = recognizer.stream(context)
    stream.feed(RATE, spoken()[:, 0])
    expected = [word.text for word in recognizer.words(stream.finish())]
    assert "".join(out.split()) == "".join(expected) != ""
    with_device(monkeypatch, spoken())
    assert listen(recognizer, "2", "left", context) == 0
    assert capsys.readouterr().out == out


def test_devices_are_listed(monkeypatch, capsys):
    with_device(monkeypatch)
    assert list_devices().splitlines() == [
        "    1  webcam, 1 channel(s), 16000 Hz",
        "*   2  headset, 2 channel(s), 44100 Hz",
    ]
    monkeypatch.setattr(sys, "argv", ["stream_decode", "--devices"])
    with pytest.raises(SystemExit) as end:
        stream_decode.run()
    assert end.value.code == 0 and "headset" in capsys.readouterr().out


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match=r"pip install 'sumix-stream\[microphone\]'"):
        list_devices()
    module = with_device(monkeypatch)
    with pytest.raises(AudioError, match="microphone missing cannot be opened .*--devices lists them"):
        open_microphone("missing").__enter__()
    module.devices = module.devices[:1]
    for call in (list_devices, lambda: open_microphone().__enter__()):
        with pytest.raises(AudioError, match="there is no microphone: .*arecord"):
            call()


def test_without_portaudio(monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        AudioError, match=r"finds no PortAudio \(PortAudio library not found\): .*apt install libportaudio2"
    ):
        list_devices()


def test_lost_samples_are_said(monkeypatch, recognizer, caplog, capsys):
    module = with_device(monkeypatch, spoken()[:RATE])
    module.status = "input overflow"
    listen(recognizer, "", "mix", recognizer.context("320ms", 2))
    assert "samples were lost" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--microphone", "a.wav"], "required: --checkpoint"),
        (["--checkpoint", "x", "--microphone", "1", "a.wav"], "one of them"),
        (["--checkpoint", "x", "--microphone", "--out", "y"], "--microphone prints what it hears"),
        (["--checkpoint", "x"], "one of them"),
        (["--checkpoint", "x", "--cuts", "y", "--check-exactness"], "--check-exactness needs audio files"),
    ],
)
def test_options_that_do_not_go_together(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["stream_decode", *arguments])
    with pytest.raises(SystemExit) as end:
        stream_decode.run()
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """Lines as a terminal leaves them, what is dim in braces."""
    lines = [""]
    for part in text.replace("\x1b[2m", "{").replace("\x1b[0m", "}").replace("{}", "").split("\n"):
        lines[-1] = part.split("\r\x1b[K")[-1]
        lines.append("")
    return lines[:-1]


def words(text: str) -> list[Word]:
    return [Word(one, 0.1 * n, 0.1 * n + 0.1, 1.0) for n, one in enumerate(text.split())]


def test_settled_words_are_normal_and_others_dim():
    screen = Screen(out := Terminal(), 40)
    screen.show(SoFar(words("it is"), words("fin")))
    assert shown(out.getvalue()) == ["it is{ fin}"]
    screen.show(SoFar(words("it is fine"), words("tod")))
    assert shown(out.getvalue()) == ["it is fine{ tod}"]
    screen.end(words("it is fine today"))
    screen.show(SoFar([], words("and")))
    assert shown(out.getvalue()) == ["it is fine today", "{and}"]
    screen.end([])
    assert shown(out.getvalue())[-1] == ""


def test_long_segments_move_up_line_by_line():
    screen, text = Screen(out := Terminal(), 21), "one two three four five six seven eight nine ten eleven twelve"
    for count in range(1, 13):
        said = words(" ".join(text.split()[:count]))
        screen.show(SoFar(said[:-1], said[-1:]))
    screen.end(words(text))
    lines = shown(out.getvalue())
    assert " ".join(lines).split() == text.split() and all(len(line) <= 20 for line in lines)
    assert lines[0] == "one two three four"


def test_a_file_gets_whole_lines(tmp_path: Path):
    with open(tmp_path / "out", "w") as out:
        screen = Screen(out)
        screen.show(SoFar(words("one"), words("two")))
        screen.end(words("one two"))
        screen.end([])
        screen.end([Word("今", 0, 1, 1.0), Word("天", 1, 2, 1.0, False)])
    assert (tmp_path / "out").read_text() == "one two\n今天\n"
