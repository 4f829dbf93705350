"""bin/train_lm --lstm: joined sentences, a run that goes on, what the command says."""

import random
import subprocess
import sys
from itertools import chain

import pytest
import torch
from conftest import ROOT

from sumix_stream.config import PredictorConfig
from sumix_stream.language.text import LanguageModelError, read_sentences
from sumix_stream.search.neural_lm import NeuralLm
from sumix_stream.tasks.checkpoint import CheckpointError
from sumix_stream.tasks.language_model import LstmLm
from sumix_stream.tokenizer import train_tokenizer
from sumix_stream.train.language_model import LmTraining, fit, join_sentences, perplexity

SENTENCES = [[n % 5 + 1 for n in range(start, start + length)] for start, length in zip(range(60), range(1, 61))]
TRAINING = LmTraining(epochs=3, batch_tokens=120, max_tokens=20, learning_rate=0.01)


def small() -> LstmLm:
    return LstmLm(PredictorConfig(embed_dim=8, hidden_dim=12, dropout=0.2), vocab_size=7)


@pytest.mark.parametrize("seed", range(5))
def test_joined_sentences_are_the_text_in_order(seed):
    joined = list(join_sentences(SENTENCES, 20, random.Random(seed)))
    assert list(chain(*joined)) == list(chain(*SENTENCES))
    assert max(map(len, joined)) <= 20 and all(joined)
    assert len(joined) != len(SENTENCES)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    straight = small()
    fit(straight, SENTENCES, TRAINING, tmp_path / "straight")

    def stop(done, total, loss):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small(), SENTENCES, TRAINING, tmp_path / "stopped", stop)
    with pytest.raises(CheckpointError, match="stopped holds a run of other text, sizes or settings"):
        fit(small(), SENTENCES[1:], TRAINING, tmp_path / "stopped")
    begun, resumed = [], small()
    fit(resumed, SENTENCES, TRAINING, tmp_path / "stopped", lambda done, total, loss: begun.append((done, total)))
    assert begun[0] == (begun[0][1] // 2 + 1, begun[0][1]) and begun[-1][0] == begun[-1][1]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["config.yaml", "model.safetensors"]
    assert NeuralLm.load(tmp_path / "stopped").vocab_size == 7


def test_perplexity_is_of_all_tokens():
    model = small()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    value, number = perplexity(model, SENTENCES, batch_size=7)
    assert value == pytest.approx(6) and number == sum(map(len, SENTENCES))  # any of six tokens, blank is none


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"learning_rate": 0.0}, {"max_tokens": 0}])
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        LmTraining(**setting)


def test_manifests_are_text_too(tmp_path):
    (tmp_path / "cuts.jsonl").write_text(
        '{"id": "a", "supervisions": [{"text": "it was"}, {"text": "late"}]}\n{"id": "b", "text": "the end"}\n'
    )
    tokenizer = train_tokenizer(["it was late the end"], tmp_path / "tokenizer.model", model_type="char")
    found = read_sentences([tmp_path / "cuts.jsonl"], tokenizer)
    assert [tokenizer.decode(ids) for ids in found.tokens] == ["it was", "late", "the end"]
    (tmp_path / "cuts.jsonl").write_text('{"id": "a", "supervisions": []}\n[]\n')
    with pytest.raises(LanguageModelError, match=r"cuts.jsonl, line 2: neither a cut nor a supervision"):
        read_sentences([tmp_path / "cuts.jsonl"], tokenizer)


def test_the_command(tmp_path):
    train_tokenizer(["it was the best of times"], tmp_path / "tokenizer.model", model_type="char")
    (tmp_path / "text.txt").write_text("it was the best\nthe times it was\n" * 30)
    command = [sys.executable, ROOT / "bin" / "train_lm", tmp_path / "text.txt", "--tokenizer"]
    command += [tmp_path / "tokenizer.model", "--lstm", "--out", tmp_path / "lm"]
    sizes = ["--hidden", "8", "--epochs", "1", "--valid", tmp_path / "text.txt"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nats a token" in done.stdout and "perplexity" in done.stdout
    assert NeuralLm.load(tmp_path / "lm").config.hidden_dim == 8
    done = subprocess.run([*command, "--order", "3"], capture_output=True, text=True)
    assert done.returncode == 2 and "--order is for n-grams: leave it out, or --lstm" in done.stderr
