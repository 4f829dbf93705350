"""The processor a figure was measured on: its name and its instruction set. Standard library only; Linux, macOS, others
with what Python's platform module knows."""

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")
# Environment variables that keep a library below what the processor has: PyTorch, oneDNN, MKL, Numba.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_NAME")

# Name -> flags of which each group has at least one, as Linux writes them (macOS is translated to these).
_LEVELS = {
    "AVX-512": (("avx512f",), ("avx512bw",), ("avx512dq",), ("avx512vl",)),
    "AVX2": (("avx2",), ("fma",)),
    "SVE": (("sve",),),
    "NEON": (("asimd", "neon"),),
}
_EXTRAS = {
    "VNNI": (("avx512_vnni", "avx_vnni"),),
    "bf16": (("avx512_bf16", "bf16"),),
    "fp16": (("avx512_fp16", "asimdhp"),),
    "AMX": (("amx_tile",),),
    "dot products": (("asimddp",),),
    "i8mm": (("i8mm",),),
}
_MACOS = {
    "AdvSIMD": "asimd",
    "FEAT_DotProd": "asimddp",
    "FEAT_FP16": "asimdhp",
    "FEAT_BF16": "bf16",
    "FEAT_I8MM": "i8mm",
}


def instruction_set() -> str:
    """`AVX2`; `AVX-512, VNNI, bf16, AMX`; `NEON, fp16, dot products`: the widest vectors and what multiplies small
    types, with the limits that the environment sets to libraries. `instruction set unknown` where the system hides it.
    """
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return named(flags()) + (f", limited by {' '.join(limits)}" if limits else "")


@cache
def why_not_compiled() -> str | None:
    """Why `sumix_kernels.cpu` is not to be used here, noted in the log once; None where it is.

    Its products are laid out for x86-64's vectors, one of them in assembly, and have been tested nowhere else.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return None
    reason = f"compiled CPU kernels are for x86-64, not {platform.machine()}: PyTorch and NumPy compute instead"
    log.warning("%s", reason)
    return reason


def named(found: Iterable[str]) -> str:
    """`instruction_set` of these flags."""
    found = set(found)

    def has(groups: tuple[tuple[str, ...], ...]) -> bool:
        return all(found.intersection(group) for group in groups)

    level = next((name for name, groups in _LEVELS.items() if has(groups)), None)
    if level is None:
        return "no vector instructions known here" if found else "instruction set unknown"
    return ", ".join([level, *(name for name, groups in _EXTRAS.items() if has(groups))])


@cache
def flags() -> frozenset[str]:
    """Of this processor, as Linux names them; none where the system does not tell."""
    if CPUINFO.is_file():
        return frozenset(_cpuinfo("flags", "Features").split())
    if sys.platform != "darwin":
        return frozenset()
    if platform.machine() == "arm64":
        told = _sysctl("hw.optional")
        on = {line.split(":")[0].rsplit(".", 1)[-1] for line in told.splitlines() if line.endswith(": 1")}
        return frozenset(flag for name, flag in _MACOS.items() if name in on)
    told = _sysctl("-n", "machdep.cpu.features") + " " + _sysctl("-n", "machdep.cpu.leaf7_features")
    return frozenset(told.lower().split())


@cache
def processor() -> str:
    """The maker's name, else the architecture's."""
    name = _cpuinfo("model name") if CPUINFO.is_file() else ""
    if sys.platform == "darwin":
        name = _sysctl("-n", "machdep.cpu.brand_string")
    return name.strip() or platform.processor() or platform.machine()


def _cpuinfo(*names: str) -> str:
    """The first core's value of one of these names, or nothing."""
    for line in CPUINFO.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _sysctl(*arguments: str) -> str:
    try:
        return subprocess.run(["sysctl", *arguments], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
