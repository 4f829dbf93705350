"""However many processes share the steps, the run is the same one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from math import prod
from pathlib import Path

import pytest
import torch
from conftest import assert_close_as
from torch.nn.utils.rnn import pad_sequence
from train import division_run, ranks
from train.division_run import RUNS, STEP_BATCHES

from sumix_stream.config import LossConfig, TrainConfig
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.losses import loss_weights
from sumix_stream.train.division import batches_per_process, dropout_seed, frame_shares
from sumix_stream.train.precision import make_fabric
from sumix_stream.train.step import BatchBackward, Objective

TESTS = Path(__file__).resolve().parent.parent
# Sums of the same fp32 numbers in another order, six updates long.
LOSS_TOLERANCE = 1e-6  # relative
WEIGHT_TOLERANCE = 4e-6  # a two-hundredth of the smallest step that the optimiser takes


def launch(folder: Path, processes: int, *runs: str) -> None:
    ranks.launch(TESTS / "train" / "division_run.py", processes, folder, *runs, log=folder / "log")


def measures(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line]


def weights(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Of the first process, when all have the same."""
    first, *others = (torch.load(folder / f"rank{rank}.pt") for rank in range(processes))
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())
    return first


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((value - b[name]).abs().max().item() for name, value in a.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process: folder, weights."""
    top = tmp_path_factory.mktemp("alone")
    return top / "straight", division_run.train(top, "straight").model.state_dict()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    top = tmp_path_factory.mktemp("processes")
    launch(top, 4, "straight")
    return top


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    top = tmp_path_factory.mktemp("two")
    launch(top, 2, "straight", "begun", "compressed")
    return top


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_compute_what_one_computes(alone, processes, request):
    folder = request.getfixturevalue({2: "two", 4: "four"}[processes]) / "straight"
    for name in ("loss", "grad_norm", "seconds"):
        assert measures(folder, name) == pytest.approx(measures(alone[0], name), rel=LOSS_TOLERANCE)
    pruned = [[parts["pruned"] for parts in measures(of, "parts")] for of in (folder, alone[0])]
    assert pruned[0] == pytest.approx(pruned[1], rel=LOSS_TOLERANCE)
    assert largest_difference(weights(folder, processes), alone[1]) < WEIGHT_TOLERANCE


@pytest.mark.slow
def test_processes_of_a_cpu_start_each_other(alone, tmp_path):
    """`train.cpu_processes`, without torchrun."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "train" / "division_run.py"), str(tmp_path), "cores"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert measures(tmp_path / "cores", "loss") == pytest.approx(measures(alone[0], "loss"), rel=LOSS_TOLERANCE)
    assert largest_difference(weights(tmp_path / "cores", 2), alone[1]) < WEIGHT_TOLERANCE


@pytest.mark.slow
def test_one_goes_on_where_two_stopped(alone, two, tmp_path):
    shutil.copytree(two / "continued", tmp_path / "continued")
    trainer = division_run.train(tmp_path, "continued")
    folder = tmp_path / "continued"
    assert measures(folder, "loss") == pytest.approx(measures(alone[0], "loss"), rel=LOSS_TOLERANCE)
    assert largest_difference(trainer.model.state_dict(), alone[1]) < WEIGHT_TOLERANCE
    assert "drawn anew" not in (folder / "train.log").read_text()


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_and_nothing_else_but_the_frames(two):
    size = sum(value.numel() for name, value in weights(two / "straight", 2).items() if "feature_" not in name)
    events = json.loads((two / "continued" / "exchanged.json").read_text())
    gradients = [index for index, event in enumerate(events) if event == ["gloo:all_reduce", [[size]]]]
    assert len(gradients) == RUNS["begun"][1]  # one a step, though each process has two batches
    sizes = [prod(shape) for _, shapes in events[gradients[0] + 1 :] for shape in shapes]
    assert sum(sizes) - size * (len(gradients) - 1) < 0.02 * size  # frames, votes, measures; no buffers, no weights


@pytest.mark.slow
def test_compressed_gradients_stay_the_same_everywhere(alone, two):
    folder = two / "compressed"
    assert measures(folder, "loss") == pytest.approx(measures(alone[0], "loss"), rel=1e-3)
    assert 1e-5 < largest_difference(weights(folder, 2), alone[1]) < 1e-2  # rounded indeed


@pytest.mark.parametrize("mixer", ["attention", "fast", "full", "lite", "expdecay"])
def test_every_parameter_has_a_gradient_whatever_the_context(mixer):
    """So averaging never searches for those without; one that had none would stop all processes."""
    kind = {"mixer": "attention"} if mixer == "attention" else {"summary_variant": mixer}
    encoder = replace(division_run.SMALL.encoder, **kind)
    model = build_model(replace(division_run.SMALL, encoder=encoder), division_run.VOCAB_SIZE).train()
    batch = next(division_run.Loader(0, 1).epoch_batches(0, skip=3))
    for context in (ChunkContext.full(), ChunkContext(4, 0), ChunkContext(2, None)):
        for lengths in (batch.feat_lengths, batch.feat_lengths.clamp(max=0)):  # no frame: nothing to align
            model.zero_grad()
            loss = model(
                batch.feats, lengths, batch.tokens, batch.token_lengths, context, loss_weights(0, LossConfig())
            )
            loss.total.backward()
            assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_another_number_of_batches_is_said_to_draw_the_epoch_anew(tmp_path, monkeypatch):
    division_run.train(tmp_path, "begun")
    monkeypatch.setattr(division_run, "STEP_BATCHES", 2 * STEP_BATCHES)
    division_run.train(tmp_path, "continued")
    log = (tmp_path / "continued" / "train.log").read_text()
    assert "a step now takes 8 batches over all processes, not 4: epoch 0 is drawn anew" in log


def test_batches_of_a_step_count_as_if_they_were_one(tmp_path):
    """Of 2, 3, 4 and 1 utterances, with unlike lengths: the gradient of all ten in one batch."""
    still = replace(division_run.SMALL, encoder=replace(division_run.SMALL.encoder, dropout=0.0))
    still = replace(still, predictor=replace(still.predictor, dropout=0.0, token_dropout=0.0))
    recipe = division_run.recipe_of(tmp_path, 1, {"precision": "32-true"})
    fabric = make_fabric(recipe.train)
    batches = list(islice(division_run.Loader(0, 1).epoch_batches(0), 1, 5))
    whole = replace(
        batches[0],
        feats=pad_sequence([row for batch in batches for row in batch.feats], batch_first=True),
        tokens=pad_sequence([row for batch in batches for row in batch.tokens], batch_first=True),
        feat_lengths=torch.cat([batch.feat_lengths for batch in batches]),
        token_lengths=torch.cat([batch.token_lengths for batch in batches]),
        ids=[name for batch in batches for name in batch.ids],
    )

    def gradients(batches):
        model = build_model(still, division_run.VOCAB_SIZE).train()
        backward = BatchBackward(fabric, fabric.setup(Objective(model)), model, recipe)
        shares = frame_shares(batches, model.timebase, fabric)
        for batch, share in zip(batches, shares, strict=True):
            backward(batch, ChunkContext(4, 1), loss_weights(0, recipe.loss), share=share, sync=True, step=1)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert [len(batch) for batch in batches] == [2, 3, 4, 1]
    assert_close_as(gradients(batches), gradients([whole]), torch.float32)


def test_batches_of_a_step_are_divided_evenly_or_not_at_all():
    config = TrainConfig(accumulate=3)
    assert [batches_per_process(config, world) for world in (1, 5)] == [3, 3]
    config = replace(config, step_batches=12)
    assert [batches_per_process(config, world) for world in (1, 4, 6, 12)] == [12, 3, 2, 1]
    with pytest.raises(ValueError, match=r"train\.step_batches must be .*processes, 5, got 12: run 1, 2, 3, 4, 6, 12"):
        batches_per_process(config, 5)


def test_no_two_batches_share_their_dropout():
    seeds = {dropout_seed(seed, step, number) for seed in (0, 1) for step in range(20) for number in range(20)}
    assert len(seeds) == 800
