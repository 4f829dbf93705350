"""Devices, precision and distribution: one Lightning Fabric from the configuration."""

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch.optim import Optimizer

from sumix_stream.config import TrainConfig

STRATEGIES = ("auto", "ddp")  # those that keep whole weights on each device, as checkpoints do


class AutocastPrecision(MixedPrecision):
    """Autocast and nothing else: what goes in and comes out of the model keeps its type.

    Fabric's own plugin rounds every input to half precision, log-mel features among them, whose differences matter
    after the mean is taken off; and it refuses to clip gradients of a fused optimiser, which torch allows.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)


def make_fabric(config: TrainConfig) -> Fabric:
    """A launched Fabric. Under torchrun the numbers of devices and nodes are torchrun's.

    Raises:
        ValueError: the strategy is not one of `STRATEGIES`.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(f"train.strategy must be one of {', '.join(STRATEGIES)}, got {config.strategy!r}")
    device_type = _device_type(config.accelerator)
    devices, num_nodes = config.devices, config.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["GROUP_WORLD_SIZE"])
    plugins = []
    if config.precision != "32-true":
        plugins.append(AutocastPrecision(config.precision, device_type))
    fabric = Fabric(
        accelerator=config.accelerator,
        strategy=config.strategy,
        devices=devices,
        num_nodes=num_nodes,
        plugins=plugins,
    )
    fabric.launch()
    return fabric


def _device_type(accelerator: str) -> str:
    if accelerator in ("cpu", "mps"):
        return accelerator
    if accelerator == "auto" and not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return "cuda"
