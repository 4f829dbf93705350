"""The training objective, the contexts of dynamic chunk training, and the run."""

from dataclasses import dataclass, field

from sumix_stream.config.checks import (
    ConfigError,
    path_field,
    require,
    require_choice,
    require_chunk_size,
    require_range,
)
from sumix_stream.config.data import SpecAugmentConfig
from sumix_stream.timebase import Timebase, format_duration

SHORTEST_CHUNK, LONGEST_CHUNK = 0.32, 1.28  # seconds, of dynamic chunk training (arXiv 2409.07165)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training objective (arXiv 2206.13236 for the pruned loss)."""

    prune_range: int = 5  # tokens that the pruned loss considers at each frame
    rnnt_type: str = "regular"  # regular | modified | constrained
    delay_penalty: float = 0.0  # nats for each frame that a token comes before the middle; above 0 emits earlier
    lm_only_scale: float = 0.25  # share of the predictor alone in the simple loss
    am_only_scale: float = 0.0  # share of the encoder alone in the simple loss
    simple_scale: float = 0.5  # final weight of the simple loss; starts at 1
    warmup_steps: int = 200  # steps over which simple_scale falls from 1 and the pruned scale rises from 0.1 to 1
    ctc_scale: float = 0.3  # weight of the CTC loss
    cr_ctc_scale: float = 0.0  # consistency of two views' CTC posteriors (arXiv 2410.05101: 0.2); twice the computing
    cr_ctc_masks: SpecAugmentConfig | None = None  # of a view, none before; null = data.spec_augment's, 2.5 x in time

    def __post_init__(self) -> None:
        require_range(self, "prune_range", 2)
        require_choice(self, "rnnt_type", ("regular", "modified", "constrained"))
        require_range(self, "delay_penalty simple_scale warmup_steps ctc_scale cr_ctc_scale", 0)
        one_clock = self.cr_ctc_masks is None or self.cr_ctc_masks.time_warp == 0
        require(self, "cr_ctc_masks", one_clock, "without time_warp: both views have one clock")
        require_range(self, "lm_only_scale am_only_scale", 0, 1)
        mixed = self.lm_only_scale + self.am_only_scale
        require(self, "am_only_scale", mixed < 1, f"below 1 - lm_only_scale ({1 - self.lm_only_scale:g})")


@dataclass(frozen=True)
class ChunkConfig:
    """Dynamic chunk training: the distribution contexts are drawn from (arXiv 2409.07165)."""

    full_probability: float = 0.4  # share of full context, without chunks
    min_chunk: int | None = None  # encoder frames; null = 320 ms
    max_chunk: int | None = None  # encoder frames; null = 1280 ms
    limited_left_probability: float = 0.75  # of the rest, share with limited left context
    min_left: int = 2  # chunks
    max_left: int = 32  # chunks
    per_utterance: bool = False  # draw one context for each utterance instead of one for the batch

    def __post_init__(self) -> None:
        require_range(self, "full_probability limited_left_probability", 0, 1)
        require_range(self, "min_chunk max_chunk", 1)
        if self.min_chunk is not None:
            require_range(self, "max_chunk", self.min_chunk)
        require_range(self, "min_left", 0)
        require_range(self, "max_left", self.min_left)

    def frames(self, timebase: Timebase) -> tuple[int, int]:
        """The shortest and the longest chunk in a model's encoder frames. Raises ConfigError for none between them."""
        least, most = (
            timebase.encoder_frames(seconds) if given is None else given
            for given, seconds in ((self.min_chunk, SHORTEST_CHUNK), (self.max_chunk, LONGEST_CHUNK))
        )
        if least > most:
            raise ConfigError(
                f"chunks.max_chunk must be at least chunks.min_chunk, got {most} after {least} encoder frames of "
                f"{format_duration(timebase.encoder_frame_seconds)}: give both"
            )
        return least, most


