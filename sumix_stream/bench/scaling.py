"""What data-parallel training costs beyond one device, on paper: from bytes, bandwidths and single-device step times.

W processes of one GPU each, G to a node, n = W / G nodes, B bytes of gradients, t the time of a step on one GPU.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sumix_stream.config import PRESETS
from sumix_stream.tasks.transducer.model import Transducer

BUCKET_BYTES = 25 * 2**20  # of DistributedDataParallel; a step's last bucket finds no backward pass to hide behind


@dataclass(frozen=True)
class Cluster:
    """Bandwidths are of one direction, in bytes a second. Everything here is an assumption until it is measured."""

    gpus: int = 8  # G, of a node
    within: float = 360e9  # of a GPU inside its node: 80 % of NVLink 4's 450 GB/s
    between: float = 45e9  # of a whole node: 90 % of one 400 Gb/s port
    within_latency: float = 3e-6  # seconds a hop
    between_latency: float = 10e-6
    spread: float = 0.02  # standard deviation of a process's step time over its mean
    backward: float = 2 / 3  # share of a step during which gradients can be exchanged


CONFORMERS = [name for name, config in PRESETS.items() if config.encoder.kind == "conformer"]


def parameters(preset: str, vocab_size: int) -> int:
    """Trainable parameters of a preset."""
    with torch.device("meta"):
        model = Transducer(PRESETS[preset], vocab_size)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def all_reduce_seconds(num_bytes: float, world: int, cluster: Cluster, algorithm: str) -> float:
    """Reduce-scatter within nodes, all-reduce between them by `ring` or `tree`, all-gather within; nothing overlaps.

    Within: (G - 1) / G of B leaves each GPU, twice. Between: a node sends 2 (n - 1) / n of B in a ring, 2 B in a
    (double binary) tree, whose depth grows with log n only.
    """
    gpus, nodes = min(world, cluster.gpus), math.ceil(world / cluster.gpus)
    seconds = 2 * (gpus - 1) * (num_bytes / gpus / cluster.within + cluster.within_latency)
    if nodes == 1:
        return seconds
    if algorithm == "ring":
        between = 2 * (nodes - 1) * (num_bytes / nodes / cluster.between + cluster.between_latency)
    elif algorithm == "tree":
        between = 2 * (num_bytes / cluster.between + math.log2(nodes) * cluster.between_latency)
    else:
        raise ValueError(f"algorithm must be ring or tree, got {algorithm!r}")
    return seconds + between


def exposed_seconds(num_bytes: float, step_seconds: float, world: int, cluster: Cluster) -> float:
    """All-reduce that the backward pass does not hide: what is longer than it, and the last bucket at least."""
    if world == 1:
        return 0.0

    def seconds(size: float) -> float:
        return min(all_reduce_seconds(size, world, cluster, algorithm) for algorithm in ("ring", "tree"))

    last = seconds(min(num_bytes, BUCKET_BYTES))
    return max(last, seconds(num_bytes) - cluster.backward * step_seconds)


def efficiency(num_bytes: float, step_seconds: float, world: int, cluster: Cluster) -> float:
    """t / (t (1 + s sqrt(2 ln W)) + exposed): the slowest of W processes, then what is left of the all-reduce."""
    slowest = step_seconds * (1 + cluster.spread * math.sqrt(2 * math.log(world)))
    return step_seconds / (slowest + exposed_seconds(num_bytes, step_seconds, world, cluster))


def loader_rate(batch_seconds: float, step_seconds: float, cluster: Cluster) -> float:
    """Audio hours an hour that a node's loaders must deliver."""
    return cluster.gpus * batch_seconds / step_seconds


def report(
    cluster: Cluster,
    worlds: Sequence[int],
    assumed: Sequence[float],
    measured: Mapping[str, float],
    *,
    vocab_size: int,
    batch_seconds: float,
    epoch_hours: float,
) -> str:
    """The tables of SCALING.md. `assumed` and `measured` (by preset): seconds of a step on one GPU."""
    sizes = {preset: parameters(preset, vocab_size) for preset in CONFORMERS}
    first = [
        [name, f"{n / 1e6:.1f}", f"{4 * n / 1e6:.0f}", f"{2 * n / 1e6:.0f}", math.ceil(4 * n / BUCKET_BYTES)]
        for name, n in sizes.items()
    ]
    large, many = sizes["large"], [world for world in worlds if world > 1]
    second = [
        [f"large, {kind}", algorithm]
        + [f"{1e3 * all_reduce_seconds(width * large, world, cluster, algorithm):.1f}" for world in many]
        for kind, width in (("fp32", 4), ("bf16", 2))
        for algorithm in ("ring", "tree")
    ]
    steps = [(name, seconds, "measured") for name, seconds in measured.items()]
    steps += [(name, None, "not measured") for name in CONFORMERS if name not in measured]
    steps += [("large", seconds, "assumption") for seconds in assumed]
    third, fourth = [], []
    for name, seconds, origin in steps:
        row = [name, origin if seconds is None else f"{1e3 * seconds:g} ({origin})"]
        if seconds is None:
            third.append([*row, *("" for _ in many)])
            continue
        pairs = [[efficiency(width * sizes[name], seconds, world, cluster) for world in many] for width in (4, 2)]
        third.append([*row, *(f"{100 * a:.0f} / {100 * b:.0f}" for a, b in zip(*pairs, strict=True))])
        fourth.append([*row, f"{loader_rate(batch_seconds, seconds, cluster):,.0f}"])
    audio = f"{batch_seconds:g} s of audio"
    hours = [world * batch_seconds / 3600 for world in worlds]
    fifth = [
        ["audio hours a step", *(f"{value:.2f}" for value in hours)],
        [f"steps in {epoch_hours:g} h", *(f"{epoch_hours / value:,.0f}" for value in hours)],
    ]
    return "\n\n".join(
        (
            _table(("preset", "parameters, M", "MB a step, fp32", "MB a step, bf16", "buckets"), first),
            "All-reduce, ms, by GPUs:\n\n" + _table(("gradients", "algorithm", *map(str, many)), second),
            "Efficiency, % (gradients in fp32 / bf16), by GPUs:\n\n"
            + _table(("preset", "step on one GPU, ms", *map(str, many)), third),
            f"Loaders of a node of {cluster.gpus} GPUs, {audio} a batch:\n\n"
            + _table(("preset", "step on one GPU, ms", "audio hours an hour"), fourth),
            f"The step itself, {audio} a GPU, by GPUs:\n\n" + _table(("", *map(str, worlds)), fifth),
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
