"""Triton 3.6's interpreter does two things to bfloat16 that no GPU does: casts to it cut digits off (and take the bits
of an integer as they are), and products take its bits as integers. Tests of bf16 kernels need it to behave.

And it looks through the whole language at each call of one function by another, to give every name its meaning in the
interpreter, which the launch has done already: a third of its time.
"""

import os
from types import SimpleNamespace

import numpy as np
import torch


def repair() -> None:
    """Replace the two in this process, where kernels are interpreted, and give names their meaning once a launch."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    _patch_once_a_launch()
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def as_float(handle: TensorHandle) -> np.ndarray:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def as_bfloat16(data: np.ndarray) -> np.ndarray:
        rounded = torch.from_numpy(np.ascontiguousarray(data, np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self, src, dst_type):
        kinds = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in kinds or kinds[0] == kinds[1]:
            return cast(self, src, dst_type)
        if kinds[1] == tl.bfloat16:
            return TensorHandle(as_bfloat16(src.data), tl.bfloat16)
        return cast(self, TensorHandle(as_float(src), tl.float32), dst_type)

    def create_dot(self, a, b, d, *options):
        a, b = (TensorHandle(as_float(x), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *options)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(InterpreterBuilder, f"create_{name}", cast_impl)


def _patch_once_a_launch() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    every_name = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # what kernels and Triton's own functions see
    running = []

    def patch_once(fn):
        if not running:
            scope = patch(every_name)
            running.append((scope, scope.restore))

            def restore():
                running.pop()[1]()

            scope.restore = restore
        return running[0][0]

    interpreter._patch_lang = patch_once
