"""What every test shares: the tolerance table, seeds, poisoned memory, the corpora.

Helpers are imported by name: ``from conftest import TOLERANCE, assert_close_as``.
"""

import fcntl
import os
import random
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

# Before torch is imported: several test processes share the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

# Before triton is: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import interpreter

from sumix_kernels.machine import why_not_compiled

interpreter.repair()

ROOT = Path(__file__).resolve().parent.parent
has_compiled_kernels = find_spec("numba") is not None and why_not_compiled() is None
needs_numba = pytest.mark.skipif(
    not has_compiled_kernels, reason="Numba is not installed, or this is no x86-64 processor"
)

# dtype -> (maximum error over the largest reference element, RMS error over the reference's RMS).
# The reference is computed in fp64 from the same (already rounded) inputs, so for half types these are a few
# roundings of the result and nothing more: half a unit in the last place is 4.9e-4 for fp16 and 3.9e-3 for bf16.
TOLERANCE: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-10, 1e-11),
    torch.float32: (1e-5, 3e-6),
    torch.float16: (1.5e-3, 6e-4),
    torch.bfloat16: (1e-2, 4e-3),
}


def assert_close_as(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Hold ``actual`` equal to ``expected`` within ``TOLERANCE[dtype]``, by maximum and by relative RMS.

    Shapes must agree and every element be finite; where the reference is zero throughout, the errors are absolute.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    actual = actual.detach().to("cpu", torch.float64)
    expected = expected.detach().to("cpu", torch.float64)
    assert expected.isfinite().all(), "the reference is not finite"
    assert actual.isfinite().all(), f"{(~actual.isfinite()).sum().item()} of {actual.numel()} elements are not finite"
    error = (actual - expected).abs()
    largest = expected.abs().max().item() or 1.0
    rms = expected.square().mean().sqrt().item() or 1.0
    max_error, rms_error = error.max().item() / largest, error.square().mean().sqrt().item() / rms
    max_allowed, rms_allowed = TOLERANCE[dtype]
    if max_error <= max_allowed and rms_error <= rms_allowed:
        return
    worst = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    raise AssertionError(
        f"not equal as {dtype}: max error {max_error:.3g} (allowed {max_allowed:g}), relative RMS {rms_error:.3g} "
        f"(allowed {rms_allowed:g}); worst at {worst}: {actual[worst]:.9g}, expected {expected[worst]:.9g}"
    )


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every test, whatever runs before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """One thread a process, as under xdist: sums are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton kernels run: the GPU if there is one, else the CPU, in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned_memory():
    """Fill memory that torch hands out uninitialised with NaN (largest value for integers): an unwritten tail fails."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Folder of real speech: ``$SUMIX_CORPORA``, else ``../shared/corpora`` beside the repository; else skips."""
    path = Path(os.environ.get("SUMIX_CORPORA") or ROOT.parent / "shared" / "corpora")
    if not path.is_dir():
        pytest.skip(f"no corpora at {path}; set SUMIX_CORPORA to a folder that has fsdd and librispeech-mini")
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the name, which the first test process to ask for it makes by `make(folder)`; others wait."""
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent  # that of all processes

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, part = top / name, top / f"{name}.part"
        with (top / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(part, ignore_errors=True)  # of one that failed
                part.mkdir()
                make(part)
                part.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def bundle(shared_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Folder of an exported talkative model: of (format, mixer, context). Each is made once; nobody writes into it."""
    from talkative import LetterTokenizer, talkative_model

    from sumix_stream.export.export import FORMATS

    def make(form: str, mixer: str, context: object) -> Path:
        name = re.sub(r"\W+", "-", f"bundle {form} {mixer} {context}")
        return shared_folder(
            name, lambda folder: FORMATS[form].save(folder, talkative_model(mixer), LetterTokenizer(), context)
        )

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
