"""The training loop.

No step waits for the device: measures stay there until the next log interval, and an update whose gradient is not
finite is skipped by the fused optimiser itself, which reads a flag on the device. A loss that is not finite turns every
gradient of its process into nan, and the averaging of gradients spreads it, so that all processes skip the same steps
without a word more between them.
"""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from sumix_stream.config import RecipeConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.context import ChunkContext
from sumix_stream.data.batching.loader import Batch
from sumix_stream.encoders.chunking import ChunkSampler
from sumix_stream.report.run_page import RunPage, setting_changes, system_facts
from sumix_stream.tasks.base import TaskLoss, TaskModel, Validation, make_task
from sumix_stream.tasks.checkpoint import CheckpointError
from sumix_stream.tokenizer import Tokenizer
from sumix_stream.train import resume as run_state
from sumix_stream.train.agreement import Agreement
from sumix_stream.train.allocation import keep_freed_memory
from sumix_stream.train.averaging import WeightAverage
from sumix_stream.train.continued_rate import go_on_smoothly, rate_from
from sumix_stream.train.division import batches_per_process, dropout_seed, frame_shares
from sumix_stream.train.epochs import Loader, endless_batches
from sumix_stream.train.interrupt import Interrupts
from sumix_stream.train.measures import StepBuffer, StepReport, feature_frames
from sumix_stream.train.metrics import LOGGER, RunLog
from sumix_stream.train.modules import ModuleProbe
from sumix_stream.train.optim import frozen_parts, make_optimizer, peak_rate
from sumix_stream.train.precision import how_bf16_is_computed, make_fabric
from sumix_stream.train.resume import TrainerState
from sumix_stream.train.run_lock import one_run
from sumix_stream.train.step import BatchBackward, Objective
from sumix_stream.train.trial import try_batches
from sumix_stream.train.validation import NoErrorRate


class FitResult(NamedTuple):
    """How a run ended."""

    step: int  # steps done
    metrics: dict[str, float] | None  # of the last validation, fractions
    signum: int | None  # the signal that stopped it, None when it reached max_steps


class DivergenceError(ArithmeticError):
    """Too many steps in a row had a loss or gradient that is not finite; says what to change."""


