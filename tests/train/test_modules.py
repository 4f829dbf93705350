import pytest
import torch
from train.fakes import FakeModel

from sumix_stream.config import TrainConfig
from sumix_stream.tasks.build import build_model
from sumix_stream.train.modules import ModuleProbe, part_of
from sumix_stream.train.optim import make_optimizer


def test_parts_of_the_real_model():
    names = ModuleProbe(build_model("tiny", vocab_size=10), clip_norm=1.0).names
    layers = tuple(f"encoder.layers.{n}" for n in range(6))
    heads = ("predictor", "joiner", "simple_am", "simple_lm", "ctc_head")
    assert names == ("encoder.subsampling", *layers, *heads)
    assert part_of("encoder.layers.11.conv.out.weight") == "encoder.layers.11"


@pytest.mark.parametrize("max_norm", [1e9, 1e-2], ids=["not clipped", "clipped"])
def test_norms_are_those_of_the_gradient_before_clipping_and_of_the_step(max_norm):
    model, config = FakeModel(), TrainConfig(weight_decay=0.0)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    (model.outer(model.norm(model.inner(torch.randn(3, 80)))) ** 2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    probe = ModuleProbe(model, max_norm)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    probe.before_update(total)
    optimizer.step()
    optimizer.zero_grad()
    names, norms = probe.after_update()
    assert names == ("inner", "norm", "outer")

    def norm_of(values, part):
        return torch.cat([v.flatten() for name, v in values.items() if name.startswith(f"{part}.")]).norm()

    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for index, part in enumerate(names):
        expected = torch.stack([norm_of(values, part) for values in (gradients, before, moved)])
        assert torch.allclose(norms[:, index], expected, rtol=1e-4), part
    assert (norms[2] > 0).all()


def test_a_part_without_gradient_and_one_that_is_not_finite():
    model = FakeModel()
    model.inner.weight.sum().backward()
    model.inner.weight.grad[0, 0] = torch.inf
    probe = ModuleProbe(model, 1.0)
    probe.before_update(torch.tensor(torch.inf))
    names, norms = probe.after_update()
    assert not norms[0, names.index("inner")].isfinite()
    assert (norms[2] == 0).all()
