"""What a CPU does while a conformer streams and a greedy search goes on, compiled by Numba.

PyTorch takes some microseconds for each of the many small operators of a chunk, of which a lone stream has 16 frames:
more than for the work itself. Here a chunk is two functions. Arrays are C-contiguous NumPy arrays, fp32 but for
lengths; nothing is checked. Arithmetic is fp32 to a few units in the last place: tests compare with PyTorch's.

Importing it raises ImportError without Numba, and on other processors than x86-64.
"""

from sumix_kernels.machine import why_not_compiled

if reason := why_not_compiled():
    raise ImportError(reason)

from sumix_kernels.cpu.beam import search_beams
from sumix_kernels.cpu.fbank import cut_frames, log_mel
from sumix_kernels.cpu.front_end import enter, step_front_end
from sumix_kernels.cpu.greedy import predict_all, project_frames, search_greedily
from sumix_kernels.cpu.layers import convolve, finish, merge, normalise, step_layers, summarise
from sumix_kernels.cpu.lstm import step_lstms
from sumix_kernels.cpu.products import (
    HAS_BF16,
    ROWS,
    WIDTH,
    convolve_rows,
    filled_up,
    in_a_row,
    multiply,
    padded,
    panels,
)
from sumix_kernels.cpu.separable_front_end import step_separable_front_end

__all__ = [
    "HAS_BF16",
    "ROWS",
    "WIDTH",
    "convolve",
    "convolve_rows",
    "cut_frames",
    "enter",
    "filled_up",
    "finish",
    "in_a_row",
    "log_mel",
    "merge",
    "multiply",
    "normalise",
    "padded",
    "panels",
    "predict_all",
    "project_frames",
    "search_beams",
    "search_greedily",
    "step_front_end",
    "step_layers",
    "step_lstms",
    "step_separable_front_end",
    "summarise",
]