@dataclass(frozen=True)
class TrainConfig:
    """The run: budget, optimiser, precision, devices, what is logged and kept."""

    exp_dir: str = path_field("exp")  # folder for checkpoints, logs and the page
    seed: int = 0  # of weights, batches, augmentation, dropout
    init_from: str = path_field("")  # experiment or checkpoint to start from (fine-tuning), with a tokenizer of its own
    freeze: dict[str, int] = field(default_factory=dict)  # part: steps that it stays as it is, such as {encoder: 500}
    chunk_size: str = "dynamic"  # full | dynamic | 640ms | 0.64s | 16 (encoder frames)
    left_context: int | None = None  # chunks, when chunk_size is fixed; None = unlimited
    max_steps: int = 1000  # updates
    learning_rate: float | None = None  # peak; None = a default for the encoder's width and the seconds of a step
    warmup_fraction: float = 0.1  # of max_steps
    warmup_hours: float | None = None  # of audio, instead: stays when max_steps or the batches change
    final_lr_fraction: float = 0.05  # of the peak, at max_steps
    weight_decay: float = 0.01  # of AdamW
    clip_norm: float = 5.0  # norm to which gradients are scaled down
    accumulate: int = 1  # batches that each process takes for a step
    step_batches: int | None = None  # batches of a step over all processes, however many; instead of accumulate
    compress_gradients: bool = False  # several processes exchange gradients in bf16: half the bytes
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed
    accelerator: str = "auto"  # auto | cpu | gpu | cuda | mps
    devices: int = 1  # of each node
    cpu_processes: int = 1  # where there is no GPU, instead of devices: a core each trains faster than threads of one
    num_nodes: int = 1  # machines
    strategy: str = "auto"  # of Lightning Fabric, such as ddp
    log_interval: int = 20  # steps
    valid_interval: int = 500  # steps
    valid_chunk_size: str = "640ms"  # full | 640ms | 0.64s | 16 (encoder frames)
    valid_left_context: int | None = 4  # chunks; None = unlimited
    best_by: str = ""  # set of data.valid_cuts by whose error rate the best checkpoint goes; '' = the first
    save_interval: int = 500  # steps
    save_minutes: float | None = None  # save also when the last save is so long ago
    keep_best: int = 1  # checkpoints, by error rate
    keep_last: int = 2  # checkpoints; should the last one be damaged, the one before it serves
    average: str = "none"  # none | ema | growing: running average of the weights, for validation and recognition
    ema_decay: float = 0.999  # of ema: what the old average keeps each step
    average_age: float = 0.1  # of growing: mean age of the averaged weights, as a share of the steps so far
    try_worst_batches: int | None = None  # of the largest, before training; None = 3 on a GPU, none on a CPU
    max_bad_steps: int = 20  # consecutive steps with a non-finite loss or gradient before the run stops

    def __post_init__(self) -> None:
        require(self, "exp_dir", bool(self.exp_dir), "a folder")
        require_range(self, "seed left_context valid_left_context", 0)
        require(self, "freeze", all(steps >= 0 for steps in self.freeze.values()), "parts with steps of at least 0")
        require_chunk_size(self, "chunk_size", ("full", "dynamic"))
        require_chunk_size(self, "valid_chunk_size", ("full",))
        require_range(
            self, "max_steps accumulate devices cpu_processes num_nodes log_interval valid_interval save_interval", 1
        )
        require_range(self, "step_batches keep_best keep_last max_bad_steps", 1)
        require_choice(self, "average", ("none", "ema", "growing"))
        require_range(self, "warmup_hours", 0)
        require_range(self, "ema_decay", 0, 1, open_ends=True)
        require(self, "average_age", 0 < self.average_age <= 0.5, "above 0 and at most 0.5 (all steps alike)")
        require_range(self, "learning_rate clip_norm save_minutes", 0, open_ends=True)
        require_range(self, "try_worst_batches", 0)
        require_range(self, "warmup_fraction final_lr_fraction", 0, 1)
        require_range(self, "weight_decay", 0)
        require_choice(self, "precision", ("32-true", "bf16-mixed", "16-mixed"))
        require_choice(self, "accelerator", ("auto", "cpu", "gpu", "cuda", "mps"))
        require(self, "strategy", bool(self.strategy), "a Lightning Fabric strategy, such as auto or ddp")
