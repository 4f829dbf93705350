"""The runtime `compiled`: a chunk of some streams is two functions of `sumix_kernels.cpu`, a search is one. No PyTorch.

A step by PyTorch's modules is some forty small operators a layer, which for few streams cost as much as the products.
A stream's frames are the same bits in every batch.

B streams, F feature frames, T encoder frames, D channels; all else as in base.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sumix_kernels import cpu as kernels
from sumix_kernels.lstm import lstm_arrays
from sumix_stream.context import ChunkContext
from sumix_stream.features import NUM_BINS
from sumix_stream.runtime.base import Found, Frames, GreedyState, PredictorState, check_chunk, chunk_frames
from sumix_stream.runtime.rows import Rows
from sumix_stream.runtime.threads import get_num_threads
from sumix_stream.runtime.weights import Weights

_MOST_ROWS = 256  # frames that go through the layers together: what lies between products stays in the caches
_EPS = np.float32(1e-5)  # of every LayerNorm


class CompiledRuntime:
    """Conformers with SummaryMixing, variant fast. With several threads, blocks of streams are computed in parallel."""

    name, device = "compiled", "cpu"
    batch_sizes = ()
    can_fork = True

    def __init__(self, weights: Weights, context: ChunkContext) -> None:
        self.weights = self.source = weights
        self.context, self.frame_dim = context, weights.config.encoder.dim
        self.blank_id, self.vocab_size, self.timebase = weights.blank_id, weights.vocab_size, weights.timebase
        self.pause: Callable[[], None] | None = None  # called before each layer, of a step that should give way
        self._window, self._rows = chunk_frames(self.timebase, context), Rows(_state(weights, context))
        self._at = {name: start // 4 for name, start in self._rows.starts.items()}  # in numbers of a row

    @cached_property
    def _packed(self) -> _Packed:
        """Made when first needed: a server's first process leaves it to its workers."""
        return _packed(self.weights)

    @cached_property
    def _layers(self) -> tuple:
        """Arguments of `step_layers` after the states."""
        sums, compensation, *_ = (self._rows.parts[f"layers.0.mixer.{name}"].shape[1] for name in _SUMMARY)
        names = [f"mixer.{name}" for name in _SUMMARY] + ["conv"]
        layers = range(self.weights.config.encoder.num_layers)
        places = np.array([[self._at[f"layers.{layer}.{name}"] for name in names] for layer in layers], np.int64)
        return places, sums, compensation > 0, *self._packed.layers

    def _layer(self, number: int) -> tuple:
        """The same of one layer."""
        places, kept, unlimited, weights, biases, parts, pair_width, *others = self._layers
        own = slice(number, number + 1)
        of_all = places[own], kept, unlimited, weights[own], biases[own], parts, pair_width
        return *of_all, *(part[own] for part in others)

    @classmethod
    def can_run(cls, model: Any, context: ChunkContext) -> str | None:
        if not isinstance(model, Weights):
            return "it runs checkpoints, not exported bundles"
        encoder = model.config.encoder
        if model.device != "cpu":
            return f"it runs on the CPU, not on {model.device}"
        if encoder.kind != "conformer":
            return f"an encoder of kind {encoder.kind} has not been compiled, only conformer"
        if encoder.mixer != "summary":
            return f"mixer {encoder.mixer} has not been compiled, only SummaryMixing"
        if encoder.summary_variant != "fast":
            return f"variant {encoder.summary_variant} of SummaryMixing has not been compiled, only fast"
        if encoder.mean_decay is not None:
            return (
                f"encoder.summary_decay ({encoder.summary_decay}) has not been compiled, only SummaryMixing without it"
            )
        if model.precision == "bf16" and not kernels.HAS_BF16:
            return "precision bf16 needs a CPU with bfloat16 products (AVX512_BF16), which this one is not: use fp32"
        return None

    @property
    def fingerprint(self) -> str:
        return self.weights.fingerprint

    @property
    def beam_arrays(self) -> tuple[np.ndarray, ...]:
        return self._packed.search

    def fresh_state(self) -> np.ndarray:
        return np.zeros(self._rows.size, np.uint8)

    def encode(
        self, feats: np.ndarray, lengths: np.ndarray, states: Sequence[np.ndarray], final: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        check_chunk(feats, lengths, final, self._window)
        B, num_frames = len(feats), self.timebase.num_encoder_frames(feats.shape[1])
        before = np.stack(states).view(np.float32)
        after, out = np.empty_like(before), np.empty((B, num_frames, self.weights.config.encoder.dim), np.float32)
        arrays = np.ascontiguousarray(feats), lengths, self.timebase.num_encoder_frames(lengths), before, after, out
        size = max(1, min(_MOST_ROWS // max(num_frames, 1), -(-B // get_num_threads())))
        blocks = [tuple(array[b : b + size] for array in arrays) for b in range(0, B, size)]
        if get_num_threads() == 1 or len(blocks) == 1:
            for block in blocks:
                self._step(*block)
        else:
            list(self._pool.map(lambda block: self._step(*block), blocks))
        return out, [row.copy() for row in after.view(np.uint8)]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(get_num_threads(), "step")

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
        B, num_frames, dim = out.shape
        num_rows = kernels.filled_up(B * num_frames, kernels.ROWS)
        rows = np.zeros((num_rows, kernels.filled_up(dim, kernels.WIDTH)), np.float32)
        (mean, scale, *convolution), end = self._packed.front_end
        states = before, after, *(at for name, at in self._at.items() if name.startswith("subsampling."))
        by_four = self.timebase.subsampling == 4
        step_front_end = kernels.step_front_end if by_four else kernels.step_separable_front_end
        step_front_end(feats, lengths, mean, scale, *states, *convolution, *end, out_lengths, rows)
        given = rows, out_lengths, num_frames, before, after
        if self.pause is None:
            kernels.step_layers(*given, *self._layers)
        else:
            for layer in range(self.weights.config.encoder.num_layers):
                self.pause()
                kernels.step_layers(*given, *self._layer(layer))
        out[:] = rows[: B * num_frames, :dim].reshape(out.shape)

    def nbytes(self, state: np.ndarray) -> int:
        return state.nbytes

    def save(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return self._rows.save(state)

    def load(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._rows.load(arrays)

    def predictor_state(self, count: int) -> PredictorState:
        config = self.weights.config.predictor
        zeros = np.zeros((count, config.num_layers, config.hidden_dim), np.float32)
        return PredictorState(zeros, zeros.copy())

    def predict(self, tokens: np.ndarray, state: PredictorState) -> tuple[np.ndarray, PredictorState]:
        hidden, cell = (np.array(part, order="C") for part in state)
        projections = np.empty((len(tokens), self.weights.config.joiner_dim), np.float32)
        kernels.predict_all(np.ascontiguousarray(tokens), hidden, cell, projections, *self._packed.predictor)
        return projections, PredictorState(hidden, cell)

    def project(self, frames: Frames) -> np.ndarray:
        return self._product(np.asarray(frames, np.float32), *self._packed.project, self.weights.config.joiner_dim)

    def join(self, enc: np.ndarray, pred: np.ndarray) -> np.ndarray:
        return self._product(np.tanh(enc + pred), *self._packed.output, self.vocab_size)

    def _product(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, width: int) -> np.ndarray:
        rows = np.ascontiguousarray(x.reshape(1, -1, x.shape[-1]))
        out = kernels.project_frames(rows, weight, bias)[: rows.shape[1], :width]
        return np.ascontiguousarray(out).reshape(*x.shape[:-1], width)

    def search_greedily(
        self,
        frames: Frames,
        lengths: np.ndarray,
        state: GreedyState,
        blank_penalty: float,
        temperature: float,
        max_symbols: int,
    ) -> tuple[list[Found], GreedyState]:
        projection, (hidden, cell) = state
        after = [np.array(part, order="C") for part in (projection, hidden, cell)]
        numbers = self.blank_id, np.float32(blank_penalty), np.float32(temperature), max_symbols
        frames = np.ascontiguousarray(frames, np.float32)
        *columns, counts = kernels.search_greedily(frames, lengths, *after, *self._packed.search, *numbers)
        columns, end, found = [column.tolist() for column in columns], 0, []
        for count in counts.tolist():
            begin, end = end, end + count
            found.append(tuple(column[begin:end] for column in columns))
        return found, GreedyState(after[0], PredictorState(*after[1:]))


_SUMMARY = ("sums", "compensation", "counts")


def _state(weights: Weights, context: ChunkContext) -> dict[str, np.ndarray]:
    """A stream's state by name, as `encoders.states` has it; nothing is kept of a mixer's past under full context."""
    config = weights.config.encoder
    left = context.left_context if context.chunk_size is not None else 0
    kept, compensations = (1, 1) if left is None else (left, 0)
    parts = {
        "subsampling.feats": (1, NUM_BINS),
        "subsampling.hidden": (config.subsampling_channels, 1, (NUM_BINS + 1) // 2),
    }
    if config.subsampling == 8:
        parts["subsampling.hidden2"] = config.subsampling_channels, 1, (NUM_BINS + 3) // 4
    for layer in range(config.num_layers):
        shapes = (kept, config.dim), (compensations, config.dim), (kept,)
        parts |= {f"layers.{layer}.mixer.{name}": shape for name, shape in zip(_SUMMARY, shapes, strict=True)}
        parts[f"layers.{layer}.conv"] = (config.conv_kernel // 2, config.dim)
    return {name: np.zeros((1, *shape), np.float32) for name, shape in parts.items()}


class _Packed:
    """A model's arrays as the kernels take them, whatever the context."""

    def __init__(self, weights: Weights) -> None:
        self._arrays, self._config = weights.arrays, weights.config
        bf16 = weights.precision == "bf16"
        self.front_end = self._of_front_end(bf16)
        self.layers = self._of_layers(bf16)
        lstm = range(self._config.predictor.num_layers)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        lstm = [tuple(self._array(f"predictor.lstm.{name}_l{layer}") for name in names) for layer in lstm]
        arrays = lstm_arrays(self._array("predictor.embedding.weight"), lstm)
        self.predictor = (*arrays, self._array("joiner.project_predictor.weight"))
        self.project, self.output = (self._product_of(f"joiner.{name}") for name in ("project_encoder", "output"))
        self.search = (*self.project, *self.predictor, *self.output)

    def _product_of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return kernels.panels(self._array(f"{name}.weight")), kernels.padded(self._array(f"{name}.bias"))

    def _of_front_end(self, bf16: bool) -> tuple[tuple, tuple]:
        """Arguments of `step_front_end`, or of `step_separable_front_end`, before and after the states."""

        def array(name: str) -> np.ndarray:
            return self._array(f"encoder.subsampling.{name}")

        channels, dim = self._config.encoder.subsampling_channels, self._config.encoder.dim
        taps = np.ascontiguousarray(array("conv1.weight")[:, 0].transpose(1, 2, 0))
        later = self._separable_stages(array) if self._config.encoder.subsampling == 8 else self._second_stage(array)
        channels_last = array("out.weight").reshape(dim, channels, -1).swapaxes(1, 2)
        width = kernels.filled_up(channels, kernels.WIDTH)
        channels_last = np.pad(channels_last, ((0, 0), (0, 0), (0, width - channels))).reshape(dim, -1)
        pair_width = channels_last.shape[1] if bf16 else 0  # even, as WIDTH is
        begin = array("feature_mean"), 1 / array("feature_std"), taps, array("conv1.bias")
        end = *later, kernels.panels(channels_last, bf16), kernels.padded(array("out.bias"))
        return begin, (*end, pair_width, array("norm.weight"), array("norm.bias"), _EPS)

    def _second_stage(self, array: Callable[[str], np.ndarray]) -> tuple:
        weights = array("conv2.weight").transpose(2, 0, 3, 1).reshape(3, len(array("conv2.bias")), -1)  # over frames
        biases = np.zeros((3, weights.shape[1]), np.float32)
        biases[0] = array("conv2.bias")
        return kernels.panels(weights), kernels.padded(biases)

    def _separable_stages(self, array: Callable[[str], np.ndarray]) -> tuple:
        return tuple(
            (
                np.ascontiguousarray(array(f"{stage}.depthwise.weight").reshape(-1, 9).T),
                array(f"{stage}.depthwise.bias"),
                kernels.panels(array(f"{stage}.pointwise.weight")[:, :, 0, 0]),
                kernels.padded(array(f"{stage}.pointwise.bias")),
            )
            for stage in ("stages.0", "stages.1")
        )

    def _of_layers(self, bf16: bool) -> tuple:
        """Arguments of `step_layers` after the states and their places."""
        count, dim = self._config.encoder.num_layers, self._config.encoder.dim

        def stack(array_of: Callable[[str], np.ndarray]) -> np.ndarray:
            return np.stack([array_of(f"encoder.layers.{layer}") for layer in range(count)])

        def product(name: str, factor: float = 1.0, has_bias: bool = True) -> tuple[np.ndarray, np.ndarray]:
            def scaled(part: str) -> np.ndarray:
                return np.float32(factor) * stack(lambda layer: self._array(f"{layer}.{name}.{part}"))

            return scaled("weight"), scaled("bias") if has_bias else np.zeros((count, dim), np.float32)

        products = [
            product("ffn1.1"),
            product("ffn1.4", 0.5),
            product("mixer.projection"),
            product("mixer.merge_summary"),
            product("mixer.merge_local", has_bias=False),
            product("conv.expand"),
            product("conv.out"),
            product("ffn2.1"),
            product("ffn2.4", 0.5),
        ]
        weights, biases, parts = kernels.in_a_row(products, bf16)
        pair_width = 2 * int(parts[:, 2].max()) if bf16 else 0
        norms = ("ffn1.0", "mixer_norm", "conv_norm", "conv.norm", "ffn2.0", "norm")
        norm_arrays = stack(
            lambda layer: np.stack(
                [[self._array(f"{layer}.{norm}.{part}") for part in ("weight", "bias")] for norm in norms]
            )
        )
        eps = np.full((count, len(norms)), _EPS)
        taps = stack(lambda layer: np.ascontiguousarray(self._array(f"{layer}.conv.weight").T))
        tap_bias = stack(lambda layer: self._array(f"{layer}.conv.bias"))
        return weights, biases, parts, pair_width, norm_arrays, eps, taps, tap_bias

    def _array(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._arrays[name], np.float32)


_made: WeakKeyDictionary[Weights, _Packed] = WeakKeyDictionary()
_making = threading.Lock()


def _packed(weights: Weights) -> _Packed:
    """Made once for all contexts."""
    with _making:
        if weights not in _made:
            _made[weights] = _Packed(weights)
        return _made[weights]
