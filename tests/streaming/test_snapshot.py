"""A stream put into bytes goes on as if nothing had happened, in another process too; other bytes are refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.stream import StreamingRecognizer

CUTS = (0, 1, 79, 241, 5_120, 5_121, 11_111, 20_480, 31_999)  # samples: inside remainders, on and off chunks


def make(mixer: str = "fast", left: int | None = 4, seed: int = 0) -> StreamingRecognizer:
    return StreamingRecognizer(talkative_model(mixer, seed), LetterTokenizer(), ChunkContext(8, left))


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
@pytest.mark.parametrize(("mixer", "left"), [("fast", 4), ("fast", None), ("expdecay", 2), ("attention", None)])
def test_a_restored_stream_goes_on_identically(mixer, left, rate):
    recognizer, samples = make(mixer, left), sound(2.5, rate)
    whole = recognizer.create_stream()
    whole.feed(rate, samples)
    expected = whole.finish()
    assert len(expected.tokens) > 15
    for cut in CUTS:
        stream = recognizer.create_stream()
        recognizer.accept_waveform(stream, rate, samples[:cut])
        if cut % 2:
            while recognizer.decode([stream]):
                pass
        restored = make(mixer, left).restore(stream.snapshot())
        for one in (stream, restored):
            one.feed(rate, samples[cut:])
        result = restored.finish()
        assert result == stream.finish(), cut
        assert result.tokens == expected.tokens, cut


def test_taking_a_snapshot_changes_nothing_and_finished_streams_have_one():
    recognizer, samples = make(), sound(1.7)
    stream, undisturbed = recognizer.create_stream(), recognizer.create_stream()
    for packet in np.array_split(samples, 9):
        undisturbed.feed(16_000, packet)
        stream.feed(16_000, packet)
        assert stream.snapshot() == stream.snapshot()
    final = stream.finish()
    assert final == undisturbed.finish()
    restored = recognizer.restore(stream.snapshot())
    assert restored.is_finished and restored.result() == final
    with pytest.raises(ValueError, match="samples after finish"):
        restored.feed(16_000, samples)


def test_another_process_goes_on_identically(tmp_path):
    recognizer, samples = make(), sound(2.0, 22_050)
    stream = recognizer.create_stream()
    stream.feed(22_050, samples[:20_001])
    (tmp_path / "snapshot").write_bytes(stream.snapshot())
    np.save(tmp_path / "rest.npy", samples[20_001:])
    script = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import numpy as np, torch
torch.set_num_threads(1)
from talkative import LetterTokenizer, talkative_model
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.context import ChunkContext
recognizer = StreamingRecognizer(talkative_model(), LetterTokenizer(), ChunkContext(8, 4))
stream = recognizer.restore(open("snapshot", "rb").read())
stream.feed(22_050, np.load("rest.npy"))
print(json.dumps(stream.finish()))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    stream.feed(22_050, samples[20_001:])
    expected = stream.finish()
    assert len(expected.tokens) > 15
    assert json.loads(run.stdout) == json.loads(json.dumps(expected))


def test_segments_survive():
    recognizer = StreamingRecognizer(
        talkative_model(), LetterTokenizer(), ChunkContext(8, 4), endpointing=Endpointing.sherpa(rule3=0.5)
    )
    stream = recognizer.create_stream()
    stream.feed(16_000, sound(1.0))
    assert recognizer.is_endpoint(stream)
    recognizer.reset(stream)
    stream.feed(16_000, sound(0.4, seed=1))
    restored = recognizer.restore(stream.snapshot())
    assert (restored.num_segments, restored.segment_start) == (1, 24)
    assert restored.result() == stream.result()
    assert recognizer.is_endpoint(restored) == recognizer.is_endpoint(stream)


def taken() -> bytes:
    stream = make().create_stream()
    stream.feed(16_000, sound(1.1))
    return stream.snapshot()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def with_header(data: bytes, **changes: object) -> bytes:
    length = int.from_bytes(data[:8], "little")
    (key,), (header,) = zip(*json.loads(data[8 : 8 + length])["__metadata__"].items(), strict=True)
    return safetensors.torch.save(safetensors.torch.load(data), {key: json.dumps(json.loads(header) | changes)})


FOREIGN = {
    "empty": (lambda data: b"", "0 bytes are no snapshot"),
    "garbage": (lambda data: bytes(range(256)) * 40, "no snapshot"),
    "pickle": (lambda data: b"\x80\x04\x95" + bytes(100), "no snapshot"),
    "truncated": (lambda data: data[:-100], "truncated"),
    "a flipped bit of a tensor": (lambda data: flipped(data, len(data) - 50), "checksum"),
    "other safetensors": (lambda data: safetensors.torch.save({"a": torch.zeros(3)}), "no snapshot"),
    "a later version": (lambda data: with_header(data, version=3), "version 3 cannot be read"),
    "a changed body": (lambda data: with_header(data, stream="{}"), "checksum"),
    "no body": (lambda data: with_header(data, stream=""), "checksum"),
}


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_other_bytes_are_refused(change, message):
    data = taken()
    make().restore(data)
    with pytest.raises(ValueError, match=message):
        make().restore(change(data))


OTHERS = {
    "model": (lambda: make(seed=1), "another model"),
    "context": (lambda: make(left=None), "taken under .*left_context.*4.* set to .*null"),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS)
def test_another_recogniser_refuses(other, message):
    with pytest.raises(ValueError, match=message):
        other().restore(taken())


def test_every_flipped_byte_is_noticed():
    data = taken()
    recognizer = make()
    for position in np.random.default_rng(0).integers(0, len(data), 60):
        with pytest.raises(ValueError):
            recognizer.restore(flipped(data, int(position)))
