"""Messages are read strictly and PROTOCOL.md says what is true."""

import json
import re
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import PCM, expected, make_recognizer, run, serving, uri
from talkative import LetterTokenizer

from sumix_stream.serve import protocol
from sumix_stream.serve.client import transcribe
from sumix_stream.serve.events import EventKind
from sumix_stream.serve.options import Offer
from sumix_stream.serve.protocol import AudioFormat, ProtocolError, read_start, read_text


def test_start_and_its_defaults():
    assert read_start({"type": "start"}) == (AudioFormat(16_000, "s16le"), None)
    asked = {"type": "start", "sample_rate": 48_000, "format": "f32le"}
    assert read_start(asked) == (AudioFormat(48_000, "f32le"), None)


def test_samples():
    np.testing.assert_array_equal(AudioFormat().samples(b"\x01\x00\xff\xff"), np.array([1, -1], np.int16))
    floats = np.array([0.5, -0.25], "<f4")
    np.testing.assert_array_equal(AudioFormat(format="f32le").samples(floats.tobytes()), floats)
    assert len(AudioFormat().samples(b"")) == 0
    with pytest.raises(ProtocolError, match="3 bytes holds no whole number of s16le samples"):
        AudioFormat().samples(b"abc")


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_usual_rates(rate):
    assert read_start({"type": "start", "sample_rate": rate})[0].sample_rate == rate


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        message = read_text(text)
    except ProtocolError as fault:
        assert fault.code == "bad_message"
    else:
        assert message["type"] in protocol.TYPES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(rate=json_values, form=json_values)
def test_any_start_is_read_or_refused(rate, form):
    message = json.loads(json.dumps({"type": "start", "sample_rate": rate, "format": form}))
    try:
        audio, _ = read_start(message)
    except ProtocolError as fault:
        assert fault.code == "bad_start"
    else:
        assert type(audio.sample_rate) is int and audio.format in protocol.DTYPES


def test_the_document_names_what_there_is():
    text = resources.files("sumix_stream.serve").joinpath("PROTOCOL.md").read_text()
    assert f"version {protocol.VERSION}" in text and f"`{protocol.PATH}`" in text
    for name in (*protocol.DTYPES, str(protocol.DEFAULT_RATE)):
        assert name in text
    described = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    kinds = {kind.value for kind in EventKind if kind not in (EventKind.AUDIO_ACCEPTED, EventKind.OTHER)}
    codes = {"bad_message", "bad_start", "bad_audio", "too_long", "idle", "quota", "internal", "going_away"}
    options = set(Offer(make_recognizer()).keys)
    assert described == kinds | codes | options | {"code"}, "code: the header of the last table"
    for code, close in re.findall(r"^\| `(\w+)` \| (\d{4}) \|", text, re.M):
        expected = {"too_long": 1008, "idle": 1008, "quota": 1008, "internal": 1011, "going_away": 1001}.get(code, 1007)
        assert int(close) == expected, code


def test_a_final_result_names_its_tokens():
    """A client that compares, aligns or counts needs them: words may be written by other tokens."""

    async def test():
        async with serving() as (_, port):
            return await transcribe(uri(port), PCM)

    found, pieces = run(test), LetterTokenizer()
    for final, hypothesis in zip(found.segments, expected(PCM), strict=True):
        assert final["tokens"] == [pieces.piece(token) for token in hypothesis.tokens]
        assert final["timestamps"] == [round(time, 3) for time in hypothesis.timestamps]
    assert any(final["tokens"] for final in found.segments)
    assert not any("tokens" in partial for partial in found.partials)
