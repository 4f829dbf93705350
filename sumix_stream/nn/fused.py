"""Steps of a packed encoder over rows of states, the work between products by `sumix_kernels.cpu`.

A step by modules gives PyTorch some forty small operators a layer, which for few streams cost as much as the products.
Here a layer is nine products and five functions. A stream's frames are the same bits in every batch.

B streams, T0 feature frames, C frames of a chunk, D channels, F numbers of a stream's state; n >= B C rows, filled up.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sumix_stream.nn.chunking import ChunkContext
from sumix_stream.nn.conformer import ConformerEncoder, ConformerLayer
from sumix_stream.nn.packed import PackedFeedForward, PackedSubsampling, num_filled
from sumix_stream.nn.states import LayerState, StateRows, SubsamplingState, map_states


def compiled_kernels() -> ModuleType | None:
    """`sumix_kernels.cpu`, or None without Numba."""
    try:
        from sumix_kernels import cpu
    except ImportError:
        return None
    return cpu


class FusedSteps:
    """Steps of a packed encoder with SummaryMixing, variant fast, under one context.

    Args:
        rows: how states lie in rows, in fp32 throughout.
    """

    def __init__(self, encoder: ConformerEncoder, context: ChunkContext, rows: StateRows) -> None:
        self._timebase, self._dim = encoder.timebase, encoder.config.dim
        fresh = encoder.init_state(1, context)
        places = iter(rows.starts)
        at = map_states(lambda part: next(places) // part.itemsize, fresh)
        self._front_end = _FusedSubsampling(encoder.subsampling, at.subsampling)
        layers = zip(encoder.layers, fresh.layers, at.layers, strict=True)
        self._layers = [_FusedLayer(*parts) for parts in layers]

    @staticmethod
    def fits(encoder: ConformerEncoder) -> bool:
        """Whether an encoder is such a one, and Numba is here."""
        layers = encoder.layers
        packed = all(isinstance(layer.ffn1, PackedFeedForward) for layer in layers)
        fast = all(getattr(layer.mixer, "variant", None) == "fast" for layer in layers)
        return packed and fast and compiled_kernels() is not None

    def step(self, feats: Tensor, lengths: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk of each stream, as `ConformerEncoder.step`, whose checks are the caller's.

        feats (B, T0, 80), lengths (B,), table (B, F) fp32 -> (B, C, D) and the next table.
        """
        count, after = self._timebase.num_encoder_frames, torch.empty_like(table)
        num_frames, out_lengths = count(feats.shape[1]), count(lengths.numpy())
        step = _Step(len(feats), num_frames, self._dim, out_lengths, table.numpy(), after.numpy())
        rows = self._front_end.step(feats.contiguous(), lengths.numpy(), step)
        for layer in self._layers:
            rows = layer.step(rows, step)
        return rows[: step.count].view(len(feats), num_frames, self._dim), after


class _Step:
    """What all layers of one step share: sizes, states, and room between products, as tensors and as arrays."""

    def __init__(
        self, B: int, frames: int, dim: int, lengths: np.ndarray, before: np.ndarray, after: np.ndarray
    ) -> None:
        self.frames, self.dim = frames, dim
        self.lengths, self.before, self.after = lengths, before, after
        self.count = B * self.frames
        self.num_rows = num_filled(self.count)
        self.normal, self.local = self.room(dim), self.room(dim)
        self.mean = torch.zeros(num_filled(B), dim)
        rooms = (self.normal, self.local, self.mean)
        self.normal_array, self.local_array, self.mean_array = (room.numpy() for room in rooms)

    def room(self, dim: int) -> Tensor:
        """(n, D); what fills the rows up is finite."""
        return (torch.empty if self.num_rows == self.count else torch.zeros)(self.num_rows, dim)


