"""Forward and backward of a batch; one that does not fit into memory is done in parts, with the same gradient.

Across processes the averaging of gradients is part of the backward pass (DistributedDataParallel), and every process
must take part in it equally often. So a process that runs out of memory, even half way through that backward pass,
computes in parts, by itself, the gradients it still owes, and then hands them in as if they had come in one pass: the
others notice a delay and nothing else.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from sumix_stream.config import RecipeConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data.batching.loader import Batch
from sumix_stream.tasks.base import TaskLoss, Weights
from sumix_stream.timebase import Timebase
from sumix_stream.train.metrics import LOGGER

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class Objective(nn.Module):
    """What Fabric wraps: averages the gradients of whatever is computed with the model, not only of its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[nn.Module], Any]) -> Any:
        return compute(self.model)


class BatchBackward:
    """Adds the gradient of a batch's loss to the parameters, in one piece or in parts.

    Args:
        wrapped: `Objective(model)` after `fabric.setup`.
    """

    def __init__(self, fabric: Fabric, wrapped: nn.Module, model: nn.Module, recipe: RecipeConfig) -> None:
        self._fabric, self._wrapped, self._model, self._recipe = fabric, wrapped, model, recipe
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._forward_done = False
        self._done: set[Tensor] = set()  # parameters to whose gradient the pass under way has added
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._done.add)

    def __call__(
        self, batch: Batch, context: ChunkContext, weights: Weights, *, share: Tensor | float, sync: bool, step: int
    ) -> tuple[TaskLoss, list[str]]:
        """Gradients of `share * total`, averaged over the processes if `sync`; the loss, and the utterances in it.

        Where memory does not suffice, the log names the utterances and the setting to lower, and the batch is halved
        until its parts fit; an utterance that does not fit alone is left out. `step` is for that message.
        """
        self._done.clear()
        with self._fabric.no_backward_sync(self._wrapped, enabled=not sync):
            try:
                return self._whole(batch, context, weights, share), batch.ids
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # Only here are the frames of the failed pass gone, and what they held.
            parts = _Parts(self._fabric, self._model, self._recipe, batch, context, weights)
            owed = [parameter for parameter in self._parameters if parameter not in self._done]
            gradients = parts.gradients(owed, share)
            self._hand_in(owed, gradients)
        LOGGER.warning(f"step {step}: {parts.describe(reason)}")
        return parts.loss(), parts.ids

    def _whole(self, batch: Batch, context: ChunkContext, weights: Weights, share: Tensor | float) -> TaskLoss:
        self._forward_done = False
        inputs = batch_inputs(batch)
        loss: TaskLoss = self._wrapped(lambda model: model(*inputs, context, weights, self._recipe.loss))
        self._forward_done = True
        self._fabric.backward(_nan_if_not_finite(loss.total) * share)
        return loss

    def _hand_in(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Add gradients to the parameters by a backward pass, which is what averages them over the processes."""
        if not parameters:
            return

        def hand_in(_: nn.Module) -> Tensor:
            return _HandIn.apply(gradients, *parameters)

        # A forward pass through the wrapper prepares the averaging: once, however the first attempt ended.
        self._fabric.backward(hand_in(self._model) if self._forward_done else self._wrapped(hand_in))


class _HandIn(torch.autograd.Function):
    """A zero whose gradients by the parameters are those given."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


class _Parts:
    """A batch computed in parts that fit."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        recipe: RecipeConfig,
        batch: Batch,
        context: ChunkContext,
        weights: Weights,
    ) -> None:
        self._fabric, self._model, self._recipe = fabric, model, recipe
        self._batch, self._context, self._weights = batch, context, weights
        self._losses: list[TaskLoss] = []
        self.ids: list[str] = []
        self._left_out: list[str] = []

    def gradients(self, parameters: Sequence[Tensor], share: Tensor | float) -> list[Tensor]:
        """Of `share` times the mean loss a frame over what fitted, by each of the parameters."""
        batch = self._batch
        free_memory()
        torch.manual_seed(torch.initial_seed())  # dropout must not depend on how far the failed pass came
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        all_frames = batch.feat_lengths.sum()
        lengths = batch.feat_lengths.tolist()
        rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])  # the long together: less padding
        waiting = _halves(rows) if len(rows) > 1 else [rows]
        while waiting:
            rows = waiting.pop(0)
            if self._add(rows, sums, parameters, share, all_frames):
                continue
            free_memory()
            if len(rows) > 1:
                waiting[:0] = _halves(rows)
            else:
                self._left_out.append(batch.ids[rows[0]])
        # Until here each part weighed as many feature frames; the loss counts encoder frames of what was not left out.
        factor = all_frames / self._num_frames().clamp(min=1)
        return [total.mul_(factor) for total in sums]

    def loss(self) -> TaskLoss:
        """The loss of the whole, as if computed in one piece; 0 when nothing fitted."""
        num_frames = self._num_frames()
        nothing = torch.zeros(0, device=self._fabric.device)
        if not self._losses:
            return TaskLoss(nothing.sum(), dict.fromkeys(self._weights, nothing), nothing.bool(), num_frames)
        names = self._losses[0].parts
        parts = {name: torch.cat([loss.parts[name] for loss in self._losses]) for name in names}
        weighted = sum(loss.total * loss.num_frames for loss in self._losses)
        usable = torch.cat([loss.usable for loss in self._losses])
        return TaskLoss(weighted / num_frames.clamp(min=1), parts, usable, num_frames)

    def describe(self, reason: str) -> str:
        batch = self._batch
        text = f"out of memory ({reason}) on {describe_batch(batch, self._model.timebase)}"
        text += f"; done in {len(self._losses)} part(s)" if self._losses else "; no part of it fitted"
        if self._left_out:
            text += f", left out: {', '.join(self._left_out)}"
        return f"{text}. {remedy(self._recipe)}"

    def _num_frames(self) -> Tensor:
        zero = torch.zeros((), dtype=torch.long, device=self._fabric.device)
        return sum((loss.num_frames for loss in self._losses), zero)

    def _add(
        self,
        rows: list[int],
        sums: list[Tensor],
        parameters: Sequence[Tensor],
        share: Tensor | float,
        all_frames: Tensor,
    ) -> bool:
        """Add the gradients of some utterances; False when they do not fit."""
        inputs, context = batch_inputs(self._batch, rows), _context_of(self._context, rows)
        try:
            loss, gradients = gradients_of(
                self._fabric, self._model, self._recipe, inputs, context, self._weights, parameters, share / all_frames
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient
        self._losses.append(loss)
        self.ids += [self._batch.ids[row] for row in rows]
        return True


def batch_inputs(batch: Batch, rows: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """feats, feat_lengths, tokens, token_lengths of a batch, or of some of its utterances without needless padding."""
    if rows is None:
        return batch.feats, batch.feat_lengths, batch.tokens, batch.token_lengths
    index = torch.tensor(rows, device=batch.feats.device)
    feat_lengths, token_lengths = batch.feat_lengths[index], batch.token_lengths[index]
    feats = batch.feats[index, : int(feat_lengths.max())]
    return feats, feat_lengths, batch.tokens[index, : max(1, int(token_lengths.max()))], token_lengths


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a pass failed for want of memory, on a GPU or a CPU; torch has one class for the first only."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def reason_of(error: BaseException) -> str:
    """The first words of an error."""
    return str(error).partition("\n")[0][:160]


def free_memory() -> None:
    """Give back what a failed pass held: the graph's reference cycles, and blocks too small for what comes."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def describe_batch(batch: Batch, timebase: Timebase, most: int = 20) -> str:
    """`3 utterance(s), 35.2 s with padding (a 12.00 s, 30 tokens; b ...)`: the longest first, `most` of them."""
    lengths, tokens = batch.feat_lengths.tolist(), batch.token_lengths.tolist()
    seconds = [timebase.seconds(length * timebase.frame_shift) for length in lengths]
    order = sorted(range(len(batch.ids)), key=lambda row: -lengths[row])
    named = "; ".join(f"{batch.ids[row]} {seconds[row]:.2f} s, {tokens[row]} tokens" for row in order[:most])
    more = f"; and {len(order) - most} more" if len(order) > most else ""
    return f"{len(order)} utterance(s), {max(seconds) * len(order):.1f} s with padding ({named}{more})"


def remedy(recipe: RecipeConfig) -> str:
    """What to set so that it does not happen again."""
    data, train = recipe.data, recipe.train
    choices = [f"data.max_duration (now {data.max_duration:g} s; raise train.accumulate, now {train.accumulate})"]
    choices.append(f"data.max_utterance (now {data.max_utterance:g} s)")
    choices.append(f"data.max_lattice (now {data.max_lattice or 'without limit'})")
    choices.append(f"loss.prune_range (now {recipe.loss.prune_range})")
    on_gpu = torch.cuda.is_available() and train.accelerator != "cpu"  # a CPU keeps activations in fp32
    half = "; or set train.precision to bf16-mixed" if on_gpu and train.precision == "32-true" else ""
    return f"To avoid it lower {', or '.join(choices)}{half}"


def gradients_of(
    fabric: Fabric,
    model: nn.Module,
    recipe: RecipeConfig,
    inputs: tuple[Tensor, ...],
    context: ChunkContext,
    weights: Weights,
    parameters: Sequence[Tensor],
    weight: Tensor | float = 1.0,
) -> tuple[TaskLoss, Sequence[Tensor | None]]:
    """Detached loss, and the gradients of the loss summed over frames times `weight`, leaving `.grad` alone.

    The model is called without its wrapper and no gradient is accumulated, so nothing is averaged over processes.
    """
    with fabric.autocast():
        loss: TaskLoss = model(*inputs, context, weights, recipe.loss)
    objective = _nan_if_not_finite(loss.total) * (loss.num_frames * weight)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None:
        objective = scaler.scale(objective)
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True) if parameters else ()
    return loss.detach(), gradients


def _nan_if_not_finite(total: Tensor) -> Tensor:
    """An infinite loss can have finite gradients: nan makes all of them nan, so that the update is skipped."""
    return total * torch.where(total.isfinite(), 1.0, torch.nan)


def _context_of(context: ChunkContext, rows: list[int]) -> ChunkContext:
    values = (context.chunk_size, context.left_context)
    return ChunkContext(*(value[rows] if isinstance(value, Tensor) else value for value in values))


def _halves(rows: list[int]) -> list[list[int]]:
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]
