"""Recordings of every kind, in blocks: what phones and browsers make, pipes, samples without a header, channels."""

import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import soundfile
from recordings import write_media

from sumix_stream.audio import (
    AudioError,
    Limits,
    RawFormat,
    files,
    listing,
    media,
    open_audio,
    parse_channel,
    read_audio,
)
from sumix_stream.audio.pcm import ENCODINGS

RATE = 48_000


def tone(seconds: float, rate: int = RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


KINDS = {
    "a.m4a": ("aac", None, RATE),
    "a.mp4": ("aac", None, RATE),
    "a.aac": ("aac", "adts", 44_100),
    "a.webm": ("libopus", None, RATE),
    "a.mka": ("libopus", "matroska", RATE),
    "a.amr": ("libopencore_amrnb", None, 8_000),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_libsndfile_cannot_read(tmp_path, name):
    codec, form, rate = KINDS[name]
    path = write_media(tmp_path / name, tone(2.0, rate), rate, codec, form)
    samples, found_rate = read_audio(path)
    assert found_rate == rate and samples.dtype == np.float32
    assert 2.0 <= len(samples) / rate < 2.1
    middle = samples[rate // 2 : rate // 2 + rate]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.25)
    assert np.abs(np.fft.rfft(middle)).argmax() == pytest.approx(440, abs=2)  # bins of one hertz
    np.testing.assert_array_equal(read_audio(path.read_bytes())[0], samples)


def test_channels_of_a_film_and_where_its_sound_begins(tmp_path):
    sides = np.stack([tone(1.5), tone(1.5, pitch=1000)], 1)
    path = write_media(tmp_path / "film.mkv", sides, RATE, "libopus", "matroska", begin=0.5)
    with open_audio(path) as file:
        assert (file.sample_rate, file.num_channels, file.num_samples) == (RATE, 2, None)
        whole = np.concatenate(list(file.blocks()))
    assert len(whole) / RATE == pytest.approx(2.0, abs=0.05)  # from the film's first picture
    assert np.flatnonzero(np.abs(whole[:, 0]) > 0.05)[0] / RATE == pytest.approx(0.5, abs=0.03)
    for channel, pitch in ((0, 440), (1, 1000)):
        one = read_audio(path, channel)[0]
        np.testing.assert_array_equal(one, whole[:, channel])
        assert np.abs(np.fft.rfft(one[-RATE:])).argmax() == pytest.approx(pitch, abs=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.m4a"])
def test_a_film_cut_off_is_refused(tmp_path, name):
    path = write_media(tmp_path / name, tone(3.0), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=f"{name}: cannot be decoded"):
        read_audio(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\na.aac\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile a.aac\n"),
    ],
)
def test_a_file_that_names_others_is_no_recording(tmp_path, name, text):
    """They could be any file of the machine that decodes an upload."""
    write_media(tmp_path / "a.aac", tone(1.0), RATE, "aac", "adts")
    (tmp_path / name).write_text(text)
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(tmp_path / name)


def test_without_pyav_the_extra_and_the_command_are_named(tmp_path, monkeypatch):
    path = tmp_path / "my talk.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert "pip install 'sumix-stream[media]'" in str(error.value)
    assert f"ffmpeg -i '{path}' -vn 'my talk.wav'" in str(error.value)


def test_a_film_without_sound(tmp_path):
    av = pytest.importorskip("av", reason="PyAV, of the extra `media`, makes this file")
    with av.open(str(tmp_path / "mute.mkv"), "w") as container:
        film = container.add_stream("mpeg4", rate=10)
        film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        container.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(film.encode(None))
    with pytest.raises(AudioError, match="holds no sound"):
        read_audio(tmp_path / "mute.mkv")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.webm"])
def test_memory_is_that_of_a_block(tmp_path, name):
    """Half a minute at 48 kHz in two channels is 11.5 MB as floats."""
    path, sides = tmp_path / name, np.zeros((30 * RATE, 2), np.float32)
    sides[::7] = 0.1
    if name == "a.webm":
        write_media(path, sides, RATE, "libopus")
    else:
        soundfile.write(path, sides, RATE, subtype="PCM_16")
    del sides
    tracemalloc.start()
    with open_audio(path) as file:
        seconds = sum(map(len, file.mono())) / RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == pytest.approx(30, abs=0.1)
    assert peak < 4e6


@pytest.mark.parametrize("name", ["a.wav", "a.webm"])
def test_limits_for_files_that_are_not_trusted(tmp_path, name):
    path = tmp_path / name
    if name == "a.webm":
        write_media(path, tone(3.0), RATE, "libopus")
    else:
        soundfile.write(path, tone(3.0), RATE)
    data = path.read_bytes()
    assert len(read_audio(data, limits=Limits(len(data), 3.1))[0]) >= 3 * RATE
    with pytest.raises(AudioError, match=r"upload 7: more than the 1,000 bytes that are allowed"):
        read_audio(data, limits=Limits(num_bytes=1_000), name="upload 7")
    with pytest.raises(AudioError, match=r"upload 7: .* 2\.5 s that are allowed"):
        read_audio(data, limits=Limits(seconds=2.5), name="upload 7")
    with pytest.raises(AudioError, match="the uploaded audio: cannot be decoded"):
        read_audio(b"nothing" * 99)


SUBTYPES = {
    "s16le": ("PCM_16", "LITTLE"),
    "s16be": ("PCM_16", "BIG"),
    "s24le": ("PCM_24", "LITTLE"),
    "s32le": ("PCM_32", "LITTLE"),
    "f32le": ("FLOAT", "LITTLE"),
    "f64le": ("DOUBLE", "LITTLE"),
    "u8": ("PCM_U8", "FILE"),
    "mulaw": ("ULAW", "FILE"),
    "alaw": ("ALAW", "FILE"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_samples_without_a_header_are_libsndfile_s(tmp_path, encoding):
    subtype, endian = SUBTYPES[encoding]
    path, sides = tmp_path / "a.raw", np.random.default_rng(0).uniform(-1, 1, (300, 2))
    options = {"subtype": subtype, "endian": endian, "format": "RAW"}
    soundfile.write(path, sides, 8_000, **options)
    expected, _ = soundfile.read(path, dtype="float32", samplerate=8_000, channels=2, **options)
    with open_audio(path, raw=RawFormat(encoding, 8_000, 2)) as file:
        np.testing.assert_allclose(np.concatenate(list(file.blocks())), expected, rtol=0, atol=1e-7)


def test_every_code_of_telephones(tmp_path):
    for encoding, subtype in (("mulaw", "ULAW"), ("alaw", "ALAW")):
        path = tmp_path / "a.raw"
        path.write_bytes(bytes(range(256)))
        expected, _ = soundfile.read(path, dtype="float32", samplerate=8_000, channels=1, subtype=subtype, format="RAW")
        np.testing.assert_array_equal(read_audio(path, raw=RawFormat(encoding, 8_000))[0], expected)


@pytest.mark.parametrize("text", ["", "s16", "s16le,fast", "s16le,1,2,3", "s16le,100", "s16le,16000,0", "s16le,-1"])
def test_a_wrong_description_of_samples_is_refused(text):
    with pytest.raises(AudioError, match="ENCODING,RATE,CHANNELS|sample rate must be|channels, got"):
        RawFormat.parse(text)
    assert RawFormat.parse("mulaw,8000") == ("mulaw", 8_000, 1)


def piped(tmp_path, data: bytes, steps: int = 7_001) -> str:
    """A pipe with a name, into which somebody writes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        try:
            with open(path, "wb", 0) as file:
                for start in range(0, len(data), steps):
                    file.write(data[start : start + steps])
        except BrokenPipeError:
            pass

    threading.Thread(target=write, daemon=True).start()
    return str(path)


def wav(samples: np.ndarray, subtype: str = "PCM_16", size: int | None = None, form: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, subtype=subtype, format=form)
    data = bytearray(out.getvalue())
    if size is not None:
        at = data.index(b"data")
        data[4:8] = data[at + 4 : at + 8] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF, 0x7FFFFFFF], ids=str)
@pytest.mark.parametrize(
    ("subtype", "form"), [("PCM_16", "WAV"), ("FLOAT", "WAV"), ("PCM_24", "WAVEX"), ("ULAW", "WAV")]
)
def test_a_wav_through_a_pipe(tmp_path, subtype, form, size):
    sides = np.stack([tone(0.5), tone(0.5, pitch=900)], 1)
    expected, _ = soundfile.read(io.BytesIO(wav(sides, subtype, form=form)), dtype="float32")
    found, rate = read_audio(piped(tmp_path, wav(sides, subtype, size, form)), 1)
    assert rate == RATE
    np.testing.assert_allclose(found, expected[:, 1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["a.flac", "gsm.wav", "a.webm"])
def test_other_files_through_a_pipe(tmp_path, name):
    path = tmp_path / name
    if name == "a.webm":
        write_media(path, tone(1.0), RATE, "libopus")
    else:
        options = {"subtype": "GSM610"} if name == "gsm.wav" else {}
        soundfile.write(path, tone(1.0, 8_000), 8_000, **options)
    np.testing.assert_array_equal(read_audio(piped(tmp_path, path.read_bytes()))[0], read_audio(path)[0])


def test_faults_of_pipes(tmp_path):
    with pytest.raises(AudioError, match="truncated"):
        read_audio(piped(tmp_path, wav(tone(1.0))[:50_000]))
    (tmp_path / "pipe").unlink()
    with pytest.raises(AudioError, match="ends 1 bytes into a sample of 2"):
        read_audio(piped(tmp_path, bytes(2_001)), raw=RawFormat())
    (tmp_path / "pipe").unlink()
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(piped(tmp_path, b"no audio at all"))
    (tmp_path / "pipe").unlink()
    with pytest.raises(AudioError, match="more than the 5,000 bytes"):
        read_audio(piped(tmp_path, wav(tone(1.0))), limits=Limits(num_bytes=5_000))


READ = "import sys; from sumix_stream.audio import read_audio; print(len(read_audio(sys.argv[1])[0]))"


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("redirected", [False, True], ids=["pipe", "file"])
def test_standard_input(tmp_path, name, redirected):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(0.2), RATE)
    given = {"stdin": path.open("rb")} if redirected else {"input": path.read_bytes()}
    done = subprocess.run([sys.executable, "-c", READ, name], capture_output=True, text=False, **given)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) == round(0.2 * RATE)


@pytest.mark.parametrize(("text", "channel"), [("0", 0), ("left", 0), ("right", 1), ("5", 5), ("mix", "mix")])
def test_names_of_channels(text, channel):
    assert parse_channel(text) == channel
    for wrong in ("", "-1", "both", "1.0"):
        with pytest.raises(AudioError, match="a channel is 0, 1, ..., left, right or mix"):
            parse_channel(wrong)


def test_a_channel_that_is_not_there(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE)
    with pytest.raises(AudioError, match=r"a\.wav: there is no channel 1 among its 1 \(the first is 0\)"):
        read_audio(tmp_path / "a.wav", 1)


def test_cancelling_is_judged_by_the_level_of_the_average(tmp_path, caplog):
    """Whatever correlates below -0.9; not independent channels, however many, nor one of two that is silent."""
    rng, path = np.random.default_rng(0), tmp_path / "a.wav"
    noise = (0.1 * rng.standard_normal((RATE, 8))).astype(np.float32)
    left = noise[:, 0]
    for cancels, sides in (
        (True, [left, -left]),
        (True, [left, -0.9 * left]),
        (True, [left, 0.1 * noise[:, 1] - left]),
        (False, [left, -0.3 * left]),
        (False, [left, 0 * left]),
        (False, list(noise.T)),
    ):
        caplog.clear()
        soundfile.write(path, np.stack(sides, 1), RATE, subtype="FLOAT")
        read_audio(path)
        assert ("cancel each other" in caplog.text) == cancels, len(sides)
        if cancels:
            assert "--channel left" in caplog.text and str(path) in caplog.text
            caplog.clear()
            read_audio(path, 0)
            assert not caplog.text


def test_audio_files_of_a_folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.WAV", "a.m4a", "deep/er/c.flac", "text.txt", ".hidden.wav"):
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in listing.audio_files(tmp_path)]
    assert found == ["a.m4a", "b.WAV", "deep/er/c.flac"]
    (tmp_path / "call.sln").touch()
    assert listing.audio_files(tmp_path) == [tmp_path / name for name in found]
    assert listing.audio_files(tmp_path, headerless=True) == [tmp_path / "call.sln"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match=r"empty: a folder without audio files \(known endings: \.wav"):
        listing.audio_files(tmp_path / "empty")


def test_names_of_kinds_do_not_overlap():
    assert not set(listing.SUFFIXES) & set(media.SUFFIXES) and files.STANDARD_INPUT == "-"
