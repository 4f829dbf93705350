"""Loading, transcribing files and samples, opening streams."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from talkative import VOCAB_SIZE, LetterTokenizer, sound, talkative_model

import sumix_stream as sx
from sumix_stream.context import ChunkContext
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.streaming.recognizer import Recognizer, load
from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer(talkative_model(), LetterTokenizer())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    letters = " ".join(chr(ord("a") + n) for n in range(VOCAB_SIZE - 3))  # and blank, unknown, word start
    tokenizer = train_tokenizer([letters], directory / "letters.model", model_type="char")
    assert tokenizer.vocab_size == VOCAB_SIZE
    save_model(directory, talkative_model(), tokenizer)
    return directory


def test_load_gives_what_was_saved(checkpoint, recognizer):
    loaded, samples = sx.load(checkpoint), sound(2.0)
    assert not loaded.model.training
    assert loaded.encoder is loaded.model.encoder
    expected, actual = (each.transcribe((samples, 16_000)) for each in (recognizer, loaded))
    assert actual.tokens == expected.tokens != []
    assert actual.text == loaded.tokenizer.decode(actual.tokens)


def test_missing_and_truncated_checkpoints(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*nowhere"):
        load(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or truncated"):
        load(broken)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there(checkpoint, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used .*try cpu"):
        load(checkpoint, device)


def test_model_and_tokenizer_must_be_a_pair():
    class Other(LetterTokenizer):
        vocab_size = 30

    with pytest.raises(ValueError, match="the tokenizer has 30 tokens but the model 24"):
        Recognizer(talkative_model(), Other())


def test_transcribe_under_a_context_is_what_a_stream_gives(recognizer):
    samples = sound(3.1, 8_000)
    stream = recognizer.stream("320ms", left_context=2)
    for packet in np.array_split(samples, 17):
        stream.feed(8_000, packet)
    whole = recognizer.transcribe((samples, 8_000), "320ms", left_context=2)
    streamed = stream.finish()
    assert streamed[:3] == whole[:3]
    assert streamed.confidence == pytest.approx(whole.confidence, abs=1e-4)
    assert whole.tokens != recognizer.transcribe((samples, 8_000)).tokens, "the context made no difference"


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.wav", "FLOAT")])
def test_transcribe_a_file(recognizer, tmp_path, name, subtype):
    samples = (sound(2.0) * 32767).astype(np.int16)
    soundfile.write(tmp_path / name, samples / 32768, 16_000, subtype=subtype)
    expected = recognizer.transcribe((samples, 16_000))
    assert recognizer.transcribe(tmp_path / name).tokens == expected.tokens != []
    assert recognizer.transcribe(str(tmp_path / name)).tokens == expected.tokens


def test_stereo_is_averaged(recognizer, tmp_path):
    samples = sound(2.0)
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * samples, 0.25 * samples], axis=1), 16_000, subtype="FLOAT")
    expected = recognizer.transcribe((np.float32(0.375) * samples, 16_000))
    assert recognizer.transcribe(tmp_path / "a.wav").tokens == expected.tokens != []


@pytest.mark.parametrize("content", [None, b"", b"not audio at all", b"RIFF\x00\x00\x00\x00WAVE"])
def test_bad_files_are_named(recognizer, tmp_path, content):
    if content is not None:
        (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.wav"):
        recognizer.transcribe(tmp_path / "bad.wav")


def test_bad_samples(recognizer):
    with pytest.raises(ValueError, match="finite"):
        recognizer.transcribe((np.full(100, np.nan, np.float32), 16_000))
    with pytest.raises(ValueError, match="one-dimensional"):
        recognizer.transcribe((np.zeros((2, 100), np.float32), 16_000))


def test_no_samples_are_an_empty_text(recognizer):
    assert recognizer.transcribe((np.zeros(0, np.float32), 16_000)) == Hypothesis("", [], [], [])


@pytest.mark.parametrize("chunk", ["full", "dynamic", "650ms", "0ms", 0, "soon"])
def test_chunks_that_cannot_stream(recognizer, chunk):
    with pytest.raises(ValueError, match=r"chunk|stream|duration|frames"):
        recognizer.stream(chunk)


def test_streams_in_one_batch(recognizer):
    utterances = [sound(seconds, seed=n) for n, seconds in enumerate((1.3, 2.0, 0.4))]
    streams = [recognizer.stream(ChunkContext(8, 2)) for _ in utterances]
    for stream, samples in zip(streams, utterances, strict=True):
        stream.accept(16_000, samples)
        stream.input_finished()
    counts = []
    while count := recognizer.decode_streams(streams):
        counts.append(count)
    assert counts == [3, 3, 2, 2, 2, 1, 1]
    for stream, samples in zip(streams, utterances, strict=True):
        assert stream.result().tokens == recognizer.transcribe((samples, 16_000), ChunkContext(8, 2)).tokens


def test_words(recognizer):
    tokens = [2, 1, 3, 5, 9, 10]  # b ▁a c ▁e ▁i j: the first token begins a word whatever it is
    hypothesis = Hypothesis("", tokens, [0.0, 0.4, 0.48, 1.2, 1.6, 1.64], [1.0] * 6)
    expected = [("b", 0.0, 0.04), ("ac", 0.4, 0.52), ("e", 1.2, 1.24), ("ij", 1.6, 1.68)]
    assert [(word.text, word.start, pytest.approx(word.end)) for word in recognizer.words(hypothesis)] == expected
    assert recognizer.words(Hypothesis("", [], [], [])) == []


def test_no_gradient_is_kept(recognizer):
    recognizer.stream().feed(16_000, sound(1.0))
    assert all(parameter.grad is None for parameter in recognizer.model.parameters())
    assert torch.is_grad_enabled()