class _FusedSubsampling:
    """The front end, some streams at a time. `at`: of each part of its state the number of a row at which it begins."""

    def __init__(self, front_end: PackedSubsampling, at: SubsamplingState) -> None:
        self._kernels, self._at, self._block_size = compiled_kernels(), at, front_end.block_size
        self._mean, scale = front_end.feature_mean.numpy(), front_end.feature_std.reciprocal()
        conv1, self._conv2 = front_end.conv1, front_end.conv2
        self._taps = np.ascontiguousarray(conv1.weight.detach().numpy()[:, 0].transpose(1, 2, 0))
        self._scale, self._bias, self._norm = scale.numpy(), conv1.bias.detach().numpy(), _arrays(front_end.norm)
        self._out = front_end.out_of_images()

    def step(self, feats: Tensor, lengths: np.ndarray, step: _Step) -> Tensor:
        """feats (B, T0, 80), lengths (B,) -> rows (n, D)."""
        kernels, frames, size = self._kernels, step.frames, self._block_size
        num_halved = -(-feats.shape[1] // 2)
        shape = (1 + num_halved + num_halved % 2, len(self._mean) // 2, self._taps.shape[2])
        rows = step.room(step.dim)
        array, inputs = rows.numpy(), feats.numpy()
        for b in range(0, len(feats), size):
            part = slice(b, b + size)
            images = torch.empty(len(inputs[part]), *shape)
            constants = (*self._at, self._taps, self._bias)
            before, after = step.before[part], step.after[part]
            kernels.enter(
                inputs[part], lengths[part], self._mean, self._scale, before, after, *constants, images.numpy()
            )
            y = self._out(self._conv2.silu_of(images))
            kernels.finish(y.numpy(), step.lengths[part], frames, *self._norm, array[b * frames :])
        return rows


class _FusedLayer:
    """One layer's products and arrays, and where its state lies.

    Args:
        fresh, at: a state, and of each of its parts the number of a row at which it begins.
    """

    def __init__(self, layer: ConformerLayer, fresh: LayerState, at: Any) -> None:
        self._kernels, mixer, conv = compiled_kernels(), layer.mixer, layer.conv
        self._halves = [branch.of_rows() for branch in (layer.ffn1, layer.ffn2)]
        products = (mixer.projection, mixer.merge_local, mixer.merge_summary, conv.expand)
        self._products = [*(linear.of_rows() for linear in products), conv.out.added_to_rows()]
        norms = (layer.ffn1[0], layer.mixer_norm, layer.conv_norm, conv.norm, layer.ffn2[0], layer.norm)
        self._norms = [_arrays(norm) for norm in norms]
        self._taps, self._tap_bias = np.ascontiguousarray(conv.weight.detach().numpy().T), conv.bias.detach().numpy()
        kept, unlimited = fresh.mixer.sums.shape[1], fresh.mixer.compensation.shape[1] > 0
        self._summary = (*at.mixer, kept, unlimited)
        self._history = at.conv

    def step(self, rows: Tensor, step: _Step) -> Tensor:
        """rows (n, D) -> (n, D)."""
        kernels, count, frames, lengths = self._kernels, step.count, step.frames, step.lengths
        normal, normal_array = step.normal, step.normal_array
        (enter1, leave1), (enter2, leave2) = self._halves
        project, merge_local, merge_summary, expand, add_out = self._products
        norm1, norm_mixer, norm_conv, norm_inside, norm2, norm_last = self._norms
        kernels.normalise(rows.numpy(), count, *norm1, normal_array)
        rows = leave1(enter1(normal), rows)
        array = rows.numpy()
        kernels.normalise(array, count, *norm_mixer, normal_array)
        projected = project(normal).numpy()
        kernels.summarise(
            projected, lengths, frames, step.before, step.after, *self._summary, step.local_array, step.mean_array
        )
        summary, local = merge_summary(step.mean).numpy(), merge_local(step.local).numpy()
        kernels.merge(array, local, summary, count, frames, *norm_conv, normal_array)
        gates = expand(normal).numpy()
        convolution = (self._history, self._taps, self._tap_bias, *norm_inside)
        kernels.convolve(gates, lengths, frames, step.before, step.after, *convolution, normal_array)
        rows = add_out(normal, rows)
        kernels.normalise(rows.numpy(), count, *norm2, normal_array)
        rows = leave2(enter2(normal), rows)
        out = step.room(rows.shape[1])
        kernels.finish(rows.numpy(), lengths, frames, *norm_last, out.numpy())
        return out


def _arrays(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray, np.float32]:
    return norm.weight.detach().numpy(), norm.bias.detach().numpy(), np.float32(norm.eps)
