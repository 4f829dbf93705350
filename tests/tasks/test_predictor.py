import torch

from sumix_stream.config import PredictorConfig
from sumix_stream.encoders.states import stack, unstack
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
