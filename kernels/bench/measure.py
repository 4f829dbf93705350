"""Time and memory of contenders, in a process of their own (run by `bench.run`, as a module).

The request is JSON on the command line; the answer to each of its jobs is a line of JSON on the standard output.

Time: on a GPU between CUDA events around a pass, after warm-up, the L2 cache overwritten before every repeat, and the
launches given a head start, so that the device's time is told and not the host's; of whole models and on a CPU the
wall clock. Peak extra memory is what a pass needs beyond its inputs and the gradients that come in, with what the
contender prepared counted in: on a GPU what torch's allocator hands out; on a CPU the growth of the process's resident
memory (Linux: VmHWM after a reset, less VmRSS before, with what malloc had kept given back first; a few 100 kB are
noise).
"""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sumix_kernels.bench.gate import why
from sumix_kernels.bench.registry import DTYPES, Benchmark, Contender, Inputs, Shape, load

MIN_REPEATS, MAX_REPEATS = 3, 200
WARM_UP_REPEATS = 3  # on a GPU, after the first call, which compiles and tunes
HEAD_START_CYCLES = 2_000_000  # about a millisecond, in which the host launches a pass

Pass = Callable[[], object]


def measure(
    benchmark: Benchmark, contender: Contender, shapes: list[Shape], dtype: str, device: str, min_seconds: float
) -> Iterator[dict[str, dict]]:
    """For each shape, by pass: ms at quantiles, repeats, peak extra MB (None: unknown); or a note why not."""
    if not _on_gpu(device):  # libraries and threads are loaded here, or they would count as memory
        for pass_ in _prepared(benchmark, contender, benchmark.gate_shape, dtype, device)[0].values():
            pass_()
    for shape in shapes:
        try:
            yield _measure_shape(benchmark, contender, shape, dtype, device, min_seconds)
        except Exception as error:  # one shape that does not fit does not end the others
            yield {name: {"note": why(error)} for name in benchmark.pass_names}
        _forget_shape(device)


def ceilings(dtype: str, device: str) -> dict[str, float]:
    """What the device does at best: GB/s of a large copy (read and write counted), TFLOP/s of a large product."""
    num_bytes, side = (1 << 30, 8192) if _on_gpu(device) else (1 << 25, 512)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_time = statistics.median(_times(lambda: target.copy_(source), device, 0.1))
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    product_time = statistics.median(_times(lambda: torch.mm(a, b), device, 0.1))
    return {"copy_gb_per_s": 2e-9 * num_bytes / copy_time, "matmul_tflops": 2e-12 * side**3 / product_time}


def clocks(device: str) -> str:
    """SM, memory and highest SM clock in MHz, power in W, as nvidia-smi says; empty where it cannot."""
    if not _on_gpu(device):
        return ""
    query = "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm,power.draw"
    index = str(torch.device(device).index or 0)
    try:
        command = ["nvidia-smi", "-i", index, query, "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _measure_shape(
    benchmark: Benchmark, contender: Contender, shape: Shape, dtype: str, device: str, min_seconds: float
) -> dict[str, dict]:
    passes, prepared_bytes = _prepared(benchmark, contender, shape, dtype, device)
    results = {}
    for name, pass_ in passes.items():
        if _on_gpu(device):
            for _ in range(1 + WARM_UP_REPEATS):
                pass_()
        peak = _peak_extra_bytes(pass_, device)
        times = _times(pass_, device, min_seconds, benchmark.wall_clock)
        p20, _, _, p80 = statistics.quantiles(times, n=5, method="inclusive")
        results[name] = {
            "ms_p20": 1e3 * p20,
            "ms_p50": 1e3 * statistics.median(times),
            "ms_p80": 1e3 * p80,
            "ms_p95": 1e3 * statistics.quantiles(times, n=20, method="inclusive")[-1],
            "repeats": len(times),
            "peak_extra_mb": None if peak is None else (peak + prepared_bytes) / 1e6,
        }
    return results


def _prepared(
    benchmark: Benchmark, contender: Contender, shape: Shape, dtype: str, device: str
) -> tuple[dict[str, Pass], int]:
    """The passes, and the bytes of what the contender prepared for them."""
    inputs = benchmark.make(shape, DTYPES[dtype], device)
    prepared = contender.prepare(inputs, shape)
    passes = benchmark.passes(contender, inputs | prepared, shape)
    assert tuple(passes) == benchmark.pass_names, (tuple(passes), benchmark.pass_names)
    return passes, _num_bytes(prepared)


def _num_bytes(inputs: Inputs) -> int:
    total = 0
    for value in inputs.values():
        tensors = [value] if isinstance(value, Tensor) else value.parameters() if isinstance(value, nn.Module) else ()
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def _forget_shape(device: str) -> None:
    """Compiled code is for one shape; a cache of another shape's blocks is no memory that this one needs."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if _on_gpu(device):
        torch.cuda.empty_cache()


def _times(pass_: Pass, device: str, min_seconds: float, wall_clock: bool = False) -> list[float]:
    """Seconds of each repeat."""
    if _on_gpu(device) and not wall_clock:
        return _gpu_times(pass_, device, min_seconds)
    times: list[float] = []
    while len(times) < MIN_REPEATS or (sum(times) < min_seconds and len(times) < MAX_REPEATS):
        _synchronize(device)
        begin = time.perf_counter()
        pass_()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return times


def _synchronize(device: str) -> None:
    if _on_gpu(device):
        torch.cuda.synchronize(device)


def _gpu_times(pass_: Pass, device: str, min_seconds: float) -> list[float]:
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(max(2 * cache_bytes, 1 << 26), dtype=torch.uint8, device=device)
    pass_()
    _synchronize(device)
    begin = time.perf_counter()
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    while len(events) < MIN_REPEATS or (time.perf_counter() - begin < min_seconds and len(events) < MAX_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START_CYCLES)
        flush.zero_()
        start.record()
        pass_()
        end.record()
        events.append((start, end))
        if len(events) % 10 == 0:  # the queue stays short, so that the clock above tells the device's time too
            _synchronize(device)
    _synchronize(device)
    return [1e-3 * start.elapsed_time(end) for start, end in events]


def _peak_extra_bytes(pass_: Pass, device: str) -> int | None:
    if _on_gpu(device):
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        pass_()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
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


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _answer(request: dict[str, Any]) -> None:
    device = request["device"]
    if _on_gpu(device):
        torch.cuda.set_device(device)
    for job in request["jobs"]:
        if "ceilings" in job:
            answer = ceilings(job["ceilings"], device)
        else:
            benchmark = load(request["source"])
            contender = benchmark.contender(job["contender"])
            (results,) = measure(benchmark, contender, [job["shape"]], job["dtype"], device, request["min_seconds"])
            answer = {name: {**row, "clocks": clocks(device)} for name, row in results.items()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]))
