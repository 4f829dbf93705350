"""How a machine's instruction set is named, whatever this one is."""

import platform
import sys

import pytest

from sumix_kernels import machine
from sumix_kernels.bench.run import environment

X86 = {"sse4_2", "avx", "fma"}
AVX512 = X86 | {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    "flags, name",
    [
        (X86 | {"avx2"}, "AVX2"),
        (X86 | {"avx2", "avx_vnni"}, "AVX2, VNNI"),
        (AVX512 - {"avx512bw"}, "AVX2"),  # Xeon Phi: not what libraries mean by AVX-512
        (AVX512, "AVX-512"),
        (AVX512 | {"avx512_vnni", "avx512_bf16", "amx_tile"}, "AVX-512, VNNI, bf16, AMX"),
        ({"fp", "asimd"}, "NEON"),
        ({"asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"}, "SVE, bf16, fp16, dot products, i8mm"),
        ({"sse2"}, "no vector instructions known here"),
        (set(), "instruction set unknown"),
    ],
)
def test_names(flags, name):
    assert machine.named(flags) == name


@pytest.fixture
def forgotten():
    """What has been read is read again, before and after."""
    cached = machine.flags, machine.processor
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


CPUINFO = {
    "x86": ("model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma avx\n\nflags : other", "Some CPU @ 2 GHz", "AVX2"),
    "aarch64": ("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n", None, "NEON, dot products"),
    "nothing known": ("processor : 0\n", None, "instruction set unknown"),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_linux(name, forgotten, monkeypatch, tmp_path):
    text, processor, found = CPUINFO[name]
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    for limit in machine.LIMITS:
        monkeypatch.delenv(limit, raising=False)
    assert machine.instruction_set() == found
    assert machine.processor() == (processor or platform.processor() or platform.machine())


@pytest.mark.parametrize("arm", [True, False])
def test_macos(arm, forgotten, monkeypatch, tmp_path):
    told = {
        ("hw.optional",): "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\nhw.optional.AdvSIMD: 1\n",
        ("-n", "machdep.cpu.features"): "FPU SSE4.2 FMA AVX1.0\n",
        ("-n", "machdep.cpu.leaf7_features"): "AVX2 BMI2\n",
        ("-n", "machdep.cpu.brand_string"): "Some Chip\n",
    }
    monkeypatch.setattr(machine, "_sysctl", lambda *names: told[names])
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64" if arm else "x86_64")
    assert machine.named(machine.flags()) == ("NEON, dot products" if arm else "AVX2")
    assert machine.processor() == "Some Chip"


def test_elsewhere_nothing_is_read(forgotten, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    assert machine.named(machine.flags()) == "instruction set unknown"
    assert machine.processor() == (platform.processor() or platform.machine())


def test_a_benchmark_names_instruction_set_and_limits(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    told = environment("cpu", "bench")["machine"]
    assert machine.instruction_set() in told and "ATEN_CPU_CAPABILITY=avx2" in told
