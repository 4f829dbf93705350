"""Compiles recorded launches (JSON on standard input) for a GPU that need not be there; see launches.py."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compile_launch(launch: dict, capability: int) -> dict:
    kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    if not isinstance(kernel, triton.JITFunction):
        kernel = kernel.kernel  # of a TunedKernel
    signature, constants, attributes = launch["signature"], launch["constants"], {}
    for index, parameter in enumerate(kernel.params):  # what a real launch knows: integers that are 1 or 16 n
        is_one, is_divisible = launch["integers"].get(parameter.name, (False, False))
        if is_one and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        elif signature[parameter.name].startswith("*") or (is_divisible and not parameter.do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch["options"])
    except Exception as error:  # whatever the compiler raises is the result
        return {"error": f"{type(error).__name__}: {error}"[:4000]}
    told = said.getvalue()
    if "registers" not in told:  # out of Triton's cache: nothing was assembled
        told = _assembled(compiled.asm["ptx"], capability)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", told)), default=None)
    if registers is None:
        return {"error": f"the assembler does not tell what it used: {told[:1000]!r}"}
    return {"error": None, "shared": compiled.metadata.shared, "registers": registers, "spilled": spilled}


def _assembled(ptx: str, capability: int) -> str:
    """What the assembler tells of registers and spilled bytes."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True).stderr


if __name__ == "__main__":
    request = json.load(sys.stdin)
    triton.knobs.nvidia.dump_ptxas_log = True
    print(json.dumps([compile_launch(launch, request["capability"]) for launch in request["launches"]]))
