"""Memory that does not suffice: errors are injected where torch would raise them, by the size of what is computed."""

import json
from dataclasses import replace

import pytest
import torch
from train.beeps import SMALL
from train.fakes import FakeBatch, FakeLoader, FakeModel, FakeTokenizer, fake_recipe
from train.ranks import launch

from sumix_stream.config import LossConfig, SpecAugmentConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data import Batch
from sumix_stream.tasks.base import TaskLoss
from sumix_stream.tasks.build import build_model
from sumix_stream.train.loop import Trainer
from sumix_stream.train.precision import make_fabric
from sumix_stream.train.step import BatchBackward, Objective, is_out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
WEIGHTS = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}
STILL = replace(  # no dropout
    SMALL, encoder=replace(SMALL.encoder, dropout=0.0), predictor=replace(SMALL.predictor, dropout=0.0)
)


class _Limit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            raise CUDA
        return gradient, None


class LimitedModel(FakeModel):
    """No dropout; fails in `where` (forward, backward) for batches of more than `fits` frames with padding."""

    def __init__(self, fits=None, where="forward", error=CUDA):
        super().__init__()
        self.fits, self.where, self.error = fits, where, error
        self.dropout = torch.nn.Identity()
        self.sizes = []

    def forward(self, feats, feat_lengths, tokens, token_lengths, context, weights, loss):
        frames = feats.shape[0] * feats.shape[1]
        self.sizes.append(frames)
        self.contexts.append(context)
        fails = self.fits is not None and frames > self.fits
        if fails and self.where == "forward":
            raise self.error
        valid = torch.arange(feats.shape[1]) < feat_lengths[:, None]
        hidden = self.norm(self.inner(feats))
        hidden = _Limit.apply(hidden, fails and self.where == "backward")
        each = (((self.outer(hidden).squeeze(-1) - feats.mean(-1) - 1) ** 2) * valid).sum(1)
        frames = (feat_lengths // 4).sum()  # encoder frames are fewer than feature frames, and not in proportion
        total = ((weights["simple"] + weights["pruned"]) * each).sum() / frames
        return TaskLoss(total, {"simple": each, "pruned": each}, feat_lengths > 0, frames)


def ragged_batch(*lengths):
    generator = torch.Generator().manual_seed(3)
    feats = torch.randn(len(lengths), max(lengths), 80, generator=generator)
    ones = torch.ones(len(lengths), dtype=torch.long)
    ids = [f"u{i}" for i in range(len(lengths))]
    return FakeBatch(0, feats, torch.tensor(lengths), ones[:, None], ones, ids, 1.0)


def backward_of(model, tmp_path, **train):
    recipe = fake_recipe(tmp_path, **train)
    fabric = make_fabric(recipe.train)
    wrapped = fabric.setup(Objective(model))
    return BatchBackward(fabric, wrapped, model, recipe)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("fits, parts", [(48, 2), (32, 3), (20, 4)])
def test_the_gradient_in_parts_is_that_of_the_whole(tmp_path, caplog, where, error, fits, parts):
    batch = ragged_batch(12, 4, 16, 8, 8)
    whole, limited = LimitedModel(), LimitedModel(fits, where, error)
    earlier = ragged_batch(4)  # accumulated before, and to be left as it is
    for model in (whole, limited):
        run = backward_of(model, tmp_path)
        run(earlier, ChunkContext.full(), WEIGHTS, share=0.25, sync=False, step=3)
        loss, ids = run(batch, ChunkContext.full(), WEIGHTS, share=0.5, sync=True, step=3)
        if model is whole:
            expected = loss
    assert sorted(ids) == batch.ids
    assert loss.num_frames == expected.num_frames
    torch.testing.assert_close(loss.total, expected.total)
    order = [ids.index(name) for name in batch.ids]
    torch.testing.assert_close(loss.parts["pruned"][order], expected.parts["pruned"])
    assert loss.usable.dtype == torch.bool
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(limited)[name], value)
    message = caplog.records[-1].getMessage()
    assert f"done in {parts} part(s)" in message and "step 3: out of memory" in message
    assert "u2 0.16 s, 1 tokens; u0 0.12 s" in message and "data.max_duration (now 120 s" in message
    assert "data.max_lattice (now " in message


def test_an_utterance_that_does_not_fit_alone_is_left_out_by_id(tmp_path, caplog):
    whole, limited = LimitedModel(), LimitedModel(fits=12)
    backward_of(whole, tmp_path)(ragged_batch(4, 8, 12), ChunkContext.full(), WEIGHTS, share=1, sync=True, step=1)
    batch = ragged_batch(4, 8, 12, 40)
    batch.feats[:3, :12] = ragged_batch(4, 8, 12).feats
    _, ids = backward_of(limited, tmp_path)(batch, ChunkContext.full(), WEIGHTS, share=1, sync=True, step=1)
    assert sorted(ids) == ["u0", "u1", "u2"]
    assert "left out: u3." in caplog.text
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(limited)[name], value)


def test_nothing_fits(tmp_path, caplog):
    model = LimitedModel(fits=3)
    loss, ids = backward_of(model, tmp_path)(
        ragged_batch(4, 8), ChunkContext.full(), WEIGHTS, share=1, sync=True, step=1
    )
    assert ids == [] and loss.total == 0 and loss.parts["simple"].shape == (0,) and loss.num_frames == 0
    assert "no part of it fitted, left out: u1, u0" in caplog.text
    assert all(not value.any() for value in gradients(model).values())


