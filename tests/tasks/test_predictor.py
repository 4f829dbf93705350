import pytest
import torch

from sumix_stream.config import PredictorConfig
from sumix_stream.encoders.states import stack, unstack
from sumix_stream.tasks.transducer import predictor as predictors
from sumix_stream.tasks.transducer.joiner import Joiner
from sumix_stream.tasks.transducer.predictor import LstmPredictor


@torch.no_grad()
def test_steps_equal_forward():
    predictor = LstmPredictor(PredictorConfig(embed_dim=8, hidden_dim=12, num_layers=2), vocab_size=9).eval()
    tokens = torch.randint(1, 9, (3, 6))
    whole = predictor(tokens)
    assert whole.shape == (3, 7, 12)
    state, token = predictor.init_state(3), torch.zeros(3, dtype=torch.int64)
    for u in range(7):
        out, state = predictor.step(token, state)
        torch.testing.assert_close(out, whole[:, u], atol=1e-6, rtol=0)
        state = stack(unstack(state))
        token = tokens[:, u] if u < 6 else token


def test_hidden_tokens_leave_no_trace_in_training_and_are_seen_in_evaluation():
    predictor = LstmPredictor(PredictorConfig(embed_dim=8, hidden_dim=12, dropout=0.0, token_dropout=1.0), vocab_size=9)
    tokens, others = torch.randint(1, 9, (2, 3, 6)).unbind()
    assert torch.equal(predictor(tokens), predictor(others))
    assert not torch.equal(predictor.eval()(tokens), predictor(others))
    predictor.train().token_dropout = 0.5
    assert not torch.equal(predictor(tokens), predictor(tokens)), "what is hidden is drawn anew"


def outputs_and_gradients(predictor: LstmPredictor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """forward, three steps, the state after them, and gradients through all of it."""
    whole = predictor(tokens)
    outs, state, token = [], predictor.init_state(len(tokens)), torch.zeros_like(tokens[:, 0])
    for u in range(3):
        out, state = predictor.step(token, state)
        outs.append(out)
        token = tokens[:, u]
    results = [whole, *outs, *state]
    total = sum(result.float().square().sum() for result in results)
    return [*results, *torch.autograd.grad(total, list(predictor.parameters()))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_as_in_fp32(dtype):
    """On every processor; bit for bit where the LSTM is computed in fp32."""
    predictor = LstmPredictor(PredictorConfig(embed_dim=8, hidden_dim=12, num_layers=2, dropout=0.0), vocab_size=9)
    tokens = torch.randint(1, 9, (3, 6))
    predictor.eval()
    expected = outputs_and_gradients(predictor, tokens)
    with torch.autocast("cpu", dtype):
        actual = outputs_and_gradients(predictor, tokens)
    in_half = dtype == torch.bfloat16 and predictors.cpu_has_bf16_lstm()
    assert actual[0].dtype == (dtype if in_half else torch.float32)
    for a, e in zip(actual, expected, strict=True):
        if in_half:
            assert (a.float() - e).norm() <= 0.05 * e.norm()
        else:
            assert torch.equal(a, e)


@pytest.mark.parametrize("has_it", [False, True])
@torch.no_grad()
def test_the_lstm_is_left_to_autocast_where_this_works_alone(monkeypatch, has_it):
    """As on either kind of processor, whatever this one is."""
    predictor = LstmPredictor(PredictorConfig(embed_dim=8, hidden_dim=12), vocab_size=9)
    under_autocast = []

    def lstm(x, past=None):
        under_autocast.append(torch.is_autocast_enabled("cpu"))
        return x.new_zeros(2, x.shape[1], 12), (torch.zeros(1, 2, 12), torch.zeros(1, 2, 12))

    monkeypatch.setattr(predictor.lstm, "forward", lstm)
    monkeypatch.setattr(predictors, "cpu_has_bf16_lstm", lambda: has_it)
    tokens = torch.randint(1, 9, (2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        predictor(tokens)
        predictor.step(tokens[:, 0], predictor.init_state(2))
    assert under_autocast == [has_it, has_it]


def test_finding_out_is_done_once_and_draws_nothing():
    predictors.cpu_has_bf16_lstm.cache_clear()
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = predictors.cpu_has_bf16_lstm()
    assert torch.equal(torch.get_rng_state(), before)
    assert predictors.cpu_has_bf16_lstm() is found and predictors.cpu_has_bf16_lstm.cache_info().misses == 1


@torch.no_grad()
def test_joiner_from_projections():
    joiner = Joiner(6, 5, 7, 11)
    enc, pred = torch.randn(2, 4, 1, 6), torch.randn(2, 1, 3, 5)
    logits = joiner(enc, pred)
    assert logits.shape == (2, 4, 3, 11)
    by_hand = torch.tanh(
        enc @ joiner.project_encoder.weight.T + joiner.project_encoder.bias + pred @ joiner.project_predictor.weight.T
    )
    torch.testing.assert_close(logits, by_hand @ joiner.output.weight.T + joiner.output.bias)
