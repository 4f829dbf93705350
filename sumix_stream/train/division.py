"""How a step is divided among processes, so that its result does not depend on it.

A step takes W x A batches of the epoch, W processes each A in turn: batch i of rank r is number i W + r of the step.
That number, not the rank, seeds its dropout; its context is the step's; and its loss counts by its share of the frames
of all. So W processes that accumulate A batches compute what one computes that accumulates W x A, up to rounding.
"""

import random
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from sumix_stream.config import TrainConfig
from sumix_stream.data.batching.loader import Batch
from sumix_stream.timebase import Timebase


def batches_per_process(config: TrainConfig, world_size: int) -> int:
    """Batches that each process accumulates for a step: `train.accumulate`, or its part of `train.step_batches`.

    Raises:
        ValueError: `world_size` processes cannot share `step_batches` evenly.
    """
    if config.step_batches is None:
        return config.accumulate
    if config.step_batches % world_size:
        whole = [n for n in range(1, config.step_batches + 1) if config.step_batches % n == 0]
        raise ValueError(
            f"train.step_batches must be a multiple of the number of processes, {world_size}, got "
            f"{config.step_batches}: run {', '.join(map(str, whole))} processes, or use another number of batches"
        )
    return config.step_batches // world_size


def dropout_seed(seed: int, step: int, number: int) -> int:
    """Seed of the dropout of batch `number` of a step, whichever process computes it and however often it resumed."""
    return random.Random(f"dropout {seed} {step} {number}").getrandbits(63)


def frame_shares(batches: Sequence[Batch], timebase: Timebase, fabric: Fabric) -> Tensor:
    """What the mean loss a frame of each of a process's batches counts for in the step, (A,) on the device.

    W times its part of the encoder frames of the step: the gradients, which are averaged over the processes, are then
    those of the loss a frame of all batches, as if they were one. With even weights instead, a frame of a short batch
    would count for more. The device waits for the sum over the processes, the host does not (in `Fabric.all_reduce` it
    would, at a barrier).
    """
    frames = torch.stack([timebase.num_encoder_frames(batch.feat_lengths).sum() for batch in batches])
    frames = frames.to(fabric.device, non_blocking=True)
    total = frames.sum()
    if fabric.world_size > 1:
        distributed.all_reduce(total)
    return frames * fabric.world_size / total.clamp(min=1)