class Trainer:
    """Trains the model of a task as a recipe says.

    Args:
        recipe: everything but the data; `train.exp_dir` receives checkpoints and logs.
        loader: of the training set, for this process (`fabric.global_rank` of `fabric.world_size`).
        validate: called with the model in evaluation mode, on the first process only; None = no validation.
        fabric: already launched; None makes one from the recipe.
        notes: lines for the log when training starts.

    Raises:
        ValueError: a chunk size is no whole number of encoder frames, or the strategy does not keep whole weights on
            each device.
    """

    def __init__(
        self,
        recipe: RecipeConfig,
        model: TaskModel,
        tokenizer: Tokenizer,
        loader: Loader,
        validate: Callable[[TaskModel], Validation] | None = None,
        fabric: Fabric | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        config = recipe.train
        self.recipe = recipe
        self.config = config
        self.exp_dir = Path(config.exp_dir)
        self.task = make_task(recipe.task)
        self.tokenizer = tokenizer
        self.loader = loader
        self.validate = validate
        self.notes = tuple(notes)
        self.fabric = fabric or make_fabric(config)
        self._accumulate = batches_per_process(config, self.fabric.world_size)
        self.model = model
        self.step_seconds = recipe.data.max_duration * self._accumulate * self.fabric.world_size
        self.peak_rate, self._rate_told = peak_rate(recipe, model, self.step_seconds)
        self._frozen = frozen_parts(model, config.freeze)
        self._contexts = self._fixed_context = None
        if config.chunk_size == "dynamic":
            self._contexts = ChunkSampler(recipe.chunks, config.seed, model.timebase)
        else:
            self._fixed_context = self._parse_context("chunk_size", config.left_context)
        self._valid_context = self._parse_context("valid_chunk_size", config.valid_left_context)
        self.optimizer = make_optimizer(model, config)
        self._statistics = run_state.statistics_of(model)
        self.state = TrainerState()
        self._metrics: dict[str, float] | None = None

    def fit(self, resume: bool = True) -> FitResult:
        """Train up to `train.max_steps`, from the last checkpoint in the experiment directory if `resume`.

        Without `resume` the outputs of an earlier run are moved to `previous-N`. SIGINT and SIGTERM, to any of several
        processes, finish the step (with several, the next), save, and return. A resumed run repeats what an
        uninterrupted one does, bit for bit on the CPU. A damaged checkpoint is put aside for the one before it.

        Raises:
            CheckpointError: no checkpoint can be read, or one cannot be written, or tokenizer or statistics are not
                those it was trained with.
            DivergenceError: `train.max_bad_steps` steps in a row were skipped. The last checkpoint stays.
            FolderInUse: another run trains in the experiment directory.
        """
        with one_run(self.fabric, self.exp_dir) as self._lock:
            return self._fit(resume)

    def _fit(self, resume: bool) -> FitResult:
        saved_recipe, damaged = None, []
        self.model.to(self.fabric.device)
        if self.fabric.device.type == "cpu":
            keep_freed_memory()
        self._average = None if self.config.average == "none" else WeightAverage(self.model, self.config)
        if resume:
            saved_recipe, damaged = self._restore()
        elif self.fabric.is_global_zero:
            run_state.set_aside(self.exp_dir)
        self.fabric.barrier()
        self._wrapped, self._fabric_optimizer = self.fabric.setup(Objective(self.model), self.optimizer)
        self._backward = BatchBackward(self.fabric, self._wrapped, self.model, self.recipe)
        self._agreement = Agreement(self.fabric)
        self._buffer = StepBuffer(self.fabric, tuple(self.task.weights(0, self.recipe.loss)))
        self._probe = ModuleProbe(self.model, self.config.clip_norm)
        begin = {"step": self.state.step, "max_steps": self.config.max_steps, "unusable": self.task.unusable}
        self._log = RunLog(self.exp_dir, self.fabric, **begin)
        self._page = RunPage(self.exp_dir, self.recipe, self.tokenizer, self._valid_context, self._log.board)
        try:
            with Interrupts() as interrupts:
                for message in damaged:
                    LOGGER.warning(f"a damaged checkpoint was put aside (*.damaged): {message}")
                self._announce(saved_recipe)
                self._try_worst_batches()
                signum = self._train(interrupts)
            if self.fabric.is_global_zero and self.validate is None and signum is None:
                self._page.write()
        finally:
            self._log.close()
        return FitResult(self.state.step, self._metrics, signum)

    def _train(self, interrupts: Interrupts) -> int | None:
        """Train to the end, or until a signal, which is returned; then all is saved."""
        config, state = self.config, self.state
        batches = self._buffer.timed(endless_batches(self.loader, self.state, self.fabric.world_size))
        self.model.train()
        saved_at = time.monotonic()
        while state.step < config.max_steps:
            self._step([next(batches) for _ in range(self._accumulate)])
            self._log.advance()
            overdue = config.save_minutes is not None and time.monotonic() - saved_at > 60 * config.save_minutes
            signum, overdue = self._agreement.vote(interrupts.signum or 0, overdue)
            done = state.step == config.max_steps
            validating = self.validate is not None and (done or state.step % config.valid_interval == 0)
            save = validating or done or overdue or state.step % config.save_interval == 0
            if save or signum or state.step % config.log_interval == 0:
                self._report()
            if validating and not signum:
                signum = self._validate(interrupts)
            if save or signum:
                self._save(self._metrics if validating and not signum else None)
                saved_at = time.monotonic()
                self._buffer.restart_clock()
            if signum:
                name = signal.Signals(signum).name
                LOGGER.info(f"stopped by {name} after step {state.step}; the same command again resumes from there")
                return signum
        return None

    def _try_worst_batches(self) -> None:
        number = self.config.try_worst_batches
        if number is None:
            number = 0 if self.fabric.device.type == "cpu" else 3
        if number and self.state.step < self.config.max_steps:
            batches = self.loader.worst_batches(number)
            try_batches(self.fabric, self.model, self.optimizer, self.recipe, batches)

    def _step(self, batches: list[Batch]) -> None:
        """One update from one or more batches."""
        config, state, fabric = self.config, self.state, self.fabric
        rate = self.learning_rate(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = self.task.weights(state.step, self.recipe.loss)
        shares = frame_shares(batches, self.model.timebase, fabric)
        losses: list[TaskLoss] = []
        ids: list[str] = []
        for index, batch in enumerate(batches):
            number = index * fabric.world_size + fabric.global_rank
            torch.manual_seed(dropout_seed(config.seed, state.step, number))
            context = self._context(state.step, len(batch.ids))
            batch = batch.to(fabric.device)
            last = index == len(batches) - 1
            loss, used = self._backward(batch, context, weights, share=shares[index], sync=last, step=state.step + 1)
            losses.append(loss)
            ids += used
        for steps, parameters in self._frozen:
            if state.step < steps:
                for parameter in parameters:
                    parameter.grad = None
        norm = fabric.clip_gradients(
            self._wrapped, self._fabric_optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
        )
        skipped = ~norm.isfinite()
        if config.precision != "16-mixed":  # there the gradient scaler sets it
            self.optimizer.found_inf = skipped.float()
        watched = (state.step + 1) % config.log_interval == 0
        if watched:
            self._probe.before_update(norm)
        self._fabric_optimizer.step()
        self._fabric_optimizer.zero_grad()
        state.step += 1
        if self._average is not None:
            self._average.update(state.step)
        self._buffer.add(
            state.step,
            losses,
            ids,
            grad_norm=norm,
            skipped=skipped,
            seconds=sum(batch.seconds for batch in batches),
            learning_rate=rate,
            context=_describe(context),
            frames=feature_frames(batches),
            modules=self._probe.after_update() if watched else None,
        )

    def learning_rate(self, step: int) -> float:
        """Of training step `step`, counted from 0."""
        return rate_from(self.state.rate_from, step, self.peak_rate, self.config, self.step_seconds)

    def _parse_context(self, name: str, left_context: int | None) -> ChunkContext:
        try:
            return ChunkContext.parse(getattr(self.config, name), left_context, self.model.timebase)
        except ValueError as error:
            raise ValueError(f"train.{name}: {error}") from None

    def _context(self, step: int, batch_size: int) -> ChunkContext:
        return self._fixed_context if self._contexts is None else self._contexts.draw(step, batch_size)

    def _report(self) -> None:
        """Fetch and write the measures of the steps since the last time; stop a run that has diverged."""
        reports = self._buffer.fetch()
        self._log.steps(reports, self.config.max_steps)
        self.state.audio_seconds += sum(report.seconds for report in reports)
        for report in reports:
            self.state.bad_steps = self.state.bad_steps + 1 if report.skipped else 0
            if self.state.bad_steps >= self.config.max_bad_steps:
                raise DivergenceError(self._advice(report))

    def _advice(self, report: StepReport) -> str:
        last = run_state.latest_checkpoint(self.exp_dir)
        remedies = [
            f"a lower train.learning_rate (now {self.peak_rate:.2g} at its peak)",
            f"longer loss.warmup_steps (now {self.recipe.loss.warmup_steps})",
        ]
        if self.config.precision == "16-mixed":
            remedies.append("train.precision bf16-mixed or 32-true")
        if report.bad_ids:
            remedies.append(
                f"leaving out {', '.join(report.bad_ids[:5])} if the log names the same ones again and again"
            )
        return (
            f"stopped at step {report.step}: {self.state.bad_steps} updates in a row had a loss or gradient that "
            f"is not finite. Try {'; '.join(remedies)}. "
            + (f"The weights of {last} are good." if last else "There is no checkpoint yet.")
        )

    def _validate(self, interrupts: Interrupts) -> int:
        """Measures by the first process, for which the others wait; the signal that cut it short, else 0."""
        metrics, signum = self._metrics, 0
        if self.fabric.is_global_zero:
            self.model.eval()
            try:
                with (
                    interrupts.immediate(),
                    torch.no_grad(),
                    self._average.applied() if self._average else nullcontext(),
                ):
                    result = self.validate(self.model)
                    self._page.draw(self.model, self.state.step)
                metrics = {name: float(value) for name, value in result.metrics.items()}
                self._log.validation(self.state.step, result)
                self._page.write()
            except KeyboardInterrupt:
                signum = interrupts.signum or signal.SIGINT
            except NoErrorRate as error:
                metrics = None
                LOGGER.warning(f"step {self.state.step}: no error rate, and no best checkpoint by it: {error}")
            finally:
                self.model.train()
        self._metrics, signum = self.fabric.broadcast((metrics, signum))
        return signum

    def _save(self, metrics: dict[str, float] | None) -> None:
        if self.fabric.is_global_zero:
            self._lock.require()
            run_state.save_checkpoint(
                self.exp_dir,
                self.state,
                self.model,
                self.tokenizer,
                self.optimizer,
                self.recipe,
                metrics=metrics,
                precision=self.fabric.strategy.precision.state_dict(),
                average=None if self._average is None else self._average.tensors(),
            )
        self.fabric.barrier()

    def _restore(self) -> tuple[dict | None, list[str]]:
        """Continue from the newest sound checkpoint: the recipe it was written with (None without one), and what is
        wrong with newer ones. The first process looks for it, the others read the same."""
        fabric, directory, damaged, fault = self.fabric, None, [], None
        if fabric.is_global_zero:
            try:
                directory, damaged = run_state.load_newest(self.exp_dir, self._load)
            except CheckpointError as error:
                fault = str(error)
        directory, fault = fabric.broadcast((directory, fault))
        if fault is not None:
            raise CheckpointError(fault)
        if directory is None:
            return None, damaged
        if not fabric.is_global_zero:
            self._load(directory)
        return self._saved_recipe, damaged

    def _load(self, directory: Path) -> None:
        state, description = run_state.load_checkpoint(directory, self.model, self.optimizer)
        run_state.check_unchanged(directory, self.model, self._statistics, self.tokenizer)
        if self._average is not None:
            self._average.restore(run_state.load_average(directory))
        if description.get("precision"):
            self.fabric.strategy.precision.load_state_dict(description["precision"])
        self.state, self._metrics = state, run_state.metrics_of(description)
        self._saved_recipe = description.get("recipe") or {}

    def _announce(self, saved_recipe: dict | None) -> None:
        config, state = self.config, self.state
        step_batches = self._accumulate * self.fabric.world_size
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        rate = f"{self.peak_rate:.2g}" + ("" if config.learning_rate else " (default for this width and step)")
        LOGGER.info(
            f"model: {parameters / 1e6:.2f} M parameters, {self.model.vocab_size} tokens; "
            f"device: {self.fabric.device} x {self.fabric.world_size}; precision: {config.precision}; "
            f"chunks: {config.chunk_size}"
        )
        LOGGER.info(
            f"steps: {config.max_steps}, each {self._accumulate} x {self.recipe.data.max_duration:g} s of audio x "
            f"{self.fabric.world_size} process(es); peak learning rate: {rate}; output: {self.exp_dir}"
        )
        if config.precision == "bf16-mixed" and (told := how_bf16_is_computed(self.fabric.device.type)):
            LOGGER.log(*told)
        for note in self.notes:
            LOGGER.info(note)
        if self._rate_told and not state.step:
            LOGGER.warning(self._rate_told)
        if saved_recipe is not None:
            LOGGER.info(f"resuming after step {state.step} (epoch {state.epoch}, batch {state.batch})")
            if state.batch and state.step_batches not in (None, step_batches):
                LOGGER.warning(
                    f"a step now takes {step_batches} batches over all processes, not {state.step_batches}: epoch "
                    f"{state.epoch} is drawn anew, so in what is left of it utterances may come again or not at all; "
                    f"train.step_batches keeps the number whatever the processes"
                )
                state.plan = None  # others are expected
        if saved_recipe:
            state.rate_from, told = go_on_smoothly(
                state, saved_recipe, self.recipe, self.peak_rate, step_seconds=self.step_seconds
            )
            if told:
                LOGGER.warning(told)
        changes = [] if saved_recipe is None else list(setting_changes(saved_recipe, to_dict(self.recipe)))
        for change in changes:
            LOGGER.info(f"the recipe has changed since: {change}")
        self._log.started(state.step, to_dict(self.recipe), changes, system_facts(self.fabric, self.model))
        state.step_batches = step_batches
        if state.step >= config.max_steps:
            LOGGER.info(f"nothing to do: train.max_steps is {config.max_steps}; raise it to go on")


def _describe(context: ChunkContext) -> str:
    return "one for each utterance" if isinstance(context.chunk_size, torch.Tensor) else str(context)
