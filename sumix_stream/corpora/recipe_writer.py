"""A recipe for prepared data: sizes, steps and augmentation by the hours and by the machine, each with its reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sumix_stream.config import PRESETS
from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora.stages import default_jobs, replace_text


class Machine(NamedTuple):
    """What training may use."""

    cores: int
    gpu: str = ""  # its name; "": none
    gpu_gib: float = 0.0  # memory of it
    bf16: bool = False  # the GPU computes in bf16

    @classmethod
    def this(cls) -> "Machine":
        import torch

        cores = default_jobs()
        if not torch.cuda.is_available():
            return cls(cores)
        gpu = torch.cuda.get_device_properties(0)
        return cls(cores, gpu.name, gpu.total_memory / 2**30, torch.cuda.is_bf16_supported())

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' * (self.cores != 1)}"
        return f"{self.gpu}, {self.gpu_gib:.0f} GiB, and {cores}" if self.gpu else f"{cores}, no GPU"


class Plan(NamedTuple):
    """The choices that others depend on."""

    preset: str
    batch_seconds: float
    processes: int  # each with batches of its own
    accumulate: int
    steps: int
    passes: float  # over the training audio
    step_seconds: float  # of audio


# On a GPU. (hours below, preset, seconds of a batch, batches of a step, passes over the audio); the larger presets as
# the recipes of egs/ have them.
_BY_HOURS = (
    (2, "tiny", 120.0, 1, 100),
    (30, "small", 300.0, 1, 80),
    (500, "medium", 300.0, 2, 60),
    (3000, "large", 150.0, 4, 35),
    (float("inf"), "large", 150.0, 4, 12),
)
_GIB = {"tiny": 4, "small": 10, "medium": 20, "large": 36}  # for these batches; in half of it, half the batch
_CPU_SECONDS = 60.0  # of a step, which processes share: docs/results/training-speed.md
_CPU_MOST_SECONDS = 120.0  # of a step, if utterances are long
_SLOWED = 1.2  # an utterance may be so much longer after a change of speed
_CPU_HOURS = 150.0  # of audio heard, for each core: about a day of training
_LEAST_STEPS = 300


def plan_for(train_hours: float, machine: Machine, longest: float = 30.0) -> Plan:
    """The sizes of a run for so many hours of training speech."""
    if not machine.gpu:
        preset, accumulate = "tiny", 1
        processes = max(1, min(machine.cores, int(_CPU_MOST_SECONDS / (_SLOWED * longest))))
        batch = max(_CPU_SECONDS / processes, _SLOWED * longest if processes > 1 else 2 * longest)
        passes = 100 if train_hours < 2 else 80
        passes = min(passes, max(3.0, _CPU_HOURS * machine.cores / train_hours))
    else:
        row = next(row for row in _BY_HOURS if train_hours < row[0])
        _, preset, batch, accumulate, passes = row
        while machine.gpu_gib < _GIB[preset] / 2 and preset != "tiny":
            preset = list(PRESETS)[list(PRESETS).index(preset) - 1]
        if machine.gpu_gib < _GIB[preset]:
            batch, accumulate = batch / 2, accumulate * 2
        batch, processes = max(batch, 2 * longest), 1
    step_seconds = batch * processes * accumulate
    steps = max(_LEAST_STEPS, round(passes * train_hours * 3600 / step_seconds, -2 if train_hours > 1 else -1))
    passes = steps * step_seconds / 3600 / train_hours
    return Plan(preset, batch, processes, accumulate, int(steps), passes, step_seconds)


def write_recipe(
    path: Path,
    summary: dict[str, Any],
    tokens: str,
    machine: Machine,
    learning_rate: Callable[[int, float], float],
    max_seconds: float = 30.0,
) -> Plan:
    """Write a recipe for the folder that `path` lies in, every line with its reason.

    Args:
        tokens: what the tokenizer is, in words.
        learning_rate: peak for a width of the encoder and seconds of audio a step.
    """
    hours = summary["parts"]["train"]["seconds"] / 3600
    plan = plan_for(hours, machine, summary["longest"])
    replace_text(path, "\n".join(_lines(plan, hours, summary, tokens, machine, learning_rate, max_seconds)) + "\n")
    load_recipe(path)  # what cannot be read is found here
    return plan


def _lines(
    plan: Plan,
    hours: float,
    summary: dict[str, Any],
    tokens: str,
    machine: Machine,
    learning_rate: Callable[[int, float], float],
    max_seconds: float,
) -> list[str]:
    dim = PRESETS[plan.preset].encoder.dim
    rate = float(f"{learning_rate(dim, plan.step_seconds):.2g}")
    valid = summary["parts"]["valid"].get("utterances", 0)
    little, much = hours < 5, hours >= 50
    every = int(max(50, round(plan.steps / 20, -2 if plan.steps > 4000 else -1)))
    speakers = summary["parts"]["train"].get("speakers", 0)
    heard = f"{plan.passes:.0f} passes over {hours:.2f} hours, {plan.steps * plan.step_seconds / 3600:.0f} hours heard"
    whole = max_seconds <= plan.batch_seconds
    workers = min(8, max(1, machine.cores - 1)) if machine.gpu else 0
    lines = [
        f"# {hours:.2f} hours of training speech, {speakers or 'unknown'} speakers; made for {machine}.",
        "# bin/train --help explains every key. What you change here stays: bin/prepare leaves a changed recipe alone.",
        "model:",
        f"  preset: {plan.preset} # of {', '.join(PRESETS)}: what {hours:.2f} hours fill and this machine trains",
        f"  predictor: {{token_dropout: {0.3 if little else 0.1}}} # so that the encoder carries what was said"
        + (": with little text the predictor learns it by heart" if little else ""),
        "loss:",
        f"  warmup_steps: {min(2000, max(100, plan.steps // 10))} # a tenth of the run, to find an alignment",
        f"  ctc_scale: {1.0 if little else 0.5 if not much else 0.3} # helps to align; the less speech, the more",
        "data:",
        "  train_cuts: [cuts_train.jsonl.gz] # Lhotse cuts; several manifests may stand here",
        f"  valid_cuts: [{'cuts_valid.jsonl.gz' if valid else ''}] # {valid} utterances, decoded every valid_interval",
        f"  max_duration: {plan.batch_seconds:g} # seconds of audio in a batch, padding included: "
        + (f"for {machine.gpu_gib:.0f} GiB" if machine.gpu else "more is no faster on a CPU"),
        f"  num_buckets: {max(1, min(30, summary['parts']['train']['utterances'] // 50))} # of similar length",
        f"  num_workers: {workers} # processes that read audio"
        + ("" if workers else ": on a CPU they would take cores from training"),
        f"  max_utterance: {min(max_seconds, plan.batch_seconds):g} # seconds; "
        + ("--max-seconds of bin/prepare" if whole else "the longest here fits, slowed down"),
        "  speed_perturb: [0.9, 1.1] # three voices of each speaker",
        "  gain: [-10.0, 6.0] # dB: microphones and distances differ",
        f"  concatenate: {{probability: {0.3 if little else 0.1}, max_duration: {max(max_seconds, 12.0):g}}}"
        " # in a stream a sentence begins anywhere",
        f"  pause: {{probability: {0.3 if little else 0.1}, seconds: [0.1, {2.0 if little else 5.0}]}}"
        " # streams have pauses that cut utterances have not",
    ]
    if not little:
        lines.append("  noise: {probability: 0.3, snr: [10.0, 30.0]} # simulated; recordings of noise may be named")
    if much:
        lines.append("  reverb: {probability: 0.2, rt60: [0.1, 0.5]} # rooms")
    masks = (1, 15, 1, 15) if hours < 2 else (4, 40, 2, 27)
    lines += [
        "  spec_augment: # masks of time and frequency; "
        + f"as in egs/{'mini, which has two hours' if hours < 2 else 'librispeech'}",
        f"    num_time_masks: {masks[0]}",
        f"    max_time_mask: {masks[1]} # feature frames of 10 ms",
        f"    num_freq_masks: {masks[2]}",
        f"    max_freq_mask: {masks[3]} # of 80 bins",
        "tokenizer:",
        f"  path: tokenizer.model # {tokens}",
        "train:",
        "  exp_dir: exp # checkpoints, log and report.html go there",
        "  chunk_size: dynamic # one model for whole utterances and for streams of any chunk",
        f"  max_steps: {plan.steps} # {heard}",
        f"  learning_rate: {rate:g} # peak, for {dim} channels and {plan.step_seconds:g} s a step; see --lr-find",
        f"  step_batches: {plan.processes * plan.accumulate} # of all processes: {plan.step_seconds:g} s of audio",
        "  average: growing # of the weights, over a tenth of the run: better than the last step's",
        f"  valid_interval: {every} # steps: twenty times in the run",
        f"  save_interval: {every} # steps; a run that was stopped goes on from the last save",
    ]
    if not machine.gpu and plan.processes > 1:
        lines.append(f"  cpu_processes: {plan.processes} # that share a step: a core each, faster than threads")
    if machine.bf16:
        lines.append("  precision: bf16-mixed # this GPU computes in bf16")
    return lines
