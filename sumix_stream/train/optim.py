"""Optimiser and learning-rate schedule."""

import math

import torch
from torch import nn

from sumix_stream.config import TrainConfig


def default_learning_rate(encoder_dim: int) -> float:
    """Peak rate of AdamW when none is set: 2e-3 for 144 channels, falling with the square root of the width."""
    return 2e-3 * math.sqrt(144 / encoder_dim)


def learning_rate_at(step: int, peak: float, config: TrainConfig) -> float:
    """Rate of training step `step` (from 0): linear warm-up to `peak`, then half a cosine to a fraction of it.

    The warm-up takes `warmup_fraction * max_steps` steps; the last step has `final_lr_fraction * peak`. A function of
    the step alone, so that a resumed run needs no scheduler state.
    """
    warmup = round(config.warmup_fraction * config.max_steps)
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
