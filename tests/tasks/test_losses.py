import pytest
import torch
from torch.nn import functional as F

from sumix_stream.config import EncoderConfig, LossConfig, ModelConfig, PredictorConfig
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.losses import ctc_loss, loss_weights

CONFIG = ModelConfig(
    encoder=EncoderConfig(dim=16, num_layers=1, ffn_dim=32, conv_kernel=5, subsampling_channels=4, dropout=0.0),
    predictor=PredictorConfig(embed_dim=8, hidden_dim=12, dropout=0.0),
    joiner_dim=10,
)
WEIGHTS = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}


def batch():
    feats, lengths = torch.randn(3, 80, 80), torch.tensor([80, 61, 33])
    tokens, token_lengths = torch.randint(1, 11, (3, 5)), torch.tensor([5, 3, 0])
    tokens = tokens * (torch.arange(5) < token_lengths.unsqueeze(1))
    return feats, lengths, tokens, token_lengths


def test_scales_warm_up():
    config = LossConfig(warmup_steps=100, simple_scale=0.5, ctc_scale=0.2)
    assert loss_weights(0, config) == pytest.approx({"simple": 1.0, "pruned": 0.1, "ctc": 0.2})
    assert loss_weights(50, config) == pytest.approx({"simple": 0.75, "pruned": 0.55, "ctc": 0.2})
    assert (
        loss_weights(100, config)
        == loss_weights(10_000, config)
        == pytest.approx({"simple": 0.5, "pruned": 1.0, "ctc": 0.2})
    )
    assert loss_weights(0, LossConfig(warmup_steps=0))["pruned"] == 1.0


def test_total_is_the_weighted_sum_a_frame():
    model = build_model(CONFIG, 11)
    loss = model(*batch(), ChunkContext(4, 1), WEIGHTS)
    assert loss.usable.all() and loss.num_frames == 20 + 16 + 9
    expected = (0.5 * loss.parts["simple"] + loss.parts["pruned"] + 0.3 * loss.parts["ctc"]).sum() / 45
    torch.testing.assert_close(loss.total, expected)


def test_batch_mates_change_no_loss():
    model = build_model(CONFIG, 11)
    feats, lengths, tokens, token_lengths = batch()
    together = model(feats, lengths, tokens, token_lengths, ChunkContext(4, 1), WEIGHTS)
    for b in range(3):
        n, u = lengths[b], token_lengths[b]
        alone = model(
            feats[b : b + 1, :n], lengths[b : b + 1], tokens[b : b + 1, :u], token_lengths[b : b + 1],
            ChunkContext(4, 1), WEIGHTS,
        )  # fmt: skip
        for name in ("simple", "ctc"):
            torch.testing.assert_close(together.parts[name][b : b + 1], alone.parts[name], rtol=1e-4, atol=1e-4)


def test_an_utterance_without_a_path_is_left_out():
    """Modified topology: more tokens than frames has no path."""
    model, config = build_model(CONFIG, 11), LossConfig(rnnt_type="modified")
    feats, lengths = torch.randn(2, 40, 80), torch.tensor([40, 8])
    tokens, token_lengths = torch.randint(1, 11, (2, 6)), torch.tensor([6, 6])
    loss = model(feats, lengths, tokens, token_lengths, ChunkContext(4, 1), WEIGHTS, config)
    assert loss.usable.tolist() == [True, False]
    assert loss.parts["simple"][1] == loss.parts["pruned"][1] == loss.parts["ctc"][1] == 0
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_learns():
    model = build_model(CONFIG, 11)
    model(*batch(), ChunkContext(4, 1), WEIGHTS).total.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_loss_falls_on_one_batch():
    model = build_model(CONFIG, 11).train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    data, losses = batch(), []
    for _ in range(40):
        loss = model(*data, ChunkContext.full(), WEIGHTS).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_ctc_in_half_precision_and_with_impossible_targets():
    logits = (torch.randn(2, 7, 5) * 30).half().requires_grad_()
    tokens = torch.tensor([[1, 2, 0, 0], [1, 1, 1, 1]])
    lengths, token_lengths = torch.tensor([7, 6]), torch.tensor([2, 4])
    loss = ctc_loss(logits, lengths, tokens, token_lengths)
    expected = F.ctc_loss(
        logits.double().log_softmax(-1).transpose(0, 1)[:, :1],
        tokens[:1],
        lengths[:1],
        token_lengths[:1],
        reduction="sum",
    )
    assert loss[0].item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss[1] == 0, "four equal tokens need seven frames"
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_no_ctc_head():
    import dataclasses

    model = build_model(dataclasses.replace(CONFIG, ctc=False), 11)
    assert "ctc" not in model(*batch(), ChunkContext.full(), WEIGHTS).parts
