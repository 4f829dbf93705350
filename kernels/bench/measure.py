"""Time and memory of one contender at one shape, in a process of its own (run by `bench.run`, as a module).

Time is the wall clock around a pass, repeated. Peak extra memory is what a pass needs beyond its input: on a CPU the
growth of the process's resident memory (Linux: VmHWM after a reset, less VmRSS before, with what malloc had kept
given back first; a few 100 kB are noise); on a GPU what torch's allocator hands out.
"""

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sumix_kernels.bench.registry import Shape, find, make_input

MIN_REPEATS, MAX_REPEATS = 3, 200


def measure(op: str, contender: str, shape: Shape, device: str, min_seconds: float) -> dict[str, dict]:
    """`forward` and `forward+backward`: ms at the 20, 50 and 80 % quantiles, repeats, peak extra MB (None: unknown)."""
    run = find(op).contender(contender).run

    def passes(shape: Shape) -> dict[str, Callable[[], None]]:
        x, lengths = make_input(shape, device), torch.full((shape["B"],), shape["T"], device=device)
        differentiable = x.detach().requires_grad_()
        grad = torch.ones_like(run(x, lengths, shape))  # made here, so that it counts as an input

        def forward() -> None:
            run(x, lengths, shape)

        def forward_backward() -> None:
            torch.autograd.grad(run(differentiable, lengths, shape), differentiable, grad)

        return {"forward": forward, "forward+backward": forward_backward}

    for warm_up in passes({**shape, "T": 256}).values():  # libraries and threads are loaded here
        warm_up()
    results = {}
    for name, pass_ in passes(shape).items():
        peak = _peak_extra_bytes(pass_, device)
        times = _times(pass_, device, min_seconds)
        p20, _, _, p80 = statistics.quantiles(times, n=5, method="inclusive")
        results[name] = {
            "ms_p20": 1e3 * p20,
            "ms_p50": 1e3 * statistics.median(times),
            "ms_p80": 1e3 * p80,
            "repeats": len(times),
            "peak_extra_mb": None if peak is None else peak / 1e6,
        }
    return results


def _times(pass_: Callable[[], None], device: str, min_seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < MIN_REPEATS or (sum(times) < min_seconds and len(times) < MAX_REPEATS):
        _synchronize(device)
        begin = time.perf_counter()
        pass_()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return times


def _peak_extra_bytes(pass_: Callable[[], None], device: str) -> int | None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pass_()
        _synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    try:
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        before = _status_bytes("VmRSS")
        pass_()
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:  # not Linux, or not allowed
        pass_()
        return None


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
