"""What depends on a processor's instructions, on processors that this one can pose as.

A library keeps below what the processor has where its environment variable says so; ONNX Runtime has none, and its
integer products are held to exact arithmetic (tests/export/test_int8.py).
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from sumix_kernels.machine import flags

# Of each level: what PyTorch, oneDNN, MKL and Numba are told. Numba's products need AVX2's registers: below it they are
# compiled as everywhere, and not again.
NUMBA = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+popcnt"}
LEVELS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", **NUMBA},
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
# A part of the suite, in seconds: half precision, int8, streaming, training.
SUITE = (
    "tests/tasks/test_predictor.py",
    "tests/export/test_int8.py",
    "tests/test_streaming.py::test_batch_mates_and_padding_change_nothing",
    "tests/train/test_end_to_end.py::test_the_real_model_trains_in_half_precision_and_mixed_contexts",
)
# Compiled steps and products: below AVX2 they would be the same instructions again.
COMPILED = (
    "tests/runtime/test_compiled.py::test_frames_are_the_same_bits_in_every_batch",
    "tests/kernels/test_cpu_products.py",
)
needs_x86 = pytest.mark.skipif("avx2" not in flags(), reason="this processor is no x86-64 with AVX2")


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@needs_x86
@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_part_of_the_suite_on_a_lesser_processor(level):
    if level == "AVX2" and "avx512f" not in flags():
        pytest.skip("this processor has AVX2 and no more: the whole suite is that test")
    suite = SUITE + COMPILED if level == "AVX2" else SUITE
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *suite, **LEVELS[level])
    assert " passed" in told and " failed" not in told


@needs_x86
def test_the_limits_are_obeyed():
    """Otherwise the suite would run on the same processor again."""
    script = "import torch, sumix_kernels.cpu as cpu; print(torch.backends.cpu.get_cpu_capability(), cpu.ROWS)"
    script += "\nfrom sumix_stream.tasks.transducer.predictor import cpu_has_bf16_lstm; print(cpu_has_bf16_lstm())"
    assert run("-c", script, **LEVELS["AVX2"]).split() == ["AVX2", "4", "False"]
    capability, _, half = run("-c", script, **LEVELS["SSE4"]).split()
    assert (capability, half) == ("DEFAULT", "False")


AARCH64 = """
import importlib, logging, pkgutil, platform, sys
import torch
platform.machine = lambda: "aarch64"
notes = []
logging.getLogger("sumix_kernels.machine").addFilter(lambda record: notes.append(record.getMessage()) or False)
sys.path.insert(0, "tests")
from talkative import LetterTokenizer, sound, talkative_model
from sumix_stream.evaluate.exactness import compare
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.registry import choose
from sumix_stream.runtime.weights import Weights

torch.set_num_threads(1)
model, context = talkative_model(), ChunkContext(8, 2)
chosen, why = choose(Weights.of(model), context)
assert chosen == "torch" and "not compiled" in why and "x86-64" in why, (chosen, why)
result = compare(model, LetterTokenizer(), sound(3.0), 16_000, context)
assert result.holds and result.num_tokens > 10, str(result)
assert len(notes) == 1 and "are for x86-64, not aarch64" in notes[0], notes

loss = model.train().encoder(torch.randn(1, 40, 80), torch.tensor([40]), context)[0].square().sum()
loss.backward()
assert all(weight.grad.isfinite().all() for weight in model.encoder.parameters())

COMPILED = ("sumix_kernels.cpu", "sumix_kernels.training.", "sumix_stream.runtime.compiled")
refused = []
for package in ("sumix_kernels", "sumix_stream"):
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".", onerror=refused.append)
    for module in [module.name for module in found]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            assert "x86-64" not in str(error) or module.startswith(COMPILED), (module, error)
assert refused == ["sumix_kernels.cpu"], refused
assert not {"numba", "llvmlite"} & set(sys.modules), "what is for x86-64 was imported"
"""


def test_on_another_processor_pytorch_computes_and_says_so():
    run("-c", AARCH64)
