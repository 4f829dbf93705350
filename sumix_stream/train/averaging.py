"""A running average of the weights beside the training: steadier than any one step, for validation and recognition.

With w_t the weights after step t, the average is  a_t = d_t a_(t-1) + (1 - d_t) w_t,  where `train.average` says d_t:

ema      d_t = min(ema_decay, (1 + t) / (10 + t)): the last 1 / (1 - ema_decay) steps, fewer at the beginning.
growing  d_t = (1 - 1/t)^(g + 1): the mean of all weights so far, each with weight t^g. The mean age of what is averaged
         stays the same share, 1 / (g + 2) = `average_age`, of the run up to now, however long it gets
         (polynomial-decay averaging, Shamir and Zhang, ICML 2013; the power function of arXiv 2312.02696, 3.1).

d_t is a function of the step alone, so a resumed run needs no more than the average itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sumix_stream.config import TrainConfig


def decay_at(step: int, config: TrainConfig) -> float:
    """What the old average keeps when the weights after `step` (from 1) come in; 0 for the first."""
    if step < 1:
        raise ValueError(f"step is counted from 1, got {step}")
    if config.average == "ema":
        return min(config.ema_decay, (1 + step) / (10 + step)) if step > 1 else 0.0
    return (1 - 1 / step) ** (1 / config.average_age - 1)


class WeightAverage:
    """The average of a model's parameters, in fp32 on their devices. Buffers (feature statistics) are the model's own.

    Every process keeps the same one: it is made from weights that are equal everywhere, and nothing is exchanged.

    Raises:
        ValueError: the model has batch normalisation, whose running statistics would not belong to averaged weights.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                raise ValueError(
                    f"train.average needs a model without batch normalisation, whose statistics belong to one set of "
                    f"weights; {name} is {type(module).__name__}: set train.average none"
                )
        self._config = config
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(parameters)
        self._weights = list(parameters.values())
        self._average = [weight.detach().float().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1). Nothing waits for the device."""
        weights = [weight.detach().float() for weight in self._weights]
        torch._foreach_lerp_(self._average, weights, 1 - decay_at(step, self._config))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, bit for bit."""
        own = [weight.detach().clone() for weight in self._weights]
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, own)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, fp32: not copies."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor] | None) -> None:
        """Go on from a saved average; from the weights as they are now if there is none (it was switched on later).

        Raises:
            ValueError: names or shapes are not the model's.
        """
        if tensors is None:
            torch._foreach_copy_(self._average, [weight.detach() for weight in self._weights])
            return
        if tensors.keys() != set(self._names):
            odd = sorted(tensors.keys() ^ set(self._names))
            raise ValueError(f"the saved average is of another model: {', '.join(odd[:3])} ... do not agree")
        for name, average in self.tensors().items():
            if tensors[name].shape != average.shape:
                raise ValueError(f"the saved average is of another model: {name} is {tuple(tensors[name].shape)}")
            average.copy_(tensors[name])
