"""Networks laid out for inference on a CPU.

A product by PyTorch's own Linear goes to MKL, which on processors of other makers than its own uses half of their
vector width (AVX2 where there is AVX-512), and packs the weights each time. oneDNN, which PyTorch brings too, does
neither once the weights are packed. Convolutions of one input channel miss oneDNN unless their weights are
channels-last. And what the front end makes of a few streams stays in the caches, of many it does not.

oneDNN compiles a kernel for each shape that it meets and keeps the last thousand, 256 KiB each. Batches of streams have
all sizes, so rows are filled up to one of a few numbers. Results differ by rounding alone.

In bf16 the encoder's products take bfloat16 factors and sum in fp32, where a processor has instructions for it
(AVX512_BF16, AMX): half of the time, and half of the weights to fetch. All between the products stays in fp32, as do
predictor and joiner. With AVX-512 a stream's frames are the same bits whatever batch it is in, in either type.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sumix_kernels.arguments import known_whole
from sumix_stream.encoders.conformer import ConformerEncoder, FeedForward
from sumix_stream.encoders.convolution import ChunkConvolution
from sumix_stream.encoders.states import PredictorState
from sumix_stream.encoders.subsampling import ConvSubsampling
from sumix_stream.tasks.transducer.predictor import LstmPredictor

Module = TypeVar("Module", bound=nn.Module)

_FRONT_END_STREAMS = 8  # a block's widest tensor takes 2.7 MB under 640 ms chunks and 64 channels
_OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_convolution_pointwise",
)  # of torch.compile's CPU backend; not promised to stay
_ROWS = 256  # frames that the packing expects; it serves other numbers as well
_STEPS = ((128, 8), (512, 32))  # numbers of rows up to the first are filled up to a multiple of the second
_LARGE_STEP = 64
PRECISIONS = ("fp32", "bf16")
BATCH_SIZES = (*range(1, 8), *range(8, 32, 2), *range(32, 65, 4))  # streams of a step that need no filling up


class PackedLinear(nn.Linear):
    """A Linear whose weights lie packed for oneDNN besides. Under gradients, or of another type, a plain one."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        with torch.no_grad():
            self._packed = _reorder(linear.weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not _is_for_packed(x):
            return super().forward(x)
        return _product(x, self._packed, self.bias)

    @cached_property
    def panels(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias as fp32 factors of `sumix_kernels.cpu.multiply`; needs Numba."""
        from sumix_kernels import cpu

        return cpu.panels(self.weight.detach().numpy()), cpu.padded(self.bias.detach().numpy())

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self._packed.dtype


class PackedFeedForward(FeedForward):
    """A FeedForward of two calls: SiLU and the residual sum are done while the products are in the caches."""

    def __init__(self, branch: FeedForward, dtype: torch.dtype = torch.float32) -> None:
        nn.Sequential.__init__(self, *branch)
        with torch.no_grad():
            _, enter, _, _, leave, _ = self
            self._enter, self._enter_bias = _reorder(enter.weight, dtype), enter.bias.detach()
            self._leave, self._leave_bias = _reorder(0.5 * leave.weight, dtype), 0.5 * leave.bias

    def add_half(self, x: Tensor) -> Tensor:
        if not _is_for_packed(x):
            return super().add_half(x)
        product, rows = torch.ops.mkldnn._linear_pointwise, filled(x)
        hidden = product(self[0](rows).to(self._enter.dtype), self._enter, self._enter_bias, "swish", [], "")
        if self._leave.dtype == torch.float32:
            y = product.binary(hidden, rows, self._leave, self._leave_bias, "add")
        else:
            y = rows + _product(hidden, self._leave, self._leave_bias).to(torch.float32)
        return y[: x.numel() // x.shape[-1]].view_as(x)


class PackedConv2d(nn.Conv2d):
    """A Conv2d that is always oneDNN's: PyTorch takes another for one small image, so that a stream alone would be
    rounded otherwise than among others. Its weights are channels-last, which `contiguous` would not do to the strides
    of one input channel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        weight = conv.weight.detach().clone().to(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not _is_for_packed(x):
            return super().forward(x)
        shape = (self.padding, self.stride, self.dilation, self.groups)
        return torch.mkldnn_convolution(x, self.weight, self.bias, *shape)


class PackedSubsampling(ConvSubsampling):
    """A ConvSubsampling whose images are channels-last, a few streams at a time."""

    def __init__(self, subsampling: ConvSubsampling) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(subsampling.__dict__)
        self.block_size = _FRONT_END_STREAMS

    def silu_after(self, x: Tensor, past: Tensor, lengths: Tensor) -> Tensor:
        if not _is_for_packed(x) or not known_whole(lengths, x.shape[2]):
            return super().silu_after(x, past, lengths).contiguous(memory_format=torch.channels_last)
        batch_size, channels, num_frames, num_bins = x.shape
        shape = (batch_size, channels, num_frames + 1, num_bins)
        out = torch.empty(shape, memory_format=torch.channels_last)
        out[:, :, :1] = past
        torch.ops.aten.silu.out(x, out=out[:, :, 1:])
        return out


class PackedPredictor(LstmPredictor):
    """An LstmPredictor whose steps look the first layer's input product up by token, and take packed weights.

    `arrays`: that product by token (V, 4P), and the weights between a layer's own steps (Y, 4P, P), from layer to layer
    (Y - 1, 4P, P), with biases (Y - 1, 4P), of Y layers.
    """

    def __init__(self, predictor: LstmPredictor) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(predictor.__dict__)
        with torch.no_grad():
            first, *others = self.lstm.all_weights
            self._inputs = functional.linear(self.embedding.weight, first[0], first[2] + first[3])  # (V, 4P)
            self._hidden = [_reorder(weights[1]) for weights in (first, *others)]
            self._between = [(_reorder(w_ih), b_ih + b_hh) for w_ih, _, b_ih, b_hh in others]
            recurrent = torch.stack([w_hh for _, w_hh, _, _ in (first, *others)])
            between = torch.stack([recurrent[0], *(w_ih for w_ih, _, _, _ in others)])[1:]
            biases = torch.stack([first[2], *(b_ih + b_hh for _, _, b_ih, b_hh in others)])[1:]
            self.arrays = tuple(part.detach().numpy() for part in (self._inputs, recurrent, between, biases))

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        if torch.is_grad_enabled() or not tokens.numel():
            return super().step(tokens, state)
        past = zip(state.hidden.unbind(1), state.cell.unbind(1), self._hidden, strict=True)
        x, gates, after = None, self._inputs[tokens], []
        for layer, (hidden, cell, weight) in enumerate(past):
            if layer:
                gates = _product(x, *self._between[layer - 1])
            enter, keep, new, leave = (gates + _product(hidden, weight)).chunk(4, -1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            x = leave.sigmoid() * cell.tanh()
            after.append((x, cell))
        return x, PredictorState(*(torch.stack(parts, 1) for parts in zip(*after, strict=True)))


def has_bf16_products() -> bool:
    """Whether this processor multiplies bfloat16 by instructions of its own; oneDNN would imitate them slowly."""
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = can.get("avx512_bf16") or can.get("amx_bf16")
    native = native and "AVX512" in torch.backends.cpu.get_cpu_capability()  # unless ATEN_CPU_CAPABILITY forbids it
    native = native or can.get("architecture") != "x86_64"
    return bool(native) and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()


def is_exact(module: nn.Module) -> bool:
    """Whether all products of a module, packed or not, take factors in their own precision."""
    packed = (part for part in module.modules() if isinstance(part, PackedLinear))
    return all(part.dtype == part.weight.dtype for part in packed)


def _reorder(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), _ROWS)


def _is_for_packed(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not torch.is_grad_enabled() and x.numel() > 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.ops.mkldnn._linear_pointwise(filled(x).to(weight.dtype), weight, bias, "none", [], "")
    return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], -1).to(x.dtype)


def filled(x: Tensor) -> Tensor:
    """The rows of x (..., D) as a matrix (n, D), with zeros below up to a number of rows that others have too."""
    rows = x.reshape(-1, x.shape[-1])
    surplus = num_filled(rows.shape[0]) - rows.shape[0]
    return functional.pad(rows, (0, 0, 0, surplus)) if surplus else rows


def num_filled(count: int) -> int:
    """The number of rows that `count` rows are filled up to."""
    step = next((step for most, step in _STEPS if count <= most), _LARGE_STEP)
    return count + -count % step


def pack(module: Module, precision: str = "fp32") -> Module:
    """A copy for inference with packed weights beside the module's own, which both share; later changes of these are
    not seen. In fp32 the module itself where that is not to be had: on another device than a CPU, in another type, or
    in a PyTorch without oneDNN or these operators of it.

    Args:
        module: packed already: itself, whatever its precision.
        precision: fp32, or bf16: of the factors of the encoder's products.
    Raises:
        ValueError: for bf16 on another device than a CPU, and on a CPU without such products.
    """
    if any(isinstance(part, PackedLinear) for part in module.modules()):
        return module
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    like = next(module.parameters())
    here = like.device.type == "cpu" and like.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    here = here and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    if precision == "bf16" and not (here and has_bf16_products()):
        raise ValueError(
            f"precision bf16 needs a CPU with bfloat16 products (AVX512_BF16 or AMX), which {like.device} here is not: "
            "use fp32"
        )
    if not here:
        return module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    packed = deepcopy(module, shared)
    encoders = [part for part in packed.modules() if isinstance(part, ConformerEncoder)]
    of_encoders = {part for encoder in encoders for part in encoder.modules()}
    for parent in reversed(list(packed.modules())):  # parts before what is made of them
        dtype = torch.bfloat16 if precision == "bf16" and parent in of_encoders else torch.float32
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                if not isinstance(parent, FeedForward):  # which has packed its own
                    setattr(parent, name, PackedLinear(child, dtype))
            elif type(child) is FeedForward:
                setattr(parent, name, PackedFeedForward(child, dtype))
            elif type(child) is LstmPredictor:
                setattr(parent, name, PackedPredictor(child))
            elif isinstance(child, ConformerEncoder):
                child.batch_sizes = BATCH_SIZES
            elif isinstance(child, ChunkConvolution):
                child.packed = True
            elif type(child) is ConvSubsampling:
                setattr(parent, name, PackedSubsampling(child))
            elif type(child) is nn.Conv2d:
                setattr(parent, name, PackedConv2d(child))
    return packed
