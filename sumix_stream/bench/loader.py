"""How fast batches come: audio hours an hour of the loader alone, and where its CPU time goes."""

import contextlib
import csv
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from lhotse.augmentation import Resample, Speed

from sumix_kernels.bench.run import environment
from sumix_stream.config import RecipeConfig
from sumix_stream.data.augment import noise, rooms, waveforms
from sumix_stream.data.augment.spec_augment import SpecAugment
from sumix_stream.data.batch_fbank import BatchFbank
from sumix_stream.data.batching import index
from sumix_stream.data.batching import loader as batches
from sumix_stream.data.batching.loader import TrainLoader
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import Tokenizer

REST = "tokens, padding, the rest"
# What is timed -> the part it counts as; time in what it calls counts there.
PARTS: dict[tuple[Any, str], str] = {
    (index.CutIndex, "read"): "cuts from their manifest",
    (batches, "load_samples"): "audio: read and decode",
    (Speed, "__call__"): "speed and sample rate",
    (Resample, "__call__"): "speed and sample rate",
    (batches, "spoken"): "joining and pauses",
    (rooms, "draw_room"): "rooms",
    (rooms, "impulse_response"): "rooms",
    (rooms, "reverberate"): "rooms",
    (waveforms.WaveformAugment, "_noise"): "noise",
    (noise, "mix"): "noise",
    (waveforms, "telephone"): "telephone",
    (BatchFbank, "forward"): "filter bank",
    (SpecAugment, "__call__"): "SpecAugment",
}


class Throughput(NamedTuple):
    """Of one number of workers."""

    workers: int
    hours_per_hour: float  # of audio, once every worker has given a batch
    cpu_seconds: float  # for an hour of audio, of all processes
    first_batch: float  # seconds until it is there: workers started, one batch made


class Result(NamedTuple):
    """What was measured. `parts`: CPU seconds for an hour of audio, of one process."""

    hours: float  # of audio in the batches that were timed
    num_batches: int
    open_seconds: float  # manifests opened, and indexed if they were not
    plan_seconds: float  # of an epoch
    parts: dict[str, float]
    throughputs: list[Throughput]


def run(
    recipe: RecipeConfig, out: Path, *, workers: Sequence[int], num_batches: int, needed: Sequence[float], command: str
) -> Path:
    """Measure a recipe's loader; write loader.csv and loader.md to `out` and return the latter.

    Args:
        workers: numbers of worker processes; 0 = none.
        num_batches: batches for each measurement, the last ones of epoch 0.
        needed: audio hours an hour that a training step could take, for which cores are counted.

    Raises:
        ValueError: an impossible number, or data that cannot be used.
    """
    if not workers or min(workers) < 0 or num_batches < 2 or not needed or min(needed) <= 0:
        raise ValueError(
            "workers must be numbers of at least 0, batches at least 2, hours an hour above 0; got "
            f"{list(workers)}, {num_batches}, {list(needed)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    result = measure(recipe, workers, num_batches)
    env = environment("cpu", command)
    with (out / "loader.csv").open("w", newline="") as file:
        rows = [{"figure": "part", "name": name, "cpu_seconds": value} for name, value in result.parts.items()]
        rows += [{"figure": "throughput", **t._asdict()} for t in result.throughputs]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, [*columns, *env], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **env} for row in rows)
    path = out / "loader.md"
    path.write_text("\n".join(_markdown(recipe, result, needed, env)) + "\n")
    return path


def open_loader(recipe: RecipeConfig) -> TrainLoader:
    """The recipe's training batches, as one process of one gets them."""
    tokenizer = Tokenizer.load(recipe.tokenizer.path)
    return TrainLoader(recipe.data, recipe.data.train_paths, tokenizer, Timebase(), seed=recipe.train.seed)


