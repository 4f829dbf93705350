"""Labels of whole utterances and of streams: learning, exactness, events, faults, ONNX."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from talkative import SMALL, sound
from train.fakes import FakeBatch, fake_recipe

import sumix_stream as sx
from sumix_stream.cli import spot
from sumix_stream.config import ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data.manifests import Utterance
from sumix_stream.evaluate.accuracy import LabelErrors, label_errors, wilson
from sumix_stream.export.classifier import export_classifier, open_classifier
from sumix_stream.features import whole_fbank
from sumix_stream.labels import LabelError, Labels
from sumix_stream.report.report import write_report
from sumix_stream.runtime.torch_classifier import TorchSteps, classify
from sumix_stream.streaming.spotting import Scores, SpotOptions, Spotter, detections
from sumix_stream.tasks.base import build_for, load_outputs, make_task
from sumix_stream.tasks.checkpoint import CheckpointError, save_model, write_checkpoint
from sumix_stream.tasks.classification.task import load_classifier
from sumix_stream.train.loop import Trainer

CONFIG = ModelConfig(encoder=replace(SMALL, dropout=0.0))
WORDS = Labels({"label": ["_silence_", "left", "no", "right", "yes"]})
ORDERS = Labels({"intent": ["order", "cancel"], "size": ["none", "large", "small"]})
RATE = 16_000


def untrained(labels=WORDS, mixer="summary", **encoder):
    """Its head is ten times as large, so that what differs in the frames is seen in the scores."""
    config = replace(CONFIG, encoder=replace(CONFIG.encoder, mixer=mixer, **encoder))
    model = build_for(make_task("classification"), config, labels, seed=0)
    feats = torch.from_numpy(whole_fbank(sound(8.0, seed=99)))
    model.set_normalisation(feats.mean(0), feats.std(0))
    with torch.no_grad():
        model.head.weight.mul_(10)
    return model


class TenUtterances:
    """The same ten every epoch, each a sound of its labels' own."""

    def __init__(self) -> None:
        self.texts = [f"intent={intent}; size={size}" for intent in ("order", "cancel") for size in ("large", "small")]
        self.texts = (self.texts + ["intent=order", "intent=cancel"]) * 2
        self.texts = self.texts[:10]
        generator = torch.Generator().manual_seed(0)
        targets = torch.tensor([ORDERS.encode(text) for text in self.texts])
        means = torch.randn(2, 80, generator=generator), torch.randn(3, 80, generator=generator)
        feats = (means[0][targets[:, 0]] + means[1][targets[:, 1]])[:, None].repeat(1, 48, 1)
        feats += 0.3 * torch.randn(10, 48, 80, generator=generator)
        lengths = torch.full((10,), 48)
        names = [f"u{i}" for i in range(10)]
        self.batch = FakeBatch(0, feats, lengths, targets, torch.full((10,), 2), names, 4.8)

    def fingerprint(self, epoch):
        return "ten"

    def epoch_batches(self, epoch, skip=0):
        yield from [self.batch][skip:]


def test_it_learns_ten_utterances_and_is_saved_and_loaded(tmp_path):
    recipe = fake_recipe(tmp_path, max_steps=60, valid_interval=60, log_interval=30, chunk_size="dynamic")
    recipe = replace(recipe, task="classification", model=CONFIG)
    model = build_for(make_task("classification"), CONFIG, ORDERS, seed=0)
    ten = TenUtterances()

    def validate(model):
        logits, _ = model.logits(ten.batch.feats, ten.batch.feat_lengths, ChunkContext.full())
        found = torch.stack([part.argmax(1) for part in logits.split(model.sizes, 1)], 1)
        pairs = {name: Counter() for name in ORDERS.sets}
        for wanted, numbers in zip(ten.batch.tokens.tolist(), found.tolist(), strict=True):
            for (name, labels), one, other in zip(ORDERS.sets.items(), wanted, numbers, strict=True):
                pairs[name][labels[one], labels[other]] += 1
        return LabelErrors(pairs, int((found == ten.batch.tokens).all(1).sum()), 10)

    result = Trainer(recipe, model, ORDERS, ten, validate=validate).fit()
    assert result.metrics == {"label_error": 0.0, "label_error/intent": 0.0, "label_error/size": 0.0}
    assert "label error" in write_report(tmp_path).read_text()
    loaded, labels = load_classifier(tmp_path)
    assert labels.sets == ORDERS.sets and loaded.sizes == (2, 3)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="is a model of the task classification"):
        sx.load(tmp_path)
    again = Trainer(
        replace(recipe, train=replace(recipe.train, max_steps=61)), loaded, Labels({"label": ["a", "b"]}), ten
    )
    with pytest.raises(CheckpointError, match="made anew .*sets label, not intent, size"):
        again.fit()


