"""A stream put into bytes goes on as if nothing had happened, in another process too; other bytes are refused."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import ROOT
from talkative import VOCAB_SIZE, LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.streaming import snapshot
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


def rewritten(data: bytes, change: Callable[[dict, dict], None]) -> bytes:
    """With other values and arrays, and all checksums right: what a snapshot's holder can make of it."""
    length = int.from_bytes(data[:8], "little")
    (key,), (header,) = zip(*json.loads(data[8 : 8 + length])["__metadata__"].items(), strict=True)
    header, arrays = json.loads(header), {name: part.copy() for name, part in safetensors.numpy.load(data).items()}
    body = json.loads(header["stream"])
    change(body, arrays)
    header["stream"] = json.dumps(body)
    header["sha256"] = snapshot._checksum(arrays, header["stream"])
    return safetensors.numpy.save(arrays, {key: json.dumps(header)})


def beam() -> StreamingRecognizer:
    words = Hotwords((((3, 4), 1.0),), VOCAB_SIZE)
    options = SearchOptions(method="modified_beam", hotwords=words)
    return StreamingRecognizer(talkative_model("fast", 0), LetterTokenizer(), ChunkContext(8, 4), search=options)


KINDS = {"greedy": make, "beam": beam, "attention": lambda: make("attention", None)}
LARGE = 10**12


def setting(*path: str, value: object) -> Callable[[dict, dict], None]:
    def change(body: dict, arrays: dict) -> None:
        for name in path[:-1]:
            body = body[name]
        assert path[-1] in body
        body[path[-1]] = value

    return change


def filling(name: str, value: float) -> Callable[[dict, dict], None]:
    def change(body: dict, arrays: dict) -> None:
        (found,) = [key for key in arrays if key.endswith(name)][:1]
        assert arrays[found].size
        arrays[found].reshape(-1)[-1] = value

    return change


def longer(name: str) -> Callable[[dict, dict], None]:
    def change(body: dict, arrays: dict) -> None:
        arrays[name] = np.concatenate([arrays[name], arrays[name][-1:]])

    return change


