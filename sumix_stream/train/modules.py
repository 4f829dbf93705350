"""How each part of the model fares in one training step: its gradient, its weights, and how far they move.

Everything is computed on the weights' device with fused norms, and only for the steps that are reported.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ModuleNorms(NamedTuple):
    """Of one step, on the device: (3, M) for M parts: norm of the gradient before clipping, of the weights before the
    update, and of the update."""

    names: tuple[str, ...]
    norms: Tensor


def part_of(name: str) -> str:
    """The part a parameter is counted with: `encoder.subsampling`, `encoder.layers.3`, `joiner`, `ctc_head`..."""
    words = name.split(".")
    if words[0] == "encoder":
        return ".".join(words[: 3 if words[1] == "layers" else 2])
    return words[0]


class ModuleProbe:
    """Call `before_update` between clipping and the optimiser's step, `after_update` behind it."""

    def __init__(self, model: nn.Module, clip_norm: float) -> None:
        self._clip_norm = clip_norm
        owners = {name: part_of(name) for name, p in model.named_parameters() if p.requires_grad}
        self.names = tuple(dict.fromkeys(owners.values()))
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._parts = torch.tensor([self.names.index(owner) for owner in owners.values()])
        self._before: list[Tensor] = []
        self._norms: list[Tensor] = []

    @torch.no_grad()
    def before_update(self, total_norm: Tensor) -> None:
        """Measure gradients, which were clipped to `clip_norm` given their `total_norm`, and keep the weights."""
        clipped = (self._clip_norm / (total_norm.float() + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        self._parts = self._parts.to(total_norm.device)
        self._before = [weight.detach().clone() for weight in self._weights]
        zero = torch.zeros((), device=total_norm.device)
        gradients = [zero if weight.grad is None else weight.grad for weight in self._weights]
        self._norms = [self._by_part(gradients) / clipped, self._by_part(self._before)]

    @torch.no_grad()
    def after_update(self) -> ModuleNorms:
        moved = torch._foreach_sub([weight.detach() for weight in self._weights], self._before)
        norms = torch.stack([*self._norms, self._by_part(moved)])
        self._before, self._norms = [], []
        return ModuleNorms(self.names, norms)

    def _by_part(self, tensors: list[Tensor]) -> Tensor:
        """Euclidean norm of the tensors of each part, (M,)."""
        squares = torch.stack(torch._foreach_norm(tensors)).float().square()
        return torch.zeros(len(self.names), device=squares.device).index_add_(0, self._parts, squares).sqrt()