def measure(recipe: RecipeConfig, workers: Sequence[int], num_batches: int) -> Result:
    """See `run`. Everything in this process runs on one thread, as it does in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = time.perf_counter()
        loader = open_loader(recipe)
        opened = time.perf_counter()
        total = len(loader.plan(0))
        planned = time.perf_counter()
        skip = max(0, total - num_batches)
        if total - skip <= max(1, *workers):
            raise ValueError(
                f"{max(workers)} workers need more batches than that to be timed, there are {total - skip}"
            )
        parts, hours = _parts(loader, skip)
        throughputs = [_throughput(loader, skip, number) for number in workers]
        return Result(hours, total - skip, opened - begin, planned - opened, parts, throughputs)
    finally:
        torch.set_num_threads(threads)


def _parts(loader: TrainLoader, skip: int) -> tuple[dict[str, float], float]:
    """CPU seconds for an hour of audio by part, and the hours, in this process."""
    loader.config = replace(loader.config, num_workers=0)
    next(loader.epoch_batches(0, skip))  # what is loaded, compiled or cached at the first use
    spent: dict[str, float] = defaultdict(float)
    with _timed(spent):
        begin = time.thread_time()
        hours = sum(batch.seconds for batch in loader.epoch_batches(0, skip)) / 3600
        spent[REST] = time.thread_time() - begin - sum(spent.values())
    return {name: spent[name] / hours for name in dict.fromkeys([*PARTS.values(), REST])}, hours


@contextlib.contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds this thread's CPU time in PARTS to `spent`, each without what the others take inside it."""
    inner: list[float] = []  # of the calls that are open, time in timed calls within

    def timed(function: Callable, part: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - begin
                spent[part] += whole - inner.pop()
                if inner:
                    inner[-1] += whole

        return call

    with contextlib.ExitStack() as stack:
        for (owner, name), part in PARTS.items():
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part)))
        yield


def _throughput(loader: TrainLoader, skip: int, workers: int) -> Throughput:
    loader.config = replace(loader.config, num_workers=workers)
    warm_up = max(1, workers)
    cpu, begin, seconds, came = _cpu_seconds(), time.perf_counter(), [], []
    for batch in loader.epoch_batches(0, skip):
        seconds.append(batch.seconds)
        came.append(time.perf_counter())
    rate = sum(seconds[warm_up:]) / (came[-1] - came[warm_up - 1])
    return Throughput(workers, rate, 3600 * (_cpu_seconds() - cpu) / sum(seconds), came[0] - begin)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _markdown(recipe: RecipeConfig, result: Result, needed: Sequence[float], env: dict[str, str]) -> list[str]:
    data, whole = recipe.data, sum(result.parts.values())
    settings = {
        "speed": list(data.speed_perturb) or "none",
        "joined": data.concatenate.probability,
        "pauses": data.pause.probability,
        "rooms": data.reverb.probability,
        "noise": data.noise.probability,
        "telephone": data.telephone,
    }
    lines = [
        "# loader",
        "",
        f"{result.num_batches} batches of at most {data.max_duration:g} s, {result.hours:.2f} hours of audio in all. "
        f"Shares of utterances: {', '.join(f'{name} {value}' for name, value in settings.items())}. "
        "What has been read before comes out of the system's cache, not from the disk.",
        "",
        f"{env['machine']}, load average {env['load']} after, {os.cpu_count()} cores to share; {env['versions']}; "
        f"{env['date']}.",
        "",
        f"    {env['command']}",
        "",
        f"Manifests opened in {result.open_seconds:.2f} s (indexed, where they were not), an epoch planned in "
        f"{result.plan_seconds:.2f} s.",
        "",
        "| part | CPU s for an audio hour | share |",
        "|---|--:|--:|",
        *(f"| {name} | {value:.2f} | {value / whole:.0%} |" for name, value in result.parts.items()),
        f"| all | {whole:.2f} | |",
        "",
        "Rates are of audio hours an hour, once every worker has given a batch; the consumer does nothing.",
        "",
        "| workers | audio hours / hour | CPU s for an audio hour, all processes | first batch, s |",
        "|--:|--:|--:|--:|",
        *(
            f"| {t.workers} | {t.hours_per_hour:.0f} | {t.cpu_seconds:.2f} | {t.first_batch:.2f} |"
            for t in result.throughputs
        ),
        "",
        "Cores that the loader keeps busy where training takes so many audio hours an hour (assumed, not measured):",
        "",
        "| audio hours / hour | cores |",
        "|--:|--:|",
        *(f"| {rate:g} | {rate * max(t.cpu_seconds for t in result.throughputs) / 3600:.1f} |" for rate in needed),
    ]
    return lines