HOSTILE = {
    # counters of the filter bank and the resampler: minutes, or 40 GB, at the end of the stream
    "samples": ("greedy", setting("features", "fbank", "num_samples", value=LARGE)),
    "frames": ("greedy", setting("features", "fbank", "num_frames", value=-LARGE)),
    "both": ("greedy", lambda body, _: body["features"]["fbank"].update(num_samples=LARGE, num_frames=LARGE // 160)),
    "samples that are no number": ("greedy", setting("features", "fbank", "num_samples", value=1e300)),
    "samples beyond any integer": ("greedy", setting("features", "fbank", "num_samples", value=10**400)),
    "finished": ("greedy", setting("features", "finished", value=True)),
    "finished as text": ("greedy", setting("features", "finished", value="no")),
    "resampled in": ("greedy", setting("features", "resampler", "num_in", value=LARGE)),
    "resampled out": ("greedy", setting("features", "resampler", "num_out", value=-LARGE)),
    "another rate": ("greedy", setting("features", "sample_rate", value=44_100)),
    "a rate of a billion": ("greedy", setting("features", "sample_rate", value=10**9)),
    "held samples": ("greedy", longer("features/fbank")),
    "samples of infinity": ("greedy", filling("features/fbank", np.inf)),
    "features of NaN": ("greedy", filling("features/frames", np.nan)),
    "more features": ("greedy", longer("features/frames")),
    "encoder frames": ("greedy", setting("num_encoded", value=LARGE)),
    "a segment from nowhere": ("greedy", setting("segment_start", value=LARGE)),
    "segments below 0": ("greedy", setting("num_segments", value=-1)),
    "tokens out of the vocabulary": ("greedy", lambda body, _: body["search"]["tokens"].__setitem__(0, LARGE)),
    "tokens below 0": ("greedy", lambda body, _: body["search"]["tokens"].__setitem__(0, -1)),
    "frames of tokens": ("greedy", lambda body, _: body["search"]["frames"].__setitem__(0, LARGE)),
    "fewer confidences": ("greedy", lambda body, _: body["search"]["confidence"].pop()),
    "confidence": ("greedy", lambda body, _: body["search"]["confidence"].__setitem__(0, float("nan"))),
    "carried tokens": ("greedy", setting("carried", value=[[LARGE], [0], [0.5]])),
    "a body that is a list": ("greedy", setting("features", value=[])),
    "the encoder's sums": ("greedy", filling("sums", np.nan)),
    "the encoder's counts": ("greedy", filling("counts", -1.0)),
    "the predictor": ("greedy", filling("projection", np.inf)),
    "valid frames of attention": ("attention", filling("num_valid", LARGE)),
    "last": ("beam", filling("beams.last", LARGE)),  # ended the process
    "last below 0": ("beam", filling("beams.last", -LARGE)),
    "scores": ("beam", filling("beams.scores", np.nan)),
    "the best": ("beam", filling("best", np.inf)),
    "searched frames": ("beam", filling("num_frames", LARGE)),
    "history's tokens": ("beam", filling("history.tokens", 2**31 - 1)),
    "history's frames": ("beam", filling("history.frames", -5)),
    "history's lengths": ("beam", filling("history.num_tokens", LARGE)),
    "history's probabilities": ("beam", filling("history.log_probs", np.nan)),
    "states of hotwords": ("beam", filling("fused.hotwords", LARGE)),
    "decoded": ("beam", setting("search", "decoded", value="yes")),
    "hotwords": ("beam", setting("search", "hotwords", value=[[[LARGE], 1.0]])),
    "hotwords without a score": ("beam", setting("search", "hotwords", value=[[[3], float("nan")]])),
    "hotwords without end": ("beam", setting("search", "hotwords", value=[[[3] * 200_000, 1.0]])),
}


@pytest.fixture(scope="module")
def taken_of_each() -> dict[str, tuple[StreamingRecognizer, bytes]]:
    found = {}
    for name, of in KINDS.items():
        recognizer = of()
        stream = recognizer.create_stream()
        stream.feed(8_000, sound(1.1, 8_000))
        assert stream.num_tokens
        found[name] = recognizer, stream.snapshot()
    return found


@pytest.mark.parametrize(("kind", "change"), HOSTILE.values(), ids=HOSTILE)
def test_no_value_is_believed(kind, change, taken_of_each):
    """Whoever knows the format can make the checksum right: no stream has such values, and none is made of them."""
    recognizer, data = taken_of_each[kind]
    recognizer.restore(rewritten(data, lambda body, arrays: None))
    with pytest.raises(ValueError):
        recognizer.restore(rewritten(data, change))


def test_a_key_tells_whose_it_is():
    recognizer, key = make(), b"sixteen bytes at least"
    stream, undisturbed = recognizer.create_stream(), recognizer.create_stream()
    for one in (stream, undisturbed):
        one.feed(16_000, sound(1.1))
    signed, unsigned = stream.snapshot(key), stream.snapshot()
    other = make().restore(signed, key)  # another server's
    for one in (other, undisturbed):
        one.feed(16_000, sound(0.7, seed=2))
    assert other.finish() == undisturbed.finish()
    recognizer.restore(signed)
    for data, wrong in ((unsigned, key), (signed, b"another key of its length"), (with_header(signed, hmac="0"), key)):
        with pytest.raises(ValueError, match="not signed with this key"):
            recognizer.restore(data, wrong)
    changed = rewritten(signed, setting("num_segments", value=7))
    assert recognizer.restore(changed).num_segments == 7, "possible, and not signed"
    with pytest.raises(ValueError, match="not signed with this key"):
        recognizer.restore(changed, key)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        stream.snapshot(b"short")
