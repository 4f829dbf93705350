"""Devices, precision and distribution: one Lightning Fabric from the configuration."""

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sumix_kernels.training.choice import multiplies_bf16
from sumix_stream.config import TrainConfig
from sumix_stream.train.rendezvous import join_torchrun

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


class GradientAveraging(DDPStrategy):
    """DistributedDataParallel that exchanges gradients and nothing else.

    Every parameter has a gradient in every step, so none are searched for; a static graph would save that search only.
    Gradients are views into what is exchanged, a copy less. The buffers are the features' mean and deviation, the same
    everywhere; by default they would be sent around before each forward pass.

    Args:
        compress: round gradients to bf16 on the way. What arrives is the same on all processes.
    """

    def __init__(self, compress: bool) -> None:
        super().__init__(gradient_as_bucket_view=True, find_unused_parameters=False, broadcast_buffers=False)
        self._compress = compress

    def setup_module(self, module: Module) -> DistributedDataParallel:
        wrapped = super().setup_module(module)
        if self._compress:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped


def make_fabric(config: TrainConfig) -> Fabric:
    """A launched Fabric. Under torchrun the numbers of devices and nodes are torchrun's.

    Raises:
        ValueError: the strategy is not one of `STRATEGIES`.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(f"train.strategy must be one of {', '.join(STRATEGIES)}, got {config.strategy!r}")
    device_type = _device_type(config.accelerator)
    devices, num_nodes = processes_of_node(config, device_type), config.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["GROUP_WORLD_SIZE"])
    plugins = []
    if config.precision != "32-true":
        plugins.append(AutocastPrecision(config.precision, device_type))
    several = config.strategy == "ddp" or devices * num_nodes > 1
    fabric = Fabric(
        accelerator=config.accelerator,
        strategy=GradientAveraging(config.compress_gradients) if several else "auto",
        devices=devices,
        num_nodes=num_nodes,
        plugins=plugins,
    )
    if several:
        join_torchrun("nccl" if device_type == "cuda" else "gloo")
    fabric.launch()
    return fabric


def processes_of_node(config: TrainConfig, device_type: str) -> int:
    """Without torchrun: one for each device, or those that share a CPU's cores."""
    return config.cpu_processes if device_type == "cpu" and config.devices == 1 else config.devices


def _device_type(accelerator: str) -> str:
    if accelerator in ("cpu", "mps"):
        return accelerator
    if accelerator == "auto" and not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return "cuda"


def how_bf16_is_computed(device_type: str) -> tuple[int, str] | None:
    """A level of the log and what to say of bf16-mixed: on a CPU its kind decides what is rounded. None on others."""
    if device_type != "cpu":
        return None
    if multiplies_bf16():
        text = "bf16: products of layers and joiner by compiled functions, whose sums are fp32; others by PyTorch's"
        return logging.INFO, text
    return logging.WARNING, (
        "this processor does not multiply bfloat16 (AVX512_BF16), or Numba is missing: bf16-mixed takes PyTorch's "
        "operators, many times as long as train.precision 32-true, which round more than compiled products do"
    )
