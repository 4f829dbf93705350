"""The compiled branches of training against the modules in fp64: outputs, every gradient, dropout, threads, choice."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_close_as, needs_numba
from torch import nn

import sumix_kernels as K
from sumix_kernels.training import choice, training_branches
from sumix_kernels.training.choice import multiplies_bf16
from sumix_kernels.training.naive import keeps
from sumix_stream.config import EncoderConfig
from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder, ConformerLayer

pytestmark = needs_numba
needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bfloat16 products")

BEYOND = 2**30
CONTEXTS = {
    "full": ChunkContext.full(),
    "one frame": ChunkContext(1, 3),
    "7, all": ChunkContext(7),
    "8, 0": ChunkContext(8, 0),
    "8, 2": ChunkContext(8, 2),
    "longer than any": ChunkContext(100, 1),
    "each its own": ChunkContext(torch.tensor([4, BEYOND, 9]), torch.tensor([1, BEYOND, 0])),
}
LENGTHS = torch.tensor([45, 45, 17])
DROPOUT = 0.3


@pytest.fixture
def branches():
    module = training_branches(torch.zeros(1, 1, 1))
    assert module is not None
    return module


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_layer(dim=20, kernel=7) -> ConformerLayer:
    layer = ConformerLayer(EncoderConfig(dim=dim, ffn_dim=3 * dim, conv_kernel=kernel, dropout=0.0))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer.train()


def check(run, reference, x, parameters: nn.Module, dropouts: int = 0):
    """run(x, module) in fp32 against reference(x, module, masks) in fp64 on copies, with random output gradients."""
    wide, module = copy.deepcopy(parameters).double(), copy.deepcopy(parameters)
    x, x_wide = x.clone().requires_grad_(), x.double().requires_grad_()
    torch.manual_seed(3)
    out = run(x, module)
    weights = torch.randn_like(out)
    out.backward(weights)

    torch.manual_seed(3)
    drops = [torch.randint(2**32, (2,)).tolist() for _ in range(dropouts)]
    with K.preferred_backend("naive"):
        expected = reference(x_wide, wide, drops)
        expected.backward(weights.double())
    assert_close_as(out, expected, torch.float32)
    assert_close_as(x.grad, x_wide.grad, torch.float32)
    for (name, parameter), wanted in zip(module.named_parameters(), wide.parameters(), strict=True):
        assert (parameter.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            assert_close_as(parameter.grad, wanted.grad, torch.float32)


def drop(y, keys, probability=DROPOUT):
    kept = keeps(tuple(y.shape), *keys, min(round(probability * 2**32), 2**32 - 1))
    return y * torch.from_numpy(kept) / (1 - probability)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dropout", (0.0, DROPOUT))
def test_feed_forward(branches, dropout, threads, poisoned_memory, num_threads):
    num_threads(threads)

    def run(x, layer):
        norm, expand, _, _, contract, _ = layer.ffn1
        return branches.feed_forward(x, norm, expand, contract, 0.5, dropout)

    def reference(x, layer, drops):
        norm, expand, silu, _, contract, _ = layer.ffn1
        hidden = silu(expand(norm(x)))
        y = contract(drop(hidden, drops[0]) if drops else hidden)
        return x + 0.5 * (drop(y, drops[1]) if drops else y)

    check(run, reference, torch.randn(3, 71, 20), make_layer(), 2 if dropout else 0)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dropout", (0.0, DROPOUT))
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_mixer(branches, context, dropout, threads, poisoned_memory, num_threads):
    num_threads(threads)

    def run(x, layer):
        mixer = layer.mixer
        parts = (layer.mixer_norm, mixer.projection, mixer.merge_local, mixer.merge_summary, LENGTHS)
        return branches.summary_mixer(x, *parts, context.chunk_size, context.left_context, dropout)

    def reference(x, layer, drops):
        y = layer.mixer(layer.mixer_norm(x), LENGTHS, context)
        return x + (drop(y, drops[0]) if drops else y)

    check(run, reference, torch.randn(3, 45, 20), make_layer(), 1 if dropout else 0)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dropout", (0.0, DROPOUT))
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_convolution(branches, context, dropout, threads, poisoned_memory, num_threads):
    num_threads(threads)

    def run(x, layer):
        conv = layer.conv
        parts = (layer.conv_norm, conv.expand, conv.weight, conv.bias, conv.norm, conv.out, LENGTHS)
        return branches.convolution(x, *parts, context.chunk_size, dropout)

    def reference(x, layer, drops):
        y = layer.conv(layer.conv_norm(x), LENGTHS, context)
        return x + (drop(y, drops[0]) if drops else y)

    check(run, reference, torch.randn(3, 45, 20), make_layer(), 1 if dropout else 0)


@needs_bf16
@pytest.mark.parametrize("context", (CONTEXTS["full"], CONTEXTS["8, 2"]), ids=("full", "8, 2"))
@pytest.mark.parametrize(("threads", "inside"), [(1, False), (2, True)], ids=["backward outside", "inside"])
def test_products_in_bf16(context, threads, inside, poisoned_memory, num_threads):
    """A layer under autocast is off, in its output and every gradient, by less than twice what PyTorch's operators are
    off there, in all by less; its output and the gradients of its weights by more than fp32's are."""
    num_threads(threads)
    layer, x = make_layer(dim=48), torch.randn(3, 45, 48)
    weights = torch.randn(3, 45, 48)

    def run(backend, dtype, bf16):
        own, y = copy.deepcopy(layer).to(dtype), x.to(dtype, copy=True).requires_grad_()
        chosen = K.preferred_backend(backend) if backend else nullcontext()
        with chosen, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = own(y, LENGTHS, context)
            if inside:
                out.backward(weights.to(out.dtype))
        if not inside:
            out.backward(weights.to(out.dtype))
        return [out, y.grad, *(parameter.grad for parameter in own.parameters())]

    exact = run("naive", torch.float64, False)
    off = {}
    for backend in (None, "torch"):
        found = run(backend, torch.float32, True)
        off[backend] = torch.stack([(a - e).norm() / e.norm() for a, e in zip(found, exact, strict=True)])
    ratios = off[None] / off["torch"]
    assert ratios.max() < 2 and ratios.log().mean().exp() < 1
    weighty = [
        n for n, p in enumerate(layer.parameters(), 2) if p.ndim == 2 and p.shape[0] % 48 == 0 == p.shape[1] % 48
    ]
    assert len(weighty) == 9 and off[None][[0, *weighty]].min() > 1e-4


