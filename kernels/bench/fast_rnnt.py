"""The lattice recursion of the package fast_rnnt, which is k2's own, built from its sources without k2.

The sources are those of PyPI's fast_rnnt, unpacked: `pip download --no-binary :all: --no-deps fast_rnnt`, then
`tar xzf`. Nothing of them is kept here. Only the recursion is taken: the package's occupations have the wrong sign.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

SOURCES = "SUMIX_FAST_RNNT"  # environment variable that names the unpacked folder, also for measuring processes
_HOST = ("csrc/mutual_information_cpu.cu", "python/csrc/mutual_information.cu", "python/csrc/fast_rnnt.cu")
_DEVICE = "csrc/mutual_information_cuda.cu"

Recursion = Callable[[Tensor, Tensor, Tensor], Tensor]


def obstacle(device_type: str) -> str | None:
    folder = os.environ.get(SOURCES)
    if not folder:
        return "give its sources with --fast-rnnt DIR"
    missing = [name for name in (*_HOST, _DEVICE) if not (Path(folder) / "fast_rnnt" / name).is_file()]
    return f"{folder} has no fast_rnnt/{missing[0]}" if missing else None


@functools.cache
def recursion() -> Recursion:
    """px (B, S, T+1), py (B, S+1, T), boundary (B, 4) -> log-probability (B,), differentiable in px and py.

    The first call compiles, for a minute or two; the result is kept in torch's folder of extensions.
    """
    module = _build(Path(os.environ[SOURCES]), torch.cuda.is_available())

    class MutualInformation(torch.autograd.Function):
        """The gradients come with the forward pass, as in k2."""

        @staticmethod
        def forward(ctx, px: Tensor, py: Tensor, boundary: Tensor) -> Tensor:
            total = px.new_empty(px.shape[0], px.shape[1] + 1, py.shape[2] + 1)
            result = module.mutual_information_forward(px, py, boundary, total)
            ones = torch.ones_like(result)
            ctx.save_for_backward(*module.mutual_information_backward(px, py, boundary, total, ones))
            return result

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
            px_grad, py_grad = ctx.saved_tensors
            return px_grad * grad[:, None, None], py_grad * grad[:, None, None], None

    return lambda px, py, boundary: MutualInformation.apply(px.contiguous(), py.contiguous(), boundary)


def _build(folder: Path, with_cuda: bool) -> ModuleType:
    from torch.utils import cpp_extension

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    build = root / f"fast_rnnt_{'cuda' if with_cuda else 'cpu'}_torch{torch.__version__}"
    build.mkdir(parents=True, exist_ok=True)
    files = [folder / "fast_rnnt" / name for name in (*_HOST, *((_DEVICE,) if with_cuda else ()))]
    options = {"extra_include_paths": [str(folder)], "build_directory": str(build)}
    if with_cuda:
        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
        options |= {"extra_cuda_cflags": ["-O2", "-DFT_WITH_CUDA"], "with_cuda": True}
        options["extra_ldflags"] = _link_runtime(build)
    else:  # without a CUDA compiler the host files are plain C++
        copies = [build / f"{i}_{file.stem}.cc" for i, file in enumerate(files)]
        for file, copy in zip(files, copies):
            if not copy.is_file() or copy.read_bytes() != file.read_bytes():
                copy.write_bytes(file.read_bytes())
        files, options["extra_cflags"] = copies, ["-O2"]
    return cpp_extension.load("_fast_rnnt", [str(file) for file in files], **options)  # its sources fix the name


def _link_runtime(build: Path) -> list[str]:
    """Linker flags for libcudart where the only one is that of torch's wheel, which has no unversioned name."""
    found = sorted(Path(torch.__file__).parent.parent.glob("nvidia/**/libcudart.so.*"))
    if not found:
        return []
    link = build / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(found[0])
    return [f"-L{build}"]
