"""The LSTM language model: steps equal the whole, it learns, saves, loads, and fuses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from talkative import VOCAB_SIZE, runtime_of

from sumix_kernels.lstm import step_lstms
from sumix_stream.config import PredictorConfig
from sumix_stream.search import neural_lm
from sumix_stream.search.beam import beam_decode
from sumix_stream.search.neural_lm import NeuralLm
from sumix_stream.search.options import SearchOptions
from sumix_stream.tasks.checkpoint import CheckpointError
from sumix_stream.tasks.language_model import LstmLm
from sumix_stream.train.language_model import LmTraining, fit

CONFIG = PredictorConfig(embed_dim=12, hidden_dim=16, num_layers=2, dropout=0.0)


@pytest.fixture
def lm() -> LstmLm:
    return LstmLm(CONFIG, VOCAB_SIZE)


def fused(lm: LstmLm) -> NeuralLm:
    """As a search has it."""
    arrays = {name: tensor.numpy().copy() for name, tensor in lm.state_dict().items()}
    return NeuralLm(lm.config, lm.vocab_size, arrays)


def score(lm: NeuralLm, sequence: list[int]) -> float:
    """Log-probability of a sequence, step by step."""
    state, total = lm.start(1), 0.0
    for token in sequence:
        log_probs = lm.log_probs(state)
        assert log_probs[0, 0] == -np.inf
        assert np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-5)
        total += float(log_probs[0, token])
        state = lm.advance(np.array([token]), state)
    return total


def test_steps_equal_the_whole(lm):
    sequences = [[3, 1, 7, 7], [5, 2]]
    tokens = torch.tensor([[3, 1, 7, 7], [5, 2, 0, 0]])
    with torch.inference_mode():
        loss = lm(tokens, torch.tensor([4, 2])).item()
    assert -sum(score(fused(lm), sequence) for sequence in sequences) / 6 == pytest.approx(loss, abs=1e-5)


def learn(lm: LstmLm, sequences: list[list[int]], passes: int, folder: Path) -> list[float]:
    """Losses of batches; a sequence stays by itself."""
    losses = []
    training = LmTraining(passes, batch_tokens=240, max_tokens=max(map(len, sequences)), learning_rate=0.02)
    fit(lm, sequences, training, folder, lambda done, total, loss: losses.append(loss))
    return losses


def test_it_learns(lm, tmp_path):
    cycle = [n % 5 + 1 for n in range(12)]
    losses = learn(lm, [cycle[start:] for start in range(5)] * 8, 40, tmp_path)
    assert losses[0] > 2.0
    assert losses[-1] < 0.4
    assert not lm.training
    assert score(fused(lm), [1, 2, 3, 4, 5]) > score(fused(lm), [1, 3, 2, 5, 4]) + 5
    with pytest.raises(ValueError, match="no token to learn from"):
        fit(lm, [[]], LmTraining(), tmp_path)


def test_saved_and_loaded(lm, tmp_path):
    lm.save(tmp_path / "lm")
    loaded = NeuralLm.load(tmp_path / "lm")
    assert loaded.config == CONFIG
    assert loaded.fingerprint == fused(lm).fingerprint != fused(LstmLm(CONFIG, VOCAB_SIZE, seed=1)).fingerprint
    assert score(loaded, [4, 4, 2]) == score(fused(lm), [4, 4, 2])
    weights = tmp_path / "lm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        NeuralLm.load(tmp_path / "lm")
    with pytest.raises(CheckpointError, match="is missing"):
        NeuralLm.load(tmp_path)


def test_fusion_prefers_what_the_model_knows(lm, tmp_path):
    torch.manual_seed(0)
    model, enc, lengths = runtime_of(), torch.randn(1, 24, 32).numpy(), np.array([24])

    def search(**options):
        return beam_decode(model, enc, lengths, options=SearchOptions(method="modified_beam", nbest=4, **options))[0][0]

    plain = search()
    assert search(lm=fused(lm), lm_scale=0.0) == plain
    other = plain[1].tokens
    learn(lm, [other] * 8, 200, tmp_path)
    assert math.exp(score(fused(lm), other) / len(other)) > 0.5
    found = search(lm=fused(lm), lm_scale=1.0)
    assert found[0].tokens == other != plain[0].tokens


@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_in_numpy_is_the_compiled_one(layers, monkeypatch):
    """What computes where nothing is compiled."""
    config, tokens = PredictorConfig(embed_dim=6, hidden_dim=10, num_layers=layers), np.array([4, 8, 1])
    found = []
    for steps in (neural_lm._fastest_step(), step_lstms):
        monkeypatch.setattr(neural_lm, "_fastest_step", lambda steps=steps: steps)
        lm = fused(LstmLm(config, 9, seed=3))
        found.append(lm.log_probs(lm.advance(tokens, lm.advance(tokens[::-1], lm.start(3)))))
    np.testing.assert_allclose(*found, atol=1e-5)
