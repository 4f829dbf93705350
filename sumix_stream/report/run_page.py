"""The page and pictures of a run as training goes on, and facts about the machine. Nothing here stops a training."""

import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.tensorboard import SummaryWriter

from sumix_kernels.machine import instruction_set, processor
from sumix_stream.config import RecipeConfig
from sumix_stream.context import ChunkContext
from sumix_stream.report.pictures import Pictures
from sumix_stream.report.report import write_report
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class RunPage:
    """Of the first process. Faults (a full disk, audio that is gone) are named in the log, and training goes on.

    Args:
        context: the one that validation uses.
        board: receives the pictures too.
    """

    def __init__(
        self, exp_dir: Path, recipe: RecipeConfig, tokenizer: Tokenizer, context: ChunkContext, board: SummaryWriter
    ) -> None:
        self._exp_dir, self._recipe, self._tokenizer = exp_dir, recipe, tokenizer
        self._context, self._board = context, board
        self._pictures: Pictures | None = None

    def draw(self, model: Transducer, step: int) -> None:
        """Pictures of the validation set's first utterances by the model, which is in evaluation mode."""
        if self._recipe.task == "classification":
            return  # they are of tokens and their frames
        manifests = next(iter(self._recipe.valid_sets.values()), ())
        try:
            if self._pictures is None:
                self._pictures = Pictures(self._exp_dir, manifests, self._tokenizer, self._context, self._recipe.loss)
            for name, pixels in self._pictures.draw(model, step).items():
                self._board.add_image(name, pixels, step, dataformats="HWC")
        except Exception:
            log.warning("step %d: no pictures of utterances", step, exc_info=True)

    def write(self) -> None:
        """Write report.html from what the run has written by now."""
        try:
            write_report(self._exp_dir)
        except Exception:
            log.warning("%s: no page of the run", self._exp_dir, exc_info=True)


def setting_changes(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """`train.max_steps 6 -> 12` for each value that differs."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from setting_changes(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key} {before} -> {after}"


def system_facts(fabric: Fabric, model: torch.nn.Module) -> dict[str, Any]:
    """Device, versions and sizes, for the page."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {instruction_set()}"
    facts = {
        "device": f"{device.type}, {name}",
        "processes": fabric.world_size,
        "CPU cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads of a process": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "sumix-stream": version("sumix-stream"),
    }
    if commit := _commit():
        facts["commit"] = commit
    return facts


def _commit() -> str | None:
    """Of the checkout that this file lies in, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
