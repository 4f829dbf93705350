"""Records the Triton launches of a test, so that the same kernels can be compiled for real GPUs without one."""

import json
import os
import subprocess
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_COMPILER = Path(__file__).with_name("compile_launches.py")


@contextmanager
def recorded(run: Container[str] = ()) -> Iterator[list[dict[str, Any]]]:
    """The launches made inside, without doubles: module, kernel, signature, constants, options.

    Kernels do not run, so what they would write is left as it was, but those named in `run`: those whose results decide
    what is launched or where the host reads.
    """
    from triton.runtime.interpreter import InterpretedFunction

    launches: dict[str, dict[str, Any]] = {}
    interpret = InterpretedFunction.run

    def recording(self, *args, grid, warmup, **kwargs):
        launch = _describe(self, args, kwargs)
        launches[json.dumps(launch, sort_keys=True)] = launch
        if launch["kernel"] in run:
            interpret(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = recording
    found: list[dict[str, Any]] = []
    try:
        yield found
    finally:
        InterpretedFunction.run = interpret
        found.extend(launches.values())


def _describe(kernel: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    function = kernel.fn
    given = {**dict(zip(kernel.arg_names, args)), **kwargs}
    options = {name: given.pop(name) for name in ("num_warps", "num_stages", "num_ctas", "maxnreg") if name in given}
    signature, constants, integers = {}, {}, {}
    for name in kernel.arg_names:
        value = given[name] if name in given else kernel.signature.parameters[name].default
        if "constexpr" in str(function.__annotations__.get(name, "")) or value is None:
            assert value is None or isinstance(value, (bool, int, float, str)), (function.__name__, name, value)
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            integers[name] = [value == 1, value % 16 == 0]
        else:
            assert isinstance(value, float), (function.__name__, name, value)
            signature[name] = "fp32"
    return {
        "module": function.__module__,
        "kernel": function.__name__,
        "signature": signature,
        "constants": constants,
        "integers": integers,
        "options": {name: value for name, value in options.items() if value is not None},
    }


def compile_all(launches: list[dict[str, Any]], capability: int) -> list[dict[str, Any]]:
    """Compile to machine code of CUDA `capability` (90 = H100), in a process of its own, without the interpreter.

    One result for each launch: error (None), registers, spilled bytes, shared memory bytes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    request = json.dumps({"launches": launches, "capability": capability})
    done = subprocess.run(
        [sys.executable, str(_COMPILER)], input=request, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
