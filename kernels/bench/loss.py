"""The pruned RNN-T loss, joiner included, beside k2's own path (fp32 logits in memory) and the whole lattice's loss.

B batch, T frames, U symbols, R lattice rows kept a frame, J joint dimension, V vocabulary with blank = 0.
"""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from sumix_kernels import do_rnnt_pruning, get_rnnt_prune_ranges, pruned_rnnt_loss, rnnt_loss_smoothed
from sumix_kernels.bench import fast_rnnt
from sumix_kernels.bench.registry import (
    Benchmark,
    Contender,
    Inputs,
    Outputs,
    Shape,
    Work,
    make_lengths,
    random_tensors,
    triton_contender,
)
from sumix_kernels.rnnt import naive, via_k2
from sumix_kernels.rnnt.pruning import unprune
from sumix_kernels.rnnt.smoothed import smoothed_log_probs
from sumix_kernels.rnnt.torch import row_symbols

BLANK, LM_SCALE, AM_SCALE = 0, 0.25, 0.0
_JOINT = ("enc", "pred", "weight", "bias")
_WRT = (*_JOINT, "am", "lm")


def _make(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    B, T, U, J, V = (shape[letter] for letter in "BTUJV")
    shapes = {"enc": (B, T, J), "pred": (B, U + 1, J), "weight": (V, J), "bias": (V,), "am": (B, T, V)}
    tensors = random_tensors(dtype, device, **shapes, lm=(B, U + 1, V))
    tensors["weight"] *= J**-0.5
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(1, V, (B, U), generator=generator).to(device)
    lengths = make_lengths(shape, device)
    zeros = torch.zeros_like(lengths)
    boundary = torch.stack([zeros, zeros, lengths * U // T, lengths], 1)
    _, occupations = rnnt_loss_smoothed(
        tensors["lm"].float(),
        tensors["am"].float(),
        symbols,
        BLANK,
        LM_SCALE,
        AM_SCALE,
        boundary,
        return_grad=True,
        backend="torch",
    )
    ranges = get_rnnt_prune_ranges(*occupations, boundary, shape["R"], backend="torch")
    return tensors | {"symbols": symbols, "boundary": boundary, "ranges": ranges}


def _ours(backend: str):
    def run(inputs: Inputs, shape: Shape) -> Outputs:
        joiner = SimpleNamespace(weight=inputs["weight"], bias=inputs["bias"])
        result = pruned_rnnt_loss(
            inputs["enc"],
            inputs["pred"],
            joiner,
            inputs["am"],
            inputs["lm"],
            inputs["symbols"],
            inputs["boundary"],
            s_range=shape["R"],
            termination_symbol=BLANK,
            lm_only_scale=LM_SCALE,
            am_only_scale=AM_SCALE,
            backend=backend,
        )
        return result.simple, result.pruned

    return run


def _pruned_logits(inputs: Inputs) -> Tensor:
    enc, pred = do_rnnt_pruning(inputs["enc"], inputs["pred"], inputs["ranges"])
    return F.linear(torch.tanh(enc + pred), inputs["weight"], inputs["bias"])


def _fast_rnnt(inputs: Inputs, shape: Shape) -> Outputs:
    """k2's path around its recursion: the simple lattice's arcs; logits (B, T, R, V), normalisers and entries."""
    log_prob = fast_rnnt.recursion()
    symbols, boundary, ranges = (inputs[name] for name in ("symbols", "boundary", "ranges"))
    px, py = smoothed_log_probs(inputs["lm"], inputs["am"], symbols, BLANK, LM_SCALE, AM_SCALE)
    simple = -log_prob(_with_end(px, boundary), py, boundary)
    logits = _pruned_logits(inputs)
    normaliser = logits.logsumexp(3)
    px = logits.gather(3, row_symbols(symbols, ranges, BLANK)[..., None]).squeeze(3) - normaliser
    py = logits[..., BLANK] - normaliser
    px, py = (unprune(x, ranges, symbols.shape[1] + 1) for x in (px, py))
    return simple, -log_prob(_with_end(px[:, :-1], boundary), py, boundary)


def _with_end(px: Tensor, boundary: Tensor) -> Tensor:
    """One column more, and no symbol from the column after an utterance's last frame."""
    px = F.pad(px, (0, 1), value=float("-inf"))
    end = boundary[:, 3, None, None].expand(-1, px.shape[1], 1)
    return px.scatter(2, end, float("-inf"))


def _whole_logits(inputs: Inputs) -> Tensor:
    hidden = torch.tanh(inputs["enc"][:, :, None] + inputs["pred"][:, None])
    return F.linear(hidden, inputs["weight"], inputs["bias"])


def _torchaudio(inputs: Inputs, shape: Shape) -> Tensor:
    from torchaudio.functional import rnnt_loss

    lengths = inputs["boundary"].int()
    return rnnt_loss(
        _whole_logits(inputs),
        inputs["symbols"].int(),
        lengths[:, 3].contiguous(),
        lengths[:, 2].contiguous(),
        blank=BLANK,
        reduction="none",
    )


def _reference(inputs: Inputs, shape: Shape) -> Outputs:
    symbols, boundary = inputs["symbols"], inputs["boundary"]
    lattice = (boundary, "regular", 0.0)
    simple, _, _ = naive.rnnt_loss_smoothed(inputs["lm"], inputs["am"], symbols, BLANK, LM_SCALE, AM_SCALE, *lattice)
    pruned = naive.rnnt_loss_pruned(_pruned_logits(inputs), symbols, inputs["ranges"], BLANK, *lattice)
    return simple, pruned


def _whole_reference(inputs: Inputs, shape: Shape) -> Tensor:
    return naive.rnnt_loss(_whole_logits(inputs), inputs["symbols"], BLANK, inputs["boundary"], "regular", 0.0)


def _work(shape: Shape, itemsize: int) -> dict[str, Work]:
    """Inputs read once, gradients written once; the joiner's product and the simple lattice's."""
    B, T, U, R, J, V = (shape[letter] for letter in "BTURJV")
    elements = B * (T + U + 1) * (J + V) + (J + 1) * V
    flops = 2 * B * T * R * J * V + 2 * B * T * (U + 1) * V
    return {
        "forward": Work(itemsize * elements, flops),
        "forward+backward": Work(3 * itemsize * elements, 3 * flops),
    }


def _logits_bytes(rows: str):
    def working_bytes(shape: Shape, itemsize: int) -> int:
        """Logits and their gradient; hidden rows, and theirs."""
        R = shape["R"] if rows == "pruned" else shape["U"] + 1
        return 2 * 4 * shape["B"] * shape["T"] * R * (shape["V"] + shape["J"])

    return working_bytes


def _k2_obstacle(device_type: str) -> str | None:
    return None if via_k2.importable() else "the package k2 cannot be imported"


_FULL = {"B": 30, "T": 400, "U": 100, "R": 5, "J": 512}

BENCHMARK = Benchmark(
    name="loss",
    source=__name__,
    shapes={
        "cpu": tuple({"B": 4, "T": 60, "U": 15, "R": 5, "J": 128, "V": V} for V in (125, 500)),
        "cuda": tuple({**_FULL, "V": V} for V in (500, 5000)),
    },
    dtypes={"cpu": ("fp32",), "cuda": ("bf16", "fp16", "fp32")},
    gate_shape={"B": 2, "T": 18, "U": 6, "R": 3, "J": 16, "V": 17, "shortest": 15},
    make=_make,
    axis="V",
    work=_work,
    # fp16 and bf16: activations, logits and the products of the backward pass round one after another.
    tolerance={"fp32": (2e-5, 6e-6), "fp16": (6e-3, 2.5e-3), "bf16": (4e-2, 2e-2)},
    contenders=(
        triton_contender(_ours("triton"), _reference, _WRT),
        Contender("torch", _ours("torch"), _reference, _WRT, baseline=True, ours=True),
        Contender(
            "k2",
            _ours("k2"),
            _reference,
            _WRT,
            working_bytes=_logits_bytes("pruned"),
            obstacle=_k2_obstacle,
            dtypes=("fp32",),
            baseline=True,
        ),
        Contender(
            "fast_rnnt",
            _fast_rnnt,
            _reference,
            _WRT,
            working_bytes=_logits_bytes("pruned"),
            obstacle=fast_rnnt.obstacle,
            dtypes=("fp32",),
            baseline=True,
        ),
        Contender(
            "torchaudio, whole lattice",
            _torchaudio,
            _whole_reference,
            _JOINT,
            working_bytes=_logits_bytes("whole"),
            dtypes=("fp32",),
            baseline=True,
        ),
    ),
    about="Simple and pruned loss, joiner included. fast_rnnt stands for k2's own path: its recursion, fp32 logits "
    "(B, T, R, V) in memory; its ranges are ours, made beforehand, untimed. torchaudio's loss is of the whole "
    "lattice, without a simple loss. Baselines are fp32, as their authors have them.",
)
