"""What the chunk ops take: checks that print what they got, and one form for what follows.

Values of tensors are checked where the tensors lie on the CPU; reading them elsewhere would make the host wait, and
reading them while torch.compile traces would end the graph.
"""

import operator

import torch
from torch import Tensor

from sumix_kernels.window import num_chunks


def check_frames(x: Tensor) -> tuple[int, int, int]:
    """(B, T, D) of x."""
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x must be a floating point tensor (B, T, D), got {x.dtype} {tuple(x.shape)}")
    return tuple(x.shape)


def check_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    """Lengths (B,) as int64 on x's device."""
    num_frames = x.shape[1]
    _check_integers("lengths", lengths, x.shape[0], 0)
    if readable(lengths) and int(lengths.max()) > num_frames:
        raise ValueError(f"lengths must be at most T = {num_frames} of x {tuple(x.shape)}, got {lengths.tolist()}")
    return lengths.to(x.device, torch.int64, non_blocking=True).contiguous()


def check_chunk_size(chunk_size: int | Tensor | None, x: Tensor) -> tuple[int | Tensor, int]:
    """Chunk size (B, 1) on x's device, or int, between 1 and T; and the number of chunks that cover T frames.

    The smallest value of a tensor is read on the host: keep chunk sizes on the CPU.
    """
    num_frames = x.shape[1]
    size = check_frames_of_chunk(chunk_size, x)
    if not isinstance(chunk_size, Tensor):
        return size, num_chunks(num_frames, size)
    smallest = int(chunk_size.min()) if len(chunk_size) else num_frames
    return size, num_chunks(num_frames, max(1, min(smallest, num_frames)))


def check_frames_of_chunk(chunk_size: int | Tensor | None, x: Tensor) -> int | Tensor:
    """Chunk size (B, 1) on x's device, or int, between 1 and T. No value of a tensor on a GPU is read."""
    longest = max(x.shape[1], 1)
    if isinstance(chunk_size, Tensor):
        _check_integers("chunk_size", chunk_size, x.shape[0], 1)
        return chunk_size.to(torch.int64).clamp(max=longest).to(x.device, non_blocking=True)[:, None]
    return longest if chunk_size is None else min(_integer("chunk_size", chunk_size, 1, "frames"), longest)


def check_left_context(left_context: int | Tensor | None, x: Tensor, chunks: int) -> int | Tensor | None:
    """Left context as (B, 1) on x's device, or int; None if every one of `chunks` chunks sees all before it."""
    if isinstance(left_context, Tensor):
        _check_integers("left_context", left_context, x.shape[0], 0)
        return left_context.to(torch.int64).clamp(max=chunks).to(x.device, non_blocking=True)[:, None]
    left_context = None if left_context is None else _integer("left_context", left_context, 0, "chunks")
    return None if left_context is None or left_context >= chunks - 1 else left_context


def check_rows(summary: Tensor, chunk_size: int | Tensor | None, num_frames: int) -> int | Tensor:
    """Chunk size as of `check_chunk_size`, for a summary (B, N, D) that has a row for each chunk of `num_frames`."""
    size, chunks = check_chunk_size(chunk_size, summary.new_empty(0).expand(len(summary), num_frames, 0))
    if summary.shape[1] != chunks:
        raise ValueError(
            f"summary {tuple(summary.shape)} must have N = {chunks} rows for {num_frames} frames in chunks of "
            f"{chunk_size}, got {summary.shape[1]}"
        )
    return size


def split(value: int | Tensor) -> tuple[int, Tensor | None]:
    """An int, or (B, 1), one for each utterance, as the two arguments of a registered op."""
    return (0, value.flatten()) if isinstance(value, Tensor) else (value, None)


def readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()


def known_whole(lengths: Tensor, num_frames: int) -> bool:
    """Whether it is known on the host, at no cost, that no frame is padding: masks can be left out."""
    return readable(lengths) and int(lengths.min()) >= num_frames


def _integer(name: str, value: int, least: int, unit: str) -> int:
    if not isinstance(value, int) and hasattr(value, "__index__"):  # torch.compile can trace neither, nor has to
        value = operator.index(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least} ({unit}), a tensor (B,) of them or None, got {value!r}")
    return value


def _check_integers(name: str, values: Tensor, batch_size: int, least: int) -> None:
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be an integer tensor, got {kind}")
    if values.shape != (batch_size,):
        raise ValueError(f"{name} must have shape (B,) = ({batch_size},), got {tuple(values.shape)}")
    if readable(values) and int(values.min()) < least:
        raise ValueError(f"{name} must be at least {least}, got {values.tolist()}")
