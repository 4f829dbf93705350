"""The page of a run: its numbers are the run's, it needs nothing else, and no text in it is anything but text."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation

from sumix_stream.corpora.preparation import make_cut, write_cuts, write_flac
from sumix_stream.report.chart import Series, figure, line_chart, thin
from sumix_stream.report.report import write_report
from sumix_stream.train.loop import Trainer

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png" onerror="a()">&amp;"\'</article>'
VOID = {"meta", "img", "br", "image", "path", "circle"}


class Page(HTMLParser):
    """Tags must close in order; keeps what a browser would load or run, and the text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.sources, self.handlers, self.tags, self.text = [], [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "poster", "data")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data + "\n"


def check_self_contained(page, path):
    assert all(source.startswith(("data:", "#part")) for source in page.sources), page.sources
    assert page.handlers == [] and not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(", path.read_text())
    assert "default-src 'none'" in path.read_text()


def train(exp_dir, **settings):
    validate = fake_validation(0.5, 0.21, 0.34)
    Trainer(fake_recipe(exp_dir, **settings), FakeModel(), FakeTokenizer(), FakeLoader(), validate).fit()
    return [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps with three validations."""
    exp_dir = tmp_path_factory.mktemp("run") / "fine & dandy"
    return exp_dir, train(exp_dir, valid_interval=4, log_interval=2)


def test_numbers_are_those_of_the_metrics(run):
    exp_dir, lines = run
    page = Page(exp_dir / "report.html")  # written by the trainer
    check_self_contained(page, exp_dir / "report.html")
    last = [line for line in lines if "loss" in line][-1]
    for key, value in {**last["parts"], **{key: last[key] for key in ("loss", "grad_norm", "learning_rate")}}.items():
        assert f"\n{figure(value)}\n" in page.text, key
    interval = last["interval"]
    assert f"\n{figure(interval['audio_hours_per_hour'])}\n" in page.text
    assert f"\n{figure(interval['step_seconds']['max'])}\n" in page.text
    for name, (gradient, weights, update) in interval["modules"].items():
        assert f"\n{name} \n{figure(gradient)}\n" in page.text
        assert f"\n{name} \n{figure(update / weights)}\n" in page.text
    for step, wer in ((4, "50.00%"), (8, "21.00%"), (12, "34.00%")):
        assert f"\n{step}\n{wer}\n" in page.text
    assert "lowest validation WER, step 8" in page.text
    assert "fine & dandy" in page.text and "step 12 of 12" in page.text
    hours = sum(line["seconds"] for line in lines if "loss" in line) / 3600
    assert f"\n{figure(hours)}\nhours of audio" in page.text


def test_settings_and_what_changed_are_there(tmp_path):
    train(tmp_path, max_steps=2)
    train(tmp_path, max_steps=4, clip_norm=1.5)
    text = Page(tmp_path / "report.html").text
    assert "train.max_steps 2 -> 4; train.clip_norm 5.0 -> 1.5" in text
    assert "the beginning" in text and "\ntrain.clip_norm\n1.5\n" in text


def decoded(directory, manifest, texts):
    """A report.json as the decoders write it."""
    directory.mkdir(parents=True)
    utterances = [
        {
            "id": name,
            "reference": reference,
            "hypothesis": hypothesis,
            "errors": int(reference != hypothesis),
            "pairs": [[reference, hypothesis], [name, name]],
        }
        for name, reference, hypothesis in texts
    ]
    content = {"cuts": str(manifest), "chunk_size": 16, "left_context": 4, "wer": 0.125, "interval95": [0.1, 0.15]}
    content |= {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 8, "rtf": 0.01, "utterances": utterances}
    (directory / "report.json").write_text(json.dumps(content))


def test_hostile_texts_stay_texts_and_audio_is_inside(tmp_path):
    train(tmp_path, max_steps=1)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 1600).astype(np.float32)
    flac = tmp_path / "a.flac"
    write_cuts([make_cut(HOSTILE, flac, write_flac(flac, samples), "A", "me")], tmp_path / "cuts_odd.jsonl.gz")
    texts = [(HOSTILE, HOSTILE, "A"), ("fine", "B", "B"), ("gone", "C", None), ("new", None, HOSTILE)]
    decoded(tmp_path / "decode" / f"cuts_odd-{'<b>'}", tmp_path / "cuts_odd.jsonl.gz", texts)
    path = write_report(tmp_path)
    page = Page(path)
    check_self_contained(page, path)
    assert page.text.count(HOSTILE) == 4  # id; words recognised, substituted, inserted
    assert [source[:15] for source in page.sources if source.startswith("data:audio")] == ["data:audio/flac"]
    assert "3 of 4 utterances have errors" in page.text
    assert "\n12.50%\n10.00% to 15.00%\n" in page.text and "\n640 ms\n4\n" in page.text
    assert "\ngone\n" in page.text and "\nfine\n" not in page.text


def test_a_run_that_has_only_begun_and_one_that_has_not(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    page = Page(write_report(tmp_path))
    assert "step 0" in page.text and "nothing yet" in page.text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    (tmp_path / "valid.json").write_text("[1]")
    Page(write_report(tmp_path))
    with pytest.raises(ValueError, match=r"no run has begun there; train one with bin/train"):
        write_report(tmp_path / "nothing")


def test_steps_left_out_and_old_runs_have_no_gap_in_the_page(tmp_path):
    """Lines of runs that measured less, and a loss that was no number."""
    line = {"simple": 1.0, "pruned": 2.0, "ctc": 0.5, "grad_norm": 1.0, "seconds": 3.0, "context": "full"}
    lines = [
        {"step": 1, "loss": 1.5, "skipped": False, "learning_rate": 1e-4, **line},
        {"step": 2, "loss": None, "skipped": True, "learning_rate": 2e-4, **line, "grad_norm": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    text = Page(write_report(tmp_path)).text
    assert "not finite\nloss, step 2" in text and "pruned" in text and "\n1\nupdates left out" in text


def test_a_page_that_cannot_be_made_does_not_stop_training(tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "in the way").touch()
    assert [line["step"] for line in train(tmp_path, max_steps=2) if "loss" in line] == [1, 2]
    assert "no page of the run" in (tmp_path / "train.log").read_text()


def test_charts():
    points = [(x, float(x)) for x in range(1, 2001)]
    thinned = thin(points)
    assert len(thinned) <= 300 and thinned[-1][0] == 2000
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(1000.5, rel=0.01)
    assert "nothing yet" in line_chart("empty", [Series("a", [(1, None), (2, float("nan"))])])
    assert "nothing yet" in line_chart("log of 0", [Series("a", [(1, 0.0)])], log=True)
    for points in ([(1, 0.0)], [(1, 5.0), (2, 5.0)], [(0, 1e-9), (10**6, 3e7)]):
        for log in (False, True):
            assert "nan" not in line_chart("t", [Series("<a>", points)], log=log)
    assert [figure(value) for value in (0, 0.5, 12345.6, 1e-4, 2.5e7, -3.0)] == [
        "0",
        "0.5",
        "12346",
        "1e-4",
        "2.5e7",
        "-3",
    ]
