"""Error rates of whole and streamed decoding agree; latencies on the virtual clock are those made by hand."""

import json
from itertools import count

import pytest
from talkative import LetterTokenizer, sound, talkative_model
from textbook import transcribe_masked

from sumix_stream.context import ChunkContext
from sumix_stream.data.manifests import Utterance
from sumix_stream.evaluate import error_rates as evaluate
from sumix_stream.evaluate.error_rates import Latency, masked_wer, streaming_wer
from sumix_stream.streaming.stream import StreamingRecognizer

CONTEXT = ChunkContext(8, 2)


def utterances(*seconds: float) -> list[Utterance]:
    """Transcribed by the model itself, but for a word that is added to each."""
    made = []
    for n, duration in enumerate(seconds):
        samples = sound(duration, seed=n)
        text = transcribe_masked(talkative_model(), LetterTokenizer(), [samples], CONTEXT)[0].text
        made.append(Utterance(f"u{n}", samples, f"{text} extra".strip(), duration))
    return made


@pytest.fixture
def ticking(monkeypatch):
    """Every measured piece of work takes 10 ms."""
    ticks = count()
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: 0.01 * next(ticks))


@pytest.mark.parametrize("num_streams", [1, 3, 16])
@pytest.mark.parametrize("realtime", [True, False])
def test_streaming_equals_masked(num_streams, realtime):
    given = utterances(1.1, 0.3, 2.4, 0.02, 1.7)
    model, tokenizer = talkative_model(), LetterTokenizer()
    seen = {}
    streamed = streaming_wer(
        model,
        tokenizer,
        iter(given),
        CONTEXT,
        num_streams=num_streams,
        realtime=realtime,
        on_utterance=lambda utterance, hypothesis: seen.update({utterance.id: hypothesis.text}),
    )
    masked = masked_wer(model, tokenizer, iter(given), CONTEXT, batch_size=2)
    assert streamed.word_errors == masked.word_errors
    assert {u.id: u.hypothesis for u in masked.word_errors.utterances} == seen
    assert streamed.word_errors.deletions == 5 == streamed.word_errors.errors
    assert streamed.wer == masked.wer > 0
    assert streamed.audio_seconds == pytest.approx(masked.audio_seconds) == pytest.approx(5.52)
    assert (streamed.final is not None) == realtime


def test_chunk_as_on_the_command_line():
    model, tokenizer = talkative_model(), LetterTokenizer()
    found = streaming_wer(model, tokenizer, utterances(0.5), "320ms", 2)
    assert found.context == CONTEXT
    assert masked_wer(model, tokenizer, utterances(0.5)).context == ChunkContext.full()
    with pytest.raises(ValueError, match="streaming needs one chunk size"):
        streaming_wer(model, tokenizer, utterances(0.5), "full")


@pytest.mark.parametrize("name", ["num_streams", "push_seconds"])
def test_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be .*got 0"):
        streaming_wer(talkative_model(), LetterTokenizer(), [], CONTEXT, **{name: 0})


def test_latency_of_one_stream(ticking):
    """2 s in packets of 100 ms, 10 ms of work for each packet."""
    found = streaming_wer(talkative_model(), LetterTokenizer(), utterances(2.0), CONTEXT, num_streams=1)
    # The first chunk needs 8 x 40 ms and 7.5 ms of look-ahead: it is there with the packet that ends at 400 ms.
    assert found.first_token.median == pytest.approx(0.41)
    # The last packet completes the sixth chunk (at 1.9275 s), done first, and ends the seventh, done next.
    assert found.final.median == pytest.approx(0.02)
    assert found.compute_seconds == pytest.approx(21 * 0.01)
    assert found.rtf == pytest.approx(0.105)
    assert found.algorithmic_latency == pytest.approx(0.3275)
    # A token waits for the rest of its chunk (0 to 7 frames), its packet and the work.
    assert 0.01 < found.token_delay.median < 0.41
    assert found.state_nbytes > 0


def test_a_slow_machine_falls_behind(monkeypatch):
    ticks = count()
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: 1.0 * next(ticks))
    found = streaming_wer(talkative_model(), LetterTokenizer(), utterances(2.0), CONTEXT, num_streams=1)
    # First packet at 0.1 s, done at 1.1 s; then all that has arrived meanwhile, a chunk a second.
    assert found.first_token.median == pytest.approx(2.1)
    assert found.final.median > 1.0
    assert found.rtf > 1


def test_many_streams_share_the_work(ticking):
    """Sixteen streams of equal length take no more steps than one."""
    given = utterances(1.28) * 16
    found = streaming_wer(talkative_model(), LetterTokenizer(), given, CONTEXT, num_streams=16)
    alone = streaming_wer(talkative_model(), LetterTokenizer(), given[:1], CONTEXT, num_streams=16)
    assert found.compute_seconds == pytest.approx(alone.compute_seconds)
    assert found.first_token == pytest.approx(alone.first_token)
    assert found.audio_seconds == pytest.approx(16 * 1.28)


def test_the_first_use_is_nobody_s_latency(monkeypatch):
    """What is compiled or loaded then takes seconds, once."""
    clock, decode, first = [0.0], StreamingRecognizer.decode, [100.0]

    def slow_at_first(self, streams):
        clock[0] += first.pop() if first else 0.0
        return decode(self, streams)

    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(StreamingRecognizer, "decode", slow_at_first)
    found = streaming_wer(talkative_model(), LetterTokenizer(), utterances(2.0), CONTEXT, num_streams=1)
    assert clock == [100.0] and found.compute_seconds == 0


def test_mode_of_the_model_is_put_back():
    model = talkative_model(seed=2)
    for training in (True, False):
        model.train(training)
        for decode in (streaming_wer, masked_wer):
            decode(model, LetterTokenizer(), utterances(0.3), CONTEXT)
            assert model.training == training
    model.train()
    with pytest.raises(ZeroDivisionError):
        masked_wer(model, LetterTokenizer(), (1 // 0 for _ in "x"), CONTEXT)
    assert model.training
    model.eval()


def test_no_utterances():
    found = streaming_wer(talkative_model(), LetterTokenizer(), [], CONTEXT)
    assert (found.wer, found.rtf, found.first_token) == (0.0, 0.0, None)
    assert "0 utterances" in found.summary()


def test_summary_and_dict_tell_all():
    found = streaming_wer(talkative_model(), LetterTokenizer(), utterances(0.9, 0.4), CONTEXT)
    text = found.summary()
    for part in ("WER", "S 0  D 2  I 0", "RTF", "first token", "final", "327.5 ms", "bytes", "8 frames, left 2 chunks"):
        assert part in text
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["chunk_size"] == 8
    assert plain["final"]["median"] == found.final.median


def test_latency_percentiles():
    assert Latency.of([]) is None
    assert Latency.of([0.3]) == (0.3, 0.3)
    assert Latency.of([n / 10 for n in range(10, 0, -1)]) == pytest.approx((0.55, 0.9))