@pytest.mark.parametrize("mixer", ["summary", "attention"])
@pytest.mark.parametrize("context", [ChunkContext(4, 0), ChunkContext(8, 2)], ids=str)
@pytest.mark.parametrize("window", [0.1, 0.9])
def test_scores_of_a_stream_are_those_of_the_whole(mixer, context, window):
    model, samples = untrained(mixer=mixer), sound(3.3)
    steps = TorchSteps(model, context, window)
    feats = torch.from_numpy(whole_fbank(samples))[None]
    with torch.inference_mode():
        expected = model.chunk_probabilities(feats, torch.tensor([feats.shape[1]]), context, steps.num_chunks)[0]
    stream, found = Spotter(steps, WORDS, SpotOptions()).stream(), []
    for start in range(0, len(samples), 777):
        found += stream.scores(RATE, samples[start : start + 777])
    found += stream.last_scores()
    np.testing.assert_allclose([scores.probabilities for scores in found], expected.numpy(), atol=1e-5)
    assert expected.std(0).max() > 1e-3, "scores that never change prove little"
    ends = [round(0.04 * min((n + 1) * context.chunk_size, 83), 6) for n in range(len(found))]
    assert [scores.time for scores in found] == ends


def test_frames_of_80_ms():
    model, feats = untrained(subsampling=8), whole_fbank(sound(1.6))
    found = classify(model, WORDS, feats, ChunkContext(None, None))
    assert found["label"].time == pytest.approx(0.08 * -(-len(feats) // 8))


def test_a_window_forgets():
    """What was said before the window changes nothing; within it, it does. No left context: the encoder forgets too."""
    model, context = untrained(), ChunkContext(4, 0)
    steps, end = TorchSteps(model, context, 0.32), sound(1.28, seed=5)

    def last(before):
        stream = Spotter(steps, WORDS, SpotOptions()).stream()
        stream.scores(RATE, np.concatenate([before, end]))
        return stream.last_scores()[-1].probabilities

    first, second = (last(sound(1.28, seed=seed)) for seed in (1, 2))
    # The convolutions look back over their kernels, not over the 0.96 s between.
    np.testing.assert_allclose(first, second, atol=1e-6)


class Given:
    """Scores as they are given: a chunk a frame of 40 ms."""

    def __init__(self, rows):
        from sumix_stream.timebase import Timebase

        self.rows, self.timebase, self.window = rows, Timebase(), 4

    def begin(self):
        return 0

    def step(self, feats, state, final):
        return np.array(self.rows[state]), 1, state + 1


def test_events_have_a_threshold_and_a_refractory_time():
    labels = Labels({"label": ["_silence_", "yes", "no"]})
    rows = [[0.9, 0.1, 0.0], [0.1, 0.7, 0.2], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6], [0.0, 0.9, 0.1], [1.0, 0.0, 0.0]]
    samples = np.zeros(len(rows) * 640, np.float32)

    def events(**options):
        stream = Spotter(Given(rows), labels, SpotOptions(**options)).stream()
        return [(event.label, event.time) for event in stream.feed(RATE, samples) + stream.finish()]

    assert events(threshold=0.6, refractory=0.12) == [("yes", 0.08), ("no", 0.16), ("yes", 0.2)]
    assert events(threshold=0.6, refractory=0.13) == [("yes", 0.08), ("no", 0.16)]
    assert events(threshold=0.75, refractory=0.0) == [("yes", 0.12), ("yes", 0.2)]
    assert events(threshold=0.6, words=("no",)) == [("no", 0.16)]
    track = [Scores(0.04 * (n + 1), np.array(row)) for n, row in enumerate(rows)]
    assert detections([track, track], 1, 0.6, 0.12) == 4 and detections([track], 1, 0.95, 0.0) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 0.0}, "--threshold must be above 0 and at most 1"),
        ({"threshold": 1.2}, "--threshold must be above 0 and at most 1"),
        ({"threshold": float("nan")}, "--threshold must be above 0"),
        ({"refractory": -1.0}, "--refractory must be 0 seconds or more"),
        ({"window": 0.0}, "--window must be above 0"),
        ({"words": ("yess",)}, "--words: 'yess' .*did you mean 'yes'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Spotter(Given([]), WORDS, SpotOptions(**options))


def test_keywords_are_of_one_set():
    with pytest.raises(LabelError, match="intent, size: keywords are of one set"):
        Spotter(Given([]), ORDERS, SpotOptions())


def test_labels_are_read_written_and_compared(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_bytes(ORDERS.to_bytes())
    labels = load_outputs(make_task("classification"), path)
    assert labels.sets == ORDERS.sets and labels.vocab_size == 5 and labels.sizes == (2, 3)
    assert Labels.from_bytes(WORDS.to_bytes()).sets == WORDS.sets  # yes and no stay words
    for text in ("intent=order; size=small", "intent=cancel", "size=large; intent=order"):
        assert labels.text(dict(part.split("=") for part in text.split("; "))) == text
        assert labels.encode(labels.decode(labels.encode(text))) == labels.encode(text)
    assert labels.encode("intent=cancel") == [1, 0] and WORDS.encode("yes") == [4]
    assert labels.difference(Labels(ORDERS.sets)) is None
    assert "labels of size" in labels.difference(Labels({**ORDERS.sets, "size": ["none", "small", "large"]}))
    rows = [{"a": "x", "b": "y"}, {"a": "z"}]
    assert Labels.of(rows + [{"a": "x", "b": "w"}]).sets == {"a": ("x", "z"), "b": ("none", "w", "y")}


@pytest.mark.parametrize(
    "text, message",
    [
        ("size: [a, b]\nsize2", "not a YAML file of labels"),
        ("- a\n- b\n", "not lists of labels by name"),
        ("label: [yes, no]", "True in label is no text: put it in quotes"),
        ("label: [a]", "label has 1 label"),
        ("label: [a, b, a]", "label has 'a' twice"),
        ("label: ['a=b', c]", "'a=b' in label"),
        ("{}", "no sets of labels"),
    ],
)
def test_faults_of_a_label_file_are_named(text, message, tmp_path):
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(LabelError, match=f"labels.yaml: .*{message}"):
        Labels.load(tmp_path / "labels.yaml")


def test_no_label_file(tmp_path):
    with pytest.raises(LabelError, match="labels.yaml: no such label file"):
        Labels.load(tmp_path / "labels.yaml")


def test_accuracy_counts_pairs_and_has_intervals():
    model, utterances = untrained(ORDERS), []
    for n in range(4):
        samples = sound(0.7, seed=n)
        found = classify(model, ORDERS, whole_fbank(samples), ChunkContext.full())
        right = {name: event.label for name, event in found.items()}
        other = {"order": "cancel", "cancel": "order"}[right["intent"]]
        wanted = right | ({"intent": other} if n == 0 else {})
        utterances.append(Utterance(str(n), samples, ORDERS.text(wanted), 0.7))
    utterances.append(Utterance("unknown", sound(0.5), "intent=nothing", 0.5))
    result = label_errors(model, ORDERS, utterances, ChunkContext.full())
    assert result.total == 4 and result.metrics == {
        "label_error": 0.25,
        "label_error/intent": 0.25,
        "label_error/size": 0.0,
    }
    assert "accuracy 75.00% [30.06%, 95.44%] (3 of 4)" in result.summary()
    assert result.table("intent").count("\n") == 1 + len({label for pair in result.pairs["intent"] for label in pair})
    assert wilson(0, 0) == (0.0, 1.0) and wilson(10, 10)[1] == 1.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "checkpoints" / "step-00000001"
    write_checkpoint(folder, lambda part: save_model(part, untrained(), WORDS))
    return folder


@pytest.mark.slow
def test_exported_it_gives_the_same_scores_and_the_command_the_same_events(checkpoint, tmp_path, capsys, monkeypatch):
    context = ChunkContext(8, 2)
    model, labels = load_classifier(checkpoint)
    assert export_classifier(model, labels, context, 0.9, tmp_path / "bundle") <= 1e-5
    steps, found = open_classifier(tmp_path / "bundle")
    assert found.sets == labels.sets
    tracks = []
    for one in (steps, TorchSteps(model, context, 0.9)):
        stream = Spotter(one, labels, SpotOptions()).stream()
        tracks.append(stream.scores(RATE, sound(2.9)) + stream.last_scores())
    for mine, theirs in zip(*tracks, strict=True):
        assert mine.time == theirs.time
        np.testing.assert_allclose(mine.probabilities, theirs.probabilities, atol=1e-5)

    soundfile.write(tmp_path / "a.wav", sound(2.9), RATE, subtype="FLOAT")
    lines = []
    options = ["--threshold", "0.02", "--chunk", "320ms", "--left-context", "2", "--window", "0.9"]
    for source in (checkpoint, tmp_path / "bundle"):
        given = options if source == checkpoint else options[:2]  # a bundle has its own chunks and window
        monkeypatch.setattr("sys.argv", ["spot", "--model", str(source), *given, str(tmp_path / "a.wav")])
        assert spot.main(spot.arguments()) == 0
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert lines[0] and all(line["score"] >= 0.02 and line["label"] in WORDS.sets["label"][1:] for line in lines[0])
    for one, other in zip(*lines, strict=True):
        assert (one["label"], one["time"]) == (other["label"], other["time"])
    monkeypatch.setattr("sys.argv", ["spot", "--model", str(tmp_path / "bundle"), *options, str(tmp_path / "a.wav")])
    with pytest.raises(ValueError, match="exported with its own chunk, left context and window: leave --chunk out"):
        spot.main(spot.arguments())
    with pytest.raises(ValueError, match="is not empty"):
        export_classifier(model, labels, context, 0.9, tmp_path / "bundle")
    (tmp_path / "bundle" / "classifier.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="classifier.onnx: no exported classifier"):
        open_classifier(tmp_path / "bundle")


def test_the_command_classifies_whole_recordings(checkpoint, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "a.wav", sound(0.8), RATE, subtype="FLOAT")
    (tmp_path / "b.wav").write_bytes(b"no audio")
    expected = classify(load_classifier(checkpoint)[0], WORDS, whole_fbank(sound(0.8)), ChunkContext.full())["label"]
    monkeypatch.setattr("sys.argv", ["spot", "--model", str(checkpoint), "--whole", str(tmp_path)])
    assert spot.main(spot.arguments()) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["label"] == {"label": expected.label, "score": round(expected.score, 4)}
    assert "b.wav" in shown.err
