"""Triton 3.6's interpreter does two things to bfloat16 that no GPU does: casts to it cut digits off (and take the bits
of an integer as they are), and products take its bits as integers. Tests of bf16 kernels need it to behave."""

import os

import numpy as np
import torch


def repair() -> None:
    """Replace the two in this process, where kernels are interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
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
