"""A bundle in our recogniser and our server: the tokens of the checkpoint it came from."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import soundfile
import torch
from serving import RATE, assert_is, run, serving, uri
from talkative import LetterTokenizer, sound, talkative_model

import sumix_stream as sx
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.bundle import BundleError, is_bundle
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.client import transcribe
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.stream import StreamingRecognizer
from sumix_stream.tokenizer import TokenizerError

FINITE, UNLIMITED = ChunkContext(8, 2), ChunkContext(4, None)
BUNDLES = [("sherpa-onnx", FINITE), ("sherpa-onnx", UNLIMITED), ("onnx", ChunkContext(8, 0))]
PACKETS = [1, 7, 160, 1000, 4801, 333]  # samples, in turn
BEAM = SearchOptions(
    method="modified_beam", beam=3, nbest=2, hotwords=Hotwords((((3, 5), 2.0), ((9,), 1.0)), LetterTokenizer.vocab_size)
)


def live(recognizer: StreamingRecognizer, utterances: Sequence[tuple[int, np.ndarray]]) -> list[list[Hypothesis]]:
    """Segments of each utterance (rate, samples); stream i begins i turns after the first, packets are odd."""
    streams, found = [recognizer.create_stream() for _ in utterances], [[] for _ in utterances]
    sent, turn, batches = [0] * len(streams), 0, set()

    def decode() -> None:
        while moved := recognizer.decode(streams):
            batches.add(len(moved))
            for stream, _ in moved:
                if recognizer.is_endpoint(stream):
                    found[streams.index(stream)].append(stream.result())
                    recognizer.reset(stream)

    while not all(stream.is_finished for stream in streams):
        for i, (rate, samples) in enumerate(utterances):
            if i > turn or streams[i].features.finished:
                continue
            size = PACKETS[(turn + i) % len(PACKETS)]
            recognizer.accept_waveform(streams[i], rate, samples[sent[i] : sent[i] + size])
            sent[i] += size
            if sent[i] >= len(samples):
                recognizer.input_finished(streams[i])
        if turn % 5 == 0:
            decode()
        turn += 1
    assert len(batches) > 2, "streams shared no batches"
    return [[*segments, stream.result()] for segments, stream in zip(found, streams, strict=True)]


def utterances(sounds: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    yield from ((RATE, samples) for samples in sounds)
    yield 8_000, sound(1.7, 8_000, seed=11)


def same(actual: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hypothesis[:3] for hypothesis in actual] == [hypothesis[:3] for hypothesis in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


@pytest.mark.parametrize(("form", "context"), BUNDLES, ids=str)
@pytest.mark.parametrize("options", [SearchOptions(), BEAM], ids=["greedy", "beam"])
def test_streams_of_any_age_give_the_checkpoint_s_tokens(form, context, options, bundle, sounds):
    exported, audio = sx.load(bundle(form, "fast", context)), list(utterances(sounds))
    rules = Endpointing.sherpa(rule3=1.0, reset_predictor=True)
    expected = StreamingRecognizer(
        talkative_model(),
        LetterTokenizer(),
        context,
        search=options,
        endpointing=rules,
    )
    streaming = exported.streaming(search=options, endpointing=rules)
    assert streaming.context == context
    for actual, wanted in zip(live(streaming, audio), live(expected, audio), strict=True):
        same(actual, wanted)
        assert len(audio[0][1]) < RATE or any(hypothesis.tokens for hypothesis in wanted)


@pytest.mark.parametrize(("form", "context"), BUNDLES[:1] + BUNDLES[2:], ids=str)
def test_whole_utterances_are_what_streams_give(form, context, bundle, tmp_path):
    exported, samples = sx.load(bundle(form, "fast", context)), sound(2.3)
    checkpoint = Recognizer(talkative_model(), LetterTokenizer())
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    for options in (SearchOptions(), BEAM):
        expected = checkpoint.transcribe((samples, RATE), context, search=options)
        stream = exported.stream(search=options)
        stream.feed(RATE, samples)
        same([exported.transcribe(tmp_path / "a.wav", search=options), stream.finish()], [expected] * 2)
    assert exported.transcribe((samples[:10], RATE)) == Hypothesis("", [], [], [])


def test_a_snapshot_goes_on_identically_and_only_with_the_same_files(bundle):
    folder, samples = bundle("sherpa-onnx", "fast", FINITE), sound(2.5)
    streaming = sx.load(folder).streaming()
    undisturbed = streaming.create_stream()
    undisturbed.feed(RATE, samples)
    expected = undisturbed.finish()
    stream = streaming.create_stream()
    stream.feed(RATE, samples[:13_001])
    data = stream.snapshot()
    for recognizer in (streaming, sx.load(folder).streaming()):
        restored = recognizer.restore(data)
        restored.feed(RATE, samples[13_001:])
        assert restored.finish() == expected
        assert recognizer.restore(restored.snapshot()).result() == expected
    other = sx.load(bundle("onnx", "fast", ChunkContext(8, 0))).streaming()
    with pytest.raises(ValueError, match="another model's"):
        other.restore(data)


def test_a_failing_search_moves_nobody(bundle, monkeypatch):
    streaming, samples = sx.load(bundle("sherpa-onnx", "fast", FINITE)).streaming(), sound(1.5)
    stream = streaming.create_stream()
    streaming.accept_waveform(stream, RATE, samples)
    streaming.decode([stream])
    before = streaming.runtime.save(stream.encoder)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(streaming.search, "advance", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            streaming.decode([stream])
    after = streaming.runtime.save(stream.encoder)
    assert all(np.array_equal(part, after[name]) for name, part in before.items())
    undisturbed = streaming.create_stream()
    undisturbed.feed(RATE, samples)
    assert stream.finish() == undisturbed.finish()


def test_the_server_serves_a_bundle(bundle, sounds):
    rules = Endpointing.sherpa(rule3=1.5)
    recognizer = sx.load(bundle("sherpa-onnx", "fast", FINITE)).streaming(endpointing=rules)
    checkpoint = StreamingRecognizer(talkative_model(), LetterTokenizer(), FINITE, endpointing=rules)
    pcm = [(samples * 32767).astype(np.int16) for samples in sounds[:3]]

    def alone(samples: np.ndarray) -> list[Hypothesis]:
        stream, found = checkpoint.create_stream(), []
        stream.accept(RATE, samples)
        stream.input_finished()
        while checkpoint.decode([stream]):
            if checkpoint.is_endpoint(stream) and not stream.is_finished:
                found += [stream.result()] if stream.num_tokens else []
                checkpoint.reset(stream)
        return [*found, stream.result()]

    async def clients() -> None:
        async with serving(recognizer) as (_, port):
            for samples in pcm:
                assert_is(await transcribe(uri(port), samples, RATE), alone(samples))

    run(clients)


@pytest.mark.parametrize("chosen", [{"average": 5}, {"precision": "bf16"}, {"device": "meta"}])
def test_what_a_bundle_has_fixed_is_refused(chosen, bundle):
    folder = bundle("sherpa-onnx", "fast", FINITE)
    with pytest.raises(ValueError, match=f"{folder.name} is a bundle, .*({next(iter(chosen))} out|CPU)"):
        sx.load(folder, **chosen)


def test_the_context_is_the_bundle_s_and_another_is_refused(bundle):
    exported = sx.load(bundle("sherpa-onnx", "fast", FINITE))
    for given in ((), ("320ms",), (8, 2), ("default", 2), (FINITE,)):
        assert exported.context(*given) == exported.whole_context(*given) == FINITE
    for given in (("640ms",), (8, 4), (8, None), ("full",), (ChunkContext(8, 3),)):
        with pytest.raises(ValueError, match=r"exported for chunks of 8 frames, left 2 chunks, got .*leave chunk"):
            exported.context(*given)
    with pytest.raises(ValueError, match="exported for chunks of 8 frames"):
        StreamingRecognizer(exported.source, exported.tokenizer, ChunkContext(16, 2))
    with pytest.raises(ValueError, match="has no model of PyTorch"):
        _ = exported.encoder


def test_pieces_stand_in_for_a_tokenizer(bundle):
    tokenizer = sx.load(bundle("sherpa-onnx", "fast", FINITE)).tokenizer
    letters = LetterTokenizer()
    assert tokenizer.vocab_size == letters.vocab_size
    tokens = list(range(1, letters.vocab_size))
    assert tokenizer.decode(tokens) == letters.decode(tokens)
    assert [tokenizer.piece(token) for token in tokens] == [letters.piece(token) for token in tokens]
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.model"):
        Hotwords.compile(["A"], tokenizer)


def test_faults_of_a_bundle_are_named(bundle, tmp_path):
    source = bundle("sherpa-onnx", "fast", FINITE)
    for broken, content, message in (
        ("decoder.onnx", None, r"decoder\.onnx is missing: copy or export"),
        ("joiner.onnx", b"not a graph", r"joiner\.onnx is damaged"),
        ("tokens.txt", b"a 0\nb x\n", r"tokens\.txt is missing or damaged"),
    ):
        folder = tmp_path / broken
        folder.mkdir()
        for file in source.iterdir():
            if file.name != broken:
                (folder / file.name).write_bytes(file.read_bytes())
            elif content is not None:
                (folder / file.name).write_bytes(content)
        assert is_bundle(folder)
        with pytest.raises(BundleError, match=message):
            sx.load(folder)
    with pytest.raises(ValueError, match="device|runs on the CPU"):
        sx.load(source, "cuda" if torch.cuda.is_available() else "cuda:99")
    (tmp_path / "encoder.pt2").write_bytes(b"")
    with pytest.raises(BundleError, match="PyTorch without this package"):
        sx.load(tmp_path)
