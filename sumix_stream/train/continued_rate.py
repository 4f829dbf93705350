"""The learning rate of a run whose number of steps was changed when it resumed.

The schedule is a function of the step and of `train.max_steps` (`optim.learning_rate_at`): with twice the steps, a run
that had come to the end of its half cosine would find itself in the middle of another, at many times the rate. So it
goes on from the rate where it stood.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sumix_stream.config import ConfigError, RecipeConfig, TrainConfig
from sumix_stream.config.reader import from_dict
from sumix_stream.train.optim import learning_rate_at, warmup_steps
from sumix_stream.train.resume import TrainerState

_JUMP = 0.02  # share of the rate, above which it is one


def rate_from(began: Sequence[float] | None, step: int, peak: float, config: TrainConfig, step_seconds: float) -> float:
    """Rate of training step `step` (from 0), where the schedule was changed before step `began[0]`.

    From there, at `began[1]` times the peak, it goes on: up to the peak where the schedule is still warming up, else
    down half a cosine to the last step's. None: the schedule was never changed.
    """
    if began is None or step < began[0]:
        return learning_rate_at(step, peak, config, step_seconds)
    first, share = began
    warmup = warmup_steps(config, step_seconds)
    if first < warmup:
        if step >= warmup:
            return learning_rate_at(step, peak, config, step_seconds)
        return peak * (share + (1 - share) * (step + 1 - first) / (warmup - first))
    progress = min(1.0, (step + 1 - first) / max(1, config.max_steps - first))
    final = config.final_lr_fraction
    return peak * (final + (share - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def go_on_smoothly(
    state: TrainerState, saved: Mapping[str, Any], recipe: RecipeConfig, peak: float, *, step_seconds: float
) -> tuple[list[float] | None, str | None]:
    """`rate_from`'s beginning for a run that resumes at `state` with another recipe than the `saved` one, and a line
    about it; both None where nothing has to be bridged.

    A peak rate that was changed on purpose (train.learning_rate) is followed at once.
    """
    config = recipe.train
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    try:
        before = from_dict(TrainConfig, {k: v for k, v in (saved.get("train") or {}).items() if k in names})
        seconds = float((saved.get("data") or {})["max_duration"]) * state.step_batches
    except (ConfigError, KeyError, TypeError, ValueError):
        return state.rate_from, None  # a recipe of another release
    if before.learning_rate != config.learning_rate:
        return None, None
    stood = rate_from(state.rate_from, state.step, 1.0, before, seconds)
    comes = rate_from(state.rate_from, state.step, 1.0, config, step_seconds)
    if abs(comes - stood) <= _JUMP * stood or state.step >= config.max_steps:
        return state.rate_from, None
    told = (
        "train.max_steps, the warm-up or the audio of a step has changed: the learning rate goes on from "
        f"{stood * peak:.2e}, where it stood, and not from {comes * peak:.2e}, where a run of these settings would be; "
        "train.learning_rate sets another peak"
    )
    return [state.step, stood], told