@needs_bf16
@pytest.mark.parametrize("inside", (63, 64))
def test_odd_sizes_stay_in_fp32(branches, inside):
    """Two bfloat16 are read at once: a weight of an odd number of inputs has fp32's products, beside others."""
    norm, expand, contract = nn.LayerNorm(21), nn.Linear(21, inside), nn.Linear(inside, 21)
    module, x = nn.ModuleList([norm, expand, contract]), torch.randn(2, 45, 21)

    def run(bf16):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = branches.feed_forward(x, norm, expand, contract, 0.5, 0.0)
        out.square().sum().backward()
        return [out, *(parameter.grad.clone() for parameter in module.parameters())]

    plain, rounded = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, rounded, strict=True)) == (inside == 63)
    for a, b in zip(rounded, plain, strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


@needs_bf16
def test_front_ends_under_autocast(branches):
    """In fp32, their backward called inside too."""
    lengths = torch.tensor([40, 23])
    x = torch.randn(2, 40, 80) * (torch.arange(40) < lengths[:, None])[:, :, None]
    conv1, conv2 = nn.Conv2d(1, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)
    parts = {"depthwise": nn.Conv2d(8, 8, 3, stride=2, groups=8), "pointwise": nn.Conv2d(8, 8, 1)}
    stage = SimpleNamespace(**parts)
    runs = {
        "by 4": (lambda: branches.front_end(x, conv1, conv2, lengths), [conv1, conv2]),
        "by 8": (lambda: branches.separable_front_end(x, conv1, [stage, stage], lengths), [conv1, *parts.values()]),
    }
    for run, modules in runs.values():
        parameters, found = list(nn.ModuleList(modules).parameters()), []
        for bf16 in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = run()
                found.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dropout", (0.0, DROPOUT))
def test_masked_norm(branches, dropout, threads, poisoned_memory, num_threads):
    num_threads(threads)

    def run(x, layer):
        return branches.masked_norm(x, layer.norm, LENGTHS, dropout)

    def reference(x, layer, drops):
        y = layer.norm(x) * (torch.arange(45) < LENGTHS[:, None])[:, :, None]
        return drop(y, drops[0]) if drops else y

    check(run, reference, torch.randn(3, 45, 20), make_layer(), 1 if dropout else 0)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("channels", (3, 8))
@pytest.mark.parametrize("num_frames", (1, 2, 3, 4, 5, 131, 150))
def test_front_end(branches, num_frames, channels, threads, poisoned_memory, num_threads):
    num_threads(threads)
    lengths = torch.tensor([num_frames, num_frames - num_frames // 3, 0])
    x = torch.randn(3, num_frames, 80) * (torch.arange(num_frames) < lengths[:, None])[:, :, None]
    convolutions = nn.ModuleList([nn.Conv2d(1, channels, 3, stride=2), nn.Conv2d(channels, channels, 3, stride=2)])
    wide = copy.deepcopy(convolutions).double()
    out = branches.front_end(x, *convolutions, lengths)

    check_front_end(out, x, lengths, convolutions, wide)


def check_front_end(out, x, lengths, modules, wide):
    """Output and gradients against stages of convolutions in fp64, one after another."""
    y, y_lengths = x.double()[:, None], lengths
    for stage in wide:
        valid = torch.arange(y.shape[2]) < y_lengths[:, None]
        # A frame of zeros before, at most one after; a bin of zeros on either side.
        y = nn.functional.pad(y * valid[:, None, :, None], (1, 1, 1, 1))
        y, y_lengths = nn.functional.silu(stage(y)), (y_lengths + 1) // 2
    expected = y.transpose(1, 2).transpose(2, 3).flatten(2)  # bins first, channels last
    weights = torch.randn_like(out)
    out.backward(weights)
    expected.backward(weights.double())
    assert_close_as(out, expected, torch.float32)
    for parameter, wanted in zip(modules.parameters(), wide.parameters(), strict=True):
        assert_close_as(parameter.grad, wanted.grad, torch.float32)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("num_frames", (1, 2, 5, 8, 9, 133))
def test_separable_front_end(branches, num_frames, threads, poisoned_memory, num_threads):
    num_threads(threads)
    lengths = torch.tensor([num_frames, num_frames - num_frames // 3, 0])
    x = torch.randn(3, num_frames, 80) * (torch.arange(num_frames) < lengths[:, None])[:, :, None]
    conv1, stages = nn.Conv2d(1, 5, 3, stride=2), nn.ModuleList()
    for _ in range(2):
        parts = {"depthwise": nn.Conv2d(5, 5, 3, stride=2, groups=5), "pointwise": nn.Conv2d(5, 5, 1)}
        stages.append(nn.ModuleDict(parts))
    modules = nn.ModuleList([conv1, stages])
    wide = copy.deepcopy(modules).double()
    given = [SimpleNamespace(**dict(stage.items())) for stage in stages]
    out = branches.separable_front_end(x, conv1, given, lengths)
    later = [nn.Sequential(*stage.values()) for stage in wide[1]]
    check_front_end(out, x, lengths, modules, nn.ModuleList([wide[0], *later]))


@pytest.mark.parametrize("variant", ("fast", "lite", "attention"))
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_training_equals_evaluation(variant, context):
    """A pass with gradients, without dropout, gives what one without gives, by other code."""
    mixer = {"mixer": "attention"} if variant == "attention" else {"summary_variant": variant}
    sizes = dict(dim=16, num_layers=2, ffn_dim=32, num_heads=2, conv_kernel=7, subsampling_channels=4, dropout=0.0)
    encoder = ConformerEncoder(EncoderConfig(**sizes, **mixer))
    feats, lengths = torch.randn(3, 180, 80), 4 * LENGTHS
    out, _ = encoder(feats, lengths, context)
    with torch.no_grad():
        expected, _ = encoder(feats, lengths, context)
    assert not torch.equal(out, expected)
    assert (out - expected).abs().max() < 1e-5


def test_dropout_is_what_the_seed_says(branches):
    layer, x = make_layer(), torch.randn(2, 40, 20)
    norm, expand, _, _, contract, _ = layer.ffn1

    def run(seed):
        torch.manual_seed(seed)
        return branches.feed_forward(x, norm, expand, contract, 0.5, DROPOUT)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_dropout_does_not_depend_on_threads(branches, num_threads):
    layer, x = make_layer(), torch.randn(4, 70, 20)
    norm, expand, _, _, contract, _ = layer.ffn1
    outputs = []
    for threads in (1, 4):
        num_threads(threads)
        torch.manual_seed(0)
        outputs.append(branches.feed_forward(x, norm, expand, contract, 0.5, DROPOUT))
    assert torch.allclose(*outputs, rtol=0, atol=1e-5)  # another mask would differ by whole elements


def test_dropped_elements_look_independent():
    """Shares, and correlations of neighbours, rows, and of dropouts with near keys, within five standard deviations."""
    shape, probability = (400, 512), 0.1
    count = np.prod(shape)
    threshold, spread = round(probability * 2**32), probability * (1 - probability)
    keys = [(0, 0), (1, 0), (0, 1), (512, 0), (0x9E3779B9, 0), (2**32 - 1, 77), (123456, 2**31)]
    masks = [keeps(shape, *pair, threshold) - (1 - probability) for pair in keys]
    limit = 5 * spread / count**0.5
    for mask in masks:
        assert abs(mask.mean()) < 5 * (spread / count) ** 0.5
        for shift in (1, 2, 4, 8, 144, 512, 576, 4096):
            flat = mask.ravel()
            assert abs((flat[shift:] * flat[:-shift]).mean()) < 1.05 * limit
        assert abs(mask.mean(0)).max() < 5 * (spread / shape[0]) ** 0.5
        assert abs(mask.mean(1)).max() < 5 * (spread / shape[1]) ** 0.5
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert abs((mask * other).mean()) < limit


def test_rejects_impossible_dropout(branches):
    with pytest.raises(ValueError, match="dropout must be in"):
        branches.masked_norm(torch.randn(1, 3, 4), nn.LayerNorm(4), torch.tensor([3]), 1.0)


def test_choice(monkeypatch):
    x, module = torch.randn(1, 3, 4), nn.LayerNorm(4)
    assert training_branches(x, module) is not None
    assert training_branches(x.double(), module) is None
    assert training_branches(x, module.double()) is None
    assert training_branches(x[:0]) is None
    with torch.no_grad():
        assert training_branches(x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert (training_branches(x) is not None) == multiplies_bf16()
        assert (training_branches(x.bfloat16()) is not None) == multiplies_bf16()
        monkeypatch.setattr(choice, "multiplies_bf16", lambda: False)  # as on a processor without
        assert training_branches(x) is None
    with torch.autocast("cpu", torch.float16):
        assert training_branches(x) is None
    with K.preferred_backend("torch"):
        assert training_branches(x) is None
    monkeypatch.setattr(choice, "has_numba", lambda: False)  # as without Numba
    assert training_branches(x) is None


def test_trains_without_numba(monkeypatch):
    monkeypatch.setattr(choice, "has_numba", lambda: False)
    layer, x = make_layer(), torch.randn(2, 45, 20)
    out = layer(x, torch.tensor([45, 17]), ChunkContext(8, 2))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
