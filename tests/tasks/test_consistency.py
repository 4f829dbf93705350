import pytest
import torch
from tasks.test_losses import CONFIG, WEIGHTS, batch
from torch.nn import functional as F

from sumix_stream.config import ConfigError, LossConfig, ModelConfig, SpecAugmentConfig
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.consistency import ctc_consistency

NO_MASKS = SpecAugmentConfig(num_time_masks=0, num_freq_masks=0)


def test_value_is_the_symmetric_divergence_of_valid_frames():
    one, other, lengths = torch.randn(3, 7, 5), torch.randn(3, 7, 5), torch.tensor([7, 4, 0])
    p, q = F.softmax(one.double(), -1), F.softmax(other.double(), -1)
    each = 0.5 * ((q * (q / p).log()).sum(-1) + (p * (p / q).log()).sum(-1))
    expected = [each[b, :n].sum() for b, n in enumerate(lengths.tolist())]
    torch.testing.assert_close(
        ctc_consistency(one, other, lengths).double(), torch.stack(expected), atol=1e-5, rtol=1e-5
    )
    assert torch.allclose(ctc_consistency(one, one, lengths), torch.zeros(3), atol=1e-6)


def test_no_gradient_goes_through_a_target():
    """By one view's logits the gradient is that of KL against the other as a constant: the difference of softmaxes."""
    one, other = (torch.randn(2, 3, 5, requires_grad=True) for _ in range(2))
    ctc_consistency(one, other, torch.tensor([3, 2])).sum().backward()
    expected = 0.5 * (F.softmax(one, -1) - F.softmax(other, -1)).detach()
    expected[1, 2] = 0
    torch.testing.assert_close(one.grad, expected)
    torch.testing.assert_close(other.grad, -expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_huge_logits_stay_finite(dtype):
    one = (torch.rand(1, 4, 6) * 6e4 - 3e4).to(dtype).requires_grad_()
    loss = ctc_consistency(one, -one.detach(), torch.tensor([4]))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and one.grad.isfinite().all()


def trained(loss_config, context=None):
    model = build_model(CONFIG, 11).train()
    return model, model(*batch(), context or ChunkContext(4, 1), WEIGHTS, loss_config)


@pytest.mark.parametrize("each", [False, True], ids=["one context", "context each"])
def test_equal_views_give_the_plain_objective(each):
    context = ChunkContext(torch.tensor([4, 3, 9]), torch.tensor([1, 0, 2])) if each else ChunkContext(4, 1)
    torch.manual_seed(3)
    _, plain = trained(LossConfig(), context)
    torch.manual_seed(3)
    _, double = trained(LossConfig(cr_ctc_scale=0.2, cr_ctc_masks=NO_MASKS), context)
    torch.testing.assert_close(double.total, plain.total, atol=1e-4, rtol=1e-5)
    for name in ("simple", "pruned", "ctc"):
        torch.testing.assert_close(double.parts[name], plain.parts[name], atol=1e-4, rtol=1e-5)
    assert torch.equal(double.usable, plain.usable) and double.num_frames == plain.num_frames


def test_masked_views_are_drawn_together():
    config = LossConfig(cr_ctc_scale=0.2, cr_ctc_masks=SpecAugmentConfig(2, 20, 2, 27))
    torch.manual_seed(3)
    model, loss = trained(config)
    parts = (0.5 * loss.parts["simple"] + loss.parts["pruned"] + 0.3 * loss.parts["ctc"]).sum() / loss.num_frames
    assert loss.parts["consistency"].min() > 0  # what the views differ by
    torch.testing.assert_close(loss.total, parts + 0.2 * loss.parts["consistency"].sum() / loss.num_frames)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.manual_seed(3)
    assert torch.equal(trained(config)[1].total, loss.total)  # the random state decides


def test_evaluation_has_one_view():
    model = build_model(CONFIG, 11)
    torch.manual_seed(3)
    values = batch()
    plain = model(*values, ChunkContext(4, 1), WEIGHTS)
    assert torch.equal(model(*values, ChunkContext(4, 1), WEIGHTS, LossConfig(cr_ctc_scale=1.0)).total, plain.total)


def test_refused_without_a_head_without_masks_and_with_a_warp():
    model = build_model(ModelConfig(CONFIG.encoder, CONFIG.predictor, joiner_dim=10, ctc=False), 11).train()
    with pytest.raises(ValueError, match="loss.cr_ctc_scale needs the CTC head: set model.ctc true"):
        model(*batch(), ChunkContext(4, 1), WEIGHTS, LossConfig(cr_ctc_scale=0.2))
    with pytest.raises(ValueError, match="two views need loss.cr_ctc_masks"):
        trained(LossConfig(cr_ctc_scale=0.2))
    with pytest.raises(ConfigError, match="cr_ctc_masks must be without time_warp"):
        LossConfig(cr_ctc_masks=SpecAugmentConfig(time_warp=5))
