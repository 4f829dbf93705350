"""How long a recipe's training will take on this machine: some steps are made and timed, and thrown away."""

import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from sumix_stream.config import RecipeConfig
from sumix_stream.context import ChunkContext
from sumix_stream.corpora.preparation import read_stats
from sumix_stream.data import TrainLoader, load_cuts
from sumix_stream.tasks.base import build_for, load_outputs, make_task
from sumix_stream.train.optim import make_optimizer
from sumix_stream.train.precision import make_fabric, processes_of_node
from sumix_stream.train.step import batch_inputs

TIMED = 2  # batches, after one that is not
_CONTEXT = ChunkContext(16, 4)


class Estimate(NamedTuple):
    """Of a run whose processes each have a device, or their part of the cores."""

    steps: int
    step_seconds: float  # of computing
    device: str

    def __str__(self) -> str:
        total = self.steps * self.step_seconds
        return (
            f"{self.steps} steps of {self.step_seconds:.2f} s on this machine ({self.device}), as busy as it is now: "
            f"about {spoken(total)}, validation not counted"
        )


def spoken(seconds: float) -> str:
    """A long time as people say it: `40 minutes`, `7.5 hours`, `3.2 days`."""
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 20 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def estimate(recipe: RecipeConfig) -> Estimate:
    """Time of a step with the recipe's own batches. A tenth more or less is chance; nothing is written but the index.

    Raises:
        ValueError: nothing can be trained on.
        RuntimeError: a step fails, as for want of memory.
    """
    config = recipe.train
    task = make_task(recipe.task)
    tokenizer = load_outputs(task, recipe.tokenizer.path)
    model = build_for(task, recipe.model, tokenizer, config.seed)
    weights = task.weights(config.max_steps, recipe.loss)
    model.set_normalisation(*read_stats(Path(recipe.tokenizer.path).with_name("stats.npz")))
    alone = replace(config, devices=1, cpu_processes=1, num_nodes=1, strategy="auto")
    device = make_fabric(alone).device
    processes = processes_of_node(config, device.type)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    loader = TrainLoader(recipe.data, load_cuts(recipe.data.train_paths), tokenizer, model.timebase, seed=config.seed)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed")
    times = []
    began = time.perf_counter()
    for batch in islice(loader.epoch_batches(0), TIMED + 1):
        with bf16:
            loss = model(*batch_inputs(batch.to(device)), _CONTEXT, weights, recipe.loss).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    timed = times[1:] or times  # the first compiles
    threads = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() != 1)}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    if processes > 1:
        name += f" of each of {processes} processes"
    batches = config.accumulate if config.step_batches is None else -(-config.step_batches // processes)
    return Estimate(config.max_steps, batches * sum(timed) / len(timed), name)
