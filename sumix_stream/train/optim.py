"""Optimiser and learning-rate schedule."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from sumix_stream.config import RecipeConfig, TrainConfig

FINE_TUNING = 0.2  # of the default rate: what is known already must not be forgotten in the first steps
STEADY_SECONDS = 30.0  # of audio a step: egs/digits and egs/mini bear twice the default rate with so few


def default_learning_rate(encoder_dim: int, step_seconds: float, peak_rate: float = 1e-3) -> float:
    """Peak rate of AdamW when none is set, for steps of `step_seconds` of audio.

    At 144 channels it is `peak_rate`, the encoder's: 1e-3, with attention 7e-4. At 2e-3 some runs on five hours of
    LibriSpeech stand still before they align, and others do not; attention's scores grow there until each frame sees
    one other (egs/librispeech/RESULTS.md; arXiv 2303.06296).

    It falls with the square root of the width, and below STEADY_SECONDS with that of the seconds: where a step's noise
    outweighs its gradient, the rate of adaptive optimisers goes with the square root of the batch (Malladi and others,
    arXiv 2205.10287), and beyond, the surface bounds it and not the noise (McCandlish and others, arXiv 1812.06162). So
    more audio a step does not raise it: 5e-4 at 512 channels and 600 s, where others train conformers with 8e-4 to
    1.4e-3. The 1e-3 is tried with steps of 60 s (five hours). `bin/train --lr-find` measures what a recipe bears.
    """
    return peak_rate * math.sqrt(144 / encoder_dim) * math.sqrt(min(1.0, step_seconds / STEADY_SECONDS))


def peak_rate(recipe: RecipeConfig, model: nn.Module, step_seconds: float) -> tuple[float, str | None]:
    """The peak of a run, `train.learning_rate` or a default; and a warning where fine-tuning has a fresh model's."""
    config = recipe.train
    if config.learning_rate is not None and not config.init_from:
        return config.learning_rate, None
    default = default_learning_rate(recipe.model.encoder.dim, step_seconds, model.encoder.peak_rate)
    if config.init_from:
        default *= FINE_TUNING
    told = None
    if config.learning_rate is not None and config.learning_rate > 2 * default:
        times = config.learning_rate / default
        told = (
            f"train.learning_rate {config.learning_rate:g} is {times:.0f} times the default of fine-tuning "
            f"({default:.2g}, which null takes): the first steps may undo what {config.init_from} has learnt"
        )
    return config.learning_rate or default, told


def warmup_steps(config: TrainConfig, step_seconds: float) -> int:
    """Steps of the warm-up: `warmup_hours` of audio where they are set, else `warmup_fraction` of the run."""
    if config.warmup_hours is not None:
        return min(config.max_steps, round(config.warmup_hours * 3600 / step_seconds))
    return round(config.warmup_fraction * config.max_steps)


def learning_rate_at(step: int, peak: float, config: TrainConfig, step_seconds: float) -> float:
    """Rate of training step `step` (from 0): linear warm-up to `peak`, then half a cosine to a fraction of it.

    The warm-up takes `warmup_steps`, the last step has `final_lr_fraction * peak`. A function of the step alone, so
    that a resumed run needs no scheduler state.
    """
    warmup = warmup_steps(config, step_seconds)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, config.max_steps - warmup))
    final = config.final_lr_fraction
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights that decay, and those that must not (norms, biases, embeddings, other vectors)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay, keep = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or id(parameter) in embeddings or "bias" in name.rpartition(".")[2]
        (keep if plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, fused: its kernels read `found_inf`, so that a bad update is skipped on the device, unseen by the host."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8, fused=True)


def frozen_parts(model: nn.Module, freeze: Mapping[str, int]) -> list[tuple[int, list[nn.Parameter]]]:
    """(steps, parameters) of the parts that stay as they are for so many steps.

    A part is a module's name (encoder, encoder.layers.0, predictor). Raises ValueError with the names that there are.
    """
    parts, names = [], [name for name, _ in model.named_modules() if name]
    for part, steps in freeze.items():
        if part not in names:
            top = ", ".join(name for name in names if "." not in name)
            raise ValueError(f"train.freeze names {part!r}; the model has {top} and their parts")
        parts.append((steps, list(model.get_submodule(part).parameters())))
    if parts and {p for _, group in parts for p in group} == set(model.parameters()):
        raise ValueError(f"train.freeze names every part of the model ({', '.join(freeze)}): leave one out to train")
    return parts
