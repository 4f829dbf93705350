"""Compiles recorded launches (JSON on standard input) for a GPU that need not be there; see launches.py."""

import importlib
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
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch["options"])
    except Exception as error:  # whatever the compiler raises is the result
        return {"error": f"{type(error).__name__}: {error}"[:4000]}
    return {"error": None, "shared": compiled.metadata.shared, **_assembled(compiled.asm["ptx"], capability)}


def _assembled(ptx: str, capability: int) -> dict:
    """Registers a thread and spilled bytes, as the assembler tells."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)), default=None)
    return {"registers": registers, "spilled": spilled}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps([compile_launch(launch, request["capability"]) for launch in request["launches"]]))
