"""The encoder on Triton's kernels (without a GPU: interpreted): equal to the torch backend, compiled, exported."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close_as
from talkative import MIXERS, SMALL

import sumix_kernels as K
from sumix_stream.config import ModelConfig
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.build import build_model

SUMMARIES = [name for name in MIXERS if name != "attention"]


def encoder_of(mixer: str, device: str):
    config = ModelConfig(encoder=replace(SMALL, **MIXERS[mixer]), joiner_dim=32, ctc=False)
    return build_model(config, vocab_size=20, seed=3).encoder.to(device)


def run(encoder, feats, lengths, context):
    """Output, and the gradients of all parameters."""
    encoder.zero_grad()
    out, out_lengths = encoder(feats, lengths, context)
    out.square().mean().backward()
    return out.detach(), out_lengths, {name: p.grad.clone() for name, p in encoder.named_parameters()}


@pytest.mark.parametrize("mixer", SUMMARIES)
def test_training_equals_torch(mixer, triton_device):
    encoder = encoder_of(mixer, triton_device).eval()  # no dropout
    feats = torch.randn(3, 150, 80, device=triton_device)
    lengths = torch.tensor([150, 99, 7], device=triton_device)
    context = ChunkContext(torch.tensor([3, 8, 38]), torch.tensor([2, 0, 5])) if mixer == "fast" else ChunkContext(8, 1)
    results = []
    for backend in ("triton", "torch"):
        with K.preferred_backend(backend):
            results.append(run(encoder, feats, lengths, context))
    (mine, my_lengths, my_grads), (theirs, their_lengths, their_grads) = results
    assert torch.equal(my_lengths, their_lengths)
    assert_close_as(mine, theirs.double(), torch.float32)
    for name, grad in my_grads.items():
        torch.testing.assert_close(
            grad, their_grads[name], rtol=1e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_streaming_equals_torch(triton_device):
    encoder = encoder_of("fast", triton_device).eval()
    feats, context = torch.randn(2, 3 * 32, 80, device=triton_device), ChunkContext(8, 2)
    outs = []
    for backend in ("triton", "torch"):
        with K.preferred_backend(backend), torch.inference_mode():
            state, parts = encoder.init_state(2, context), []
            for chunk in feats.split(32, 1):
                out, _, state = encoder.step(chunk, torch.tensor([32, 32]).to(triton_device), state)
                parts.append(out)
            outs.append(torch.cat(parts, 1))
    torch.testing.assert_close(*outs, rtol=0, atol=2e-5)


def test_dropout_of_the_mixer_is_seeded(triton_device):
    encoder = encoder_of("fast", triton_device).train()
    feats, lengths = torch.randn(1, 60, 80, device=triton_device), torch.tensor([60], device=triton_device)
    outs = []
    with K.preferred_backend("triton"):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outs.append(encoder(feats, lengths, ChunkContext(4, 1))[0])
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def ops_of(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if "sumix" in str(node.target)}


def test_compiled_whole(triton_device):
    """torch.compile takes the encoder as one graph, in which our ops are single nodes, forwards and backwards."""
    from functorch.compile import make_boxed_func
    from torch._functorch.aot_autograd import aot_module_simplified

    found = set()

    def look(module, _):
        found.update(ops_of(module.graph))
        return make_boxed_func(module.forward)

    def backend(module, inputs):
        return aot_module_simplified(module, inputs, fw_compiler=look, bw_compiler=look)

    encoder = encoder_of("fast", triton_device).eval()
    feats, lengths = torch.randn(2, 64, 80, device=triton_device), torch.tensor([64, 40], device=triton_device)
    with K.preferred_backend("triton"):
        expected, _, grads = run(encoder, feats, lengths, ChunkContext(4, 1))
        compiled = torch.compile(encoder, fullgraph=True, backend=backend)
        out, _ = compiled(feats, lengths, ChunkContext(4, 1))
        assert torch.equal(out, expected)
        encoder.zero_grad()
        out.square().mean().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name])
    for op in ("chunk_summary", "merge_chunks", "chunk_conv1d"):
        assert any(op in name and "backward" not in name for name in found), (op, found)
        assert any(f"{op}_backward" in name for name in found), (op, found)


def test_exported_whole(triton_device):
    class Encode(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, feats, lengths):
            return self.encoder(feats, lengths, ChunkContext(4, 1))

    encode = Encode(encoder_of("fast", triton_device).eval())
    feats, lengths = torch.randn(2, 64, 80, device=triton_device), torch.tensor([64, 40], device=triton_device)
    with K.preferred_backend("triton"):
        program = torch.export.export(encode, (feats, lengths))
        assert torch.equal(program.module()(feats, lengths)[0], encode(feats, lengths)[0])
    assert len(ops_of(program.graph)) == 3