def test_each_utterance_keeps_its_context(tmp_path):
    model = LimitedModel(fits=20)
    context = ChunkContext(torch.tensor([8, 9, 10]), torch.tensor([0, 1, 2]))
    backward_of(model, tmp_path)(ragged_batch(12, 20, 4), context, WEIGHTS, share=1, sync=True, step=1)
    parts = [(part.chunk_size.tolist(), part.left_context.tolist()) for part in model.contexts[1:]]
    assert parts == [([9, 8], [1, 0]), ([9], [1]), ([8], [0]), ([10], [2])]


def test_other_errors_pass():
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_loss_scale_of_fp16_is_in_every_part(tmp_path):
    whole, limited = LimitedModel(), LimitedModel(fits=20)
    for model in (whole, limited):
        run = backward_of(model, tmp_path, precision="16-mixed")
        run(ragged_batch(12, 4, 16), ChunkContext.full(), WEIGHTS, share=1e-3, sync=True, step=1)
    assert gradients(whole)["outer.bias"].abs() > 1  # scaled
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(limited)[name], value, rtol=2e-2, atol=2e-2 * float(value.abs().max()))


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    def run(name, model):
        recipe = fake_recipe(tmp_path / name, max_steps=3, accumulate=2)
        trainer = Trainer(recipe, model, FakeTokenizer(), FakeLoader())
        trainer.fit()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines], (tmp_path / name / "train.log").read_text()

    expected, _ = run("whole", LimitedModel())
    losses, log = run("parts", LimitedModel(fits=12, where="backward"))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert log.count("WARNING step") == 6


@pytest.mark.parametrize("cr_ctc_scale", [0.0, 0.2])
def test_the_real_model_in_parts(tmp_path, cr_ctc_scale):
    def gradients_of(most):
        model = build_model(STILL, 7)
        whole = model.forward

        def forward(feats, *rest):
            if len(feats) > most:
                raise CUDA
            return whole(feats, *rest)

        model.forward = forward
        recipe = fake_recipe(tmp_path)
        masks = SpecAugmentConfig(num_time_masks=0, num_freq_masks=0)
        recipe = replace(recipe, loss=LossConfig(cr_ctc_scale=cr_ctc_scale, cr_ctc_masks=masks))
        fabric = make_fabric(recipe.train)
        run = BatchBackward(fabric, fabric.setup(Objective(model)), model, recipe)
        loss, ids = run(batch, ChunkContext(4, 1), WEIGHTS, share=1.0, sync=True, step=1)
        return loss.total, ids, gradients(model)

    generator = torch.Generator().manual_seed(0)
    lengths, token_lengths = torch.tensor([90, 130, 61, 100, 77]), torch.tensor([4, 6, 1, 3, 2])
    tokens = torch.randint(1, 7, (5, 6), generator=generator)
    feats = torch.randn(5, 130, 80, generator=generator)
    ids = ["a", "b", "c", "d", "e"]
    batch = Batch(0, feats, lengths, tokens, token_lengths, ids, [""] * 5, 4.58)
    total, _, expected = gradients_of(most=5)
    in_parts, ids, actual = gradients_of(most=2)
    assert ids == ["b", "d", "a", "e", "c"]
    torch.testing.assert_close(in_parts, total)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)


RUN = """
import sys
from pathlib import Path
import torch
from train.fakes import FakeLoader, FakeTokenizer, fake_recipe
from train.test_out_of_memory import LimitedModel
from sumix_stream.train.loop import Trainer
from sumix_stream.train.precision import make_fabric

torch.set_num_threads(1)
out, plan = Path(sys.argv[1]), sys.argv[2].split(",")  # where each step fails on rank 1
recipe = fake_recipe(out, max_steps=4, log_interval=1, accumulate=2)
fabric = make_fabric(recipe.train)

class Model(LimitedModel):
    batches = 0
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Parameter(torch.zeros(300_000))  # alone fills the bucket that is averaged first

    def forward(self, feats, *args):
        if len(feats) == 3:
            self.where = plan[self.batches // 2]
            self.batches += 1
        self.fits = 7 if fabric.global_rank == 1 and self.where != "nowhere" else None
        loss = super().forward(feats, *args)
        return loss._replace(total=loss.total + 1e-3 * self.last.sum())

class Loader(FakeLoader):
    def epoch_batches(self, epoch, skip=0):
        for batch in super().epoch_batches(epoch, skip):
            batch.feats += fabric.global_rank
            yield batch

model = Model()
trainer = Trainer(recipe, model, FakeTokenizer(), Loader(), None, fabric)
trainer.fit()
torch.save(model.state_dict(), out / f"rank{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_a_process_out_of_memory_keeps_in_step_with_the_other(tmp_path):
    """In forward, and half way through the backward pass, both where it averages and where it accumulates."""
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def run(*plan):
        out = tmp_path / plan[0]
        out.mkdir()
        log = launch(script, 2, str(out), ",".join(plan), log=out / "log")
        first, second = (torch.load(out / f"rank{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        return first, losses, log

    expected, expected_losses, _ = run(*["nowhere"] * 4)
    weights, losses, log = run("backward", "forward", "nowhere", "backward")
    for step, count in enumerate((2, 2, 0, 2), 1):
        assert log.count(f"rank 1: step {step}: out of memory") == count
    assert log.count("done in 3 part(s)") == 6
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
