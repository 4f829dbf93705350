"""The batches that ask for the most memory, tried before training, so that what does not fit shows in the first minute.

Nothing is learnt from them and no random number is drawn: training goes on as if they had not been.
"""

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from sumix_stream.config import RecipeConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data.batching.loader import Batch
from sumix_stream.tasks.base import Weights, make_task
from sumix_stream.train.metrics import LOGGER
from sumix_stream.train.step import describe_batch, free_memory, gradients_of, is_out_of_memory, reason_of, remedy

GIB = 2**30


def try_batches(
    fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: RecipeConfig, batches: Sequence[Batch]
) -> list[Batch]:
    """Forward and backward of each batch in whole-utterance context, telling the log; those that do not fit.

    Memory that training takes only later, gradients accumulated and the optimiser's, is taken up meanwhile.
    """
    device, failed = fabric.device, []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = make_task(recipe.task).weights(recipe.train.max_steps, recipe.loss)
    devices = [device] if device.type == "cuda" else []
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices):
            reserved = _reserve(parameters, optimizer)
            for batch in batches:
                if not _fits(fabric, model, recipe, batch.to(device), weights, parameters):
                    failed.append(batch)
            del reserved
    finally:
        model.train(training)
        free_memory()
    if batches and not failed:
        longest = max(batches, key=lambda batch: int(batch.feat_lengths.max()) * len(batch.ids))
        LOGGER.info(f"tried {len(batches)} of the largest batches, {describe_batch(longest, model.timebase, 3)}: fits")
    return failed


def _reserve(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """As much as accumulated gradients and, where it has none yet, the optimiser's two moments will take."""
    try:
        copies = 1 if optimizer.state else 3
        return [torch.empty_like(parameter) for parameter in parameters for _ in range(copies)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    raise ValueError("the model's gradients and AdamW's state do not fit into memory: use a smaller model preset")


def _fits(
    fabric: Fabric, model: nn.Module, recipe: RecipeConfig, batch: Batch, weights: Weights, parameters: Sequence[Tensor]
) -> bool:
    on_gpu = fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    inputs = (batch.feats, batch.feat_lengths, batch.tokens, batch.token_lengths)
    try:
        gradients_of(fabric, model, recipe, inputs, ChunkContext.full(), weights, parameters)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = reason_of(error)
    else:
        if on_gpu:
            peak, total = torch.cuda.max_memory_allocated(fabric.device), torch.cuda.mem_get_info(fabric.device)[1]
            LOGGER.info(
                f"{describe_batch(batch, model.timebase, 1)}: {peak / GIB:.2f} of {total / GIB:.2f} GiB at the peak"
            )
        return True
    free_memory()
    LOGGER.warning(
        f"one of the largest batches does not fit ({reason}): {describe_batch(batch, model.timebase)}. Such batches "
        f"will be split, which is slow. {remedy(recipe)}"
    )
    return False
