"""Steps of an encoder over rows of states by `sumix_kernels.cpu`: a chunk of some streams is two compiled functions.

A step by modules gives PyTorch some forty small operators a layer, which for few streams cost as much as the products.
A stream's frames are the same bits in every batch.

B streams, T0 feature frames, C frames of a chunk, D channels, F numbers of a stream's state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from sumix_stream.context import ChunkContext
from sumix_stream.encoders.conformer import ConformerEncoder
from sumix_stream.encoders.states import StateRows, map_states
from sumix_stream.runtime.packed import PackedFeedForward

_MOST_ROWS = 256  # frames that go through the layers together: what lies between products stays in the caches


def compiled_kernels() -> ModuleType | None:
    """`sumix_kernels.cpu`, or None without Numba."""
    try:
        from sumix_kernels import cpu
    except ImportError:
        return None
    return cpu


class FusedSteps:
    """Steps of a packed encoder with SummaryMixing, variant fast, under one context.

    With several threads of PyTorch's, blocks of streams are computed beside each other; a single stream has one.

    Args:
        rows: how states lie in rows, in fp32 throughout.
    """

    def __init__(self, encoder: ConformerEncoder, context: ChunkContext, rows: StateRows) -> None:
        self._kernels, self._timebase, self._dim = compiled_kernels(), encoder.timebase, encoder.config.dim
        bf16 = _factors(encoder) == torch.bfloat16
        fresh = encoder.init_state(1, context)
        places = iter(rows.starts)
        at = map_states(lambda part: next(places) // part.itemsize, fresh)
        self._front_end = self._of_front_end(encoder, at.subsampling, bf16)
        self._layers = self._of_layers(encoder, fresh.layers[0], at.layers, bf16)

    @staticmethod
    def fits(encoder: ConformerEncoder) -> bool:
        """Whether an encoder is such a one, and Numba is here."""
        layers, kernels = encoder.layers, compiled_kernels()
        packed = all(isinstance(layer.ffn1, PackedFeedForward) for layer in layers)
        fast = all(getattr(layer.mixer, "variant", None) == "fast" for layer in layers)
        if kernels is None or not (packed and fast):
            return False
        return kernels.HAS_BF16 or _factors(encoder) == torch.float32

    def step(self, feats: Tensor, lengths: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk of each stream, as `ConformerEncoder.step`, whose checks are the caller's.

        feats (B, T0, 80), lengths (B,), table (B, F) fp32 -> (B, C, D) and the next table.
        """
        B, num_frames, after = len(feats), self._timebase.num_encoder_frames(feats.shape[1]), torch.empty_like(table)
        out = torch.empty(B, num_frames, self._dim)
        sizes = lengths.numpy()
        arrays = (
            feats.contiguous().numpy(),
            sizes,
            self._timebase.num_encoder_frames(sizes),
            table.numpy(),
            after.numpy(),
            out.numpy(),
        )
        threads = torch.get_num_threads()
        size = max(1, min(_MOST_ROWS // max(num_frames, 1), -(-B // threads)))
        blocks = [tuple(array[b : b + size] for array in arrays) for b in range(0, B, size)]
        if threads == 1 or len(blocks) == 1:
            for block in blocks:
                self._step(*block)
        else:
            list(self._pool.map(lambda block: self._step(*block), blocks))
        return out, after

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "step")

    def _step(
        self,
        feats: np.ndarray,
        lengths: np.ndarray,
        out_lengths: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """One block of streams; `after` and `out` are written."""
        kernels, (B, num_frames, dim) = self._kernels, out.shape
        num_rows = kernels.filled_up(B * num_frames, kernels.ROWS)
        rows = np.zeros((num_rows, kernels.filled_up(dim, kernels.WIDTH)), np.float32)
        front_end, end = self._front_end
        kernels.step_front_end(feats, lengths, *front_end[:2], before, after, *front_end[2:], *end, out_lengths, rows)
        kernels.step_layers(rows, out_lengths, num_frames, before, after, *self._layers)
        out[:] = rows[: B * num_frames, :dim].reshape(out.shape)

    def _of_front_end(self, encoder: ConformerEncoder, at: Sequence[int], bf16: bool) -> tuple[tuple, tuple]:
        """Arguments of `step_front_end` before and after the states."""
        kernels, front_end = self._kernels, encoder.subsampling
        conv1, conv2, out = front_end.conv1, front_end.conv2, front_end.out
        taps = np.ascontiguousarray(_array(conv1.weight)[:, 0].transpose(1, 2, 0))
        weights = _array(conv2.weight).transpose(2, 0, 3, 1).reshape(3, front_end.channels, -1)  # over frames
        biases = np.zeros((3, front_end.channels), np.float32)
        biases[0] = _array(conv2.bias)
        biases = kernels.padded(biases)
        channels_last = _array(out.weight).reshape(self._dim, front_end.channels, -1).swapaxes(1, 2)
        width = biases.shape[1]
        channels_last = np.pad(channels_last, ((0, 0), (0, 0), (0, width - front_end.channels))).reshape(self._dim, -1)
        pair_width = channels_last.shape[1] if bf16 else 0  # even, as WIDTH is
        begin = (_array(front_end.feature_mean), _array(1 / front_end.feature_std), *at, taps, _array(conv1.bias))
        end = (kernels.panels(weights), biases, kernels.panels(channels_last, bf16), kernels.padded(_array(out.bias)))
        return begin, (*end, pair_width, *_norm(front_end.norm), np.float32(front_end.norm.eps))

    def _of_layers(self, encoder: ConformerEncoder, fresh: object, at: Sequence, bf16: bool) -> tuple:
        """Arguments of `step_layers` after the states."""
        kernels, layers = self._kernels, encoder.layers

        def product(linear_of: Callable[[nn.Module], nn.Linear], scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
            linears = [linear_of(layer) for layer in layers]
            biases = (torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias for linear in linears)
            return _stack(scale * linear.weight for linear in linears), _stack(scale * bias for bias in biases)

        products = [
            product(lambda layer: layer.ffn1[1]),
            product(lambda layer: layer.ffn1[4], 0.5),
            product(lambda layer: layer.mixer.projection),
            product(lambda layer: layer.mixer.merge_summary),
            product(lambda layer: layer.mixer.merge_local),
            product(lambda layer: layer.conv.expand),
            product(lambda layer: layer.conv.out),
            product(lambda layer: layer.ffn2[1]),
            product(lambda layer: layer.ffn2[4], 0.5),
        ]
        weights, biases, parts = kernels.in_a_row(products, bf16)
        pair_width = 2 * int(parts[:, 2].max()) if bf16 else 0
        norms = [
            (layer.ffn1[0], layer.mixer_norm, layer.conv_norm, layer.conv.norm, layer.ffn2[0], layer.norm)
            for layer in layers
        ]
        norm_arrays = np.stack([np.stack([np.stack(_norm(norm)) for norm in of_layer]) for of_layer in norms])
        eps = np.array([[norm.eps for norm in of_layer] for of_layer in norms], np.float32)
        taps, tap_bias = (
            np.ascontiguousarray(_stack(layer.conv.weight.T for layer in layers)),
            _stack(layer.conv.bias for layer in layers),
        )
        places = np.array([(*layer.mixer, layer.conv) for layer in at], np.int64)
        kept, unlimited = fresh.mixer.sums.shape[1], fresh.mixer.compensation.shape[1] > 0
        return places, kept, unlimited, weights, biases, parts, pair_width, norm_arrays, eps, taps, tap_bias


def _factors(encoder: ConformerEncoder) -> torch.dtype:
    """Of a packed encoder's products."""
    return encoder.subsampling.out.dtype


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


def _stack(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.stack([_array(tensor) for tensor in tensors])


def _norm(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    return _array(norm.weight), _array(norm.bias)
