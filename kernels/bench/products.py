"""The matrix products of a chunk step: ours in LLVM IR beside those of kept libraries, on one thread.

    OMP_NUM_THREADS=1 python -m sumix_kernels.bench.products

Prints milliseconds (medians of passes in turn) for the rows of one stream and of batches, with the weights of a preset
`small` layer, each a few dozen matrices apart so that they come from memory as in a model.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from sumix_kernels.machine import instruction_set, processor

SHAPES = ((256, 1024), (1024, 256), (256, 256))  # (inputs, outputs)
ROWS = (16, 32, 128)
_MATRICES = 24  # of each shape: 25 MB, more than a cache keeps beside other work
Pass = Callable[[np.ndarray], list[np.ndarray]]  # rows (n, K) -> each matrix's product (n, N)


def ours(weights: list[np.ndarray]) -> Pass:
    from sumix_kernels.cpu.products import ROWS as TILE
    from sumix_kernels.cpu.products import WIDTH, filled_up, multiply, padded, panels

    packed, bias = [panels(w) for w in weights], padded(np.zeros(len(weights[0]), np.float32))
    none = np.empty((0, 0), np.int16)

    def run(x: np.ndarray) -> list[np.ndarray]:
        rows = np.zeros((filled_up(len(x), TILE), x.shape[1]), np.float32)
        rows[: len(x)] = x
        found = []
        for w in packed:
            out = np.empty((len(rows), filled_up(len(weights[0]), WIDTH)), np.float32)
            multiply(rows, len(x), w, bias, 0, False, out, none)
            found.append(out[: len(x), : len(weights[0])])
        return found

    return run


def numba_loops(weights: list[np.ndarray]) -> Pass:
    """The same panels in plain loops, which LLVM turns into vector instructions by itself."""
    import numba

    from sumix_kernels.cpu.products import WIDTH, panels

    @numba.njit(fastmath=True, error_model="numpy")
    def product(x, w, out):
        for p in range(w.shape[0]):
            for n in range(0, x.shape[0], 4):
                sums = np.zeros((4, WIDTH), np.float32)
                for k in range(w.shape[1]):
                    for r in range(4):
                        factor = x[n + r, k]
                        for i in range(WIDTH):
                            sums[r, i] += factor * w[p, k, i]
                out[n : n + 4, p * WIDTH : (p + 1) * WIDTH] = sums

    packed, N = [panels(w) for w in weights], len(weights[0])

    def run(x: np.ndarray) -> list[np.ndarray]:
        found = []
        for w in packed:
            out = np.empty((len(x), len(w) * WIDTH), np.float32)
            product(x, w, out)
            found.append(out[:, :N])
        return found

    return run


def numpy_blas(weights: list[np.ndarray]) -> Pass:
    columns = [np.ascontiguousarray(w.T) for w in weights]
    return lambda x: [x @ w for w in columns]


def pytorch(weights: list[np.ndarray]) -> Pass:
    import torch

    torch.set_num_threads(1)
    tensors = [torch.from_numpy(w) for w in weights]

    def run(x: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            rows = torch.from_numpy(x)
            return [torch.nn.functional.linear(rows, w).numpy() for w in tensors]

    return run


def onnx_runtime(weights: list[np.ndarray]) -> Pass:
    """One graph with all matrices, so that its calls cost once."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    names = [f"y{i}" for i in range(len(weights))]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [name]) for i, name in enumerate(names)]
    constants = [numpy_helper.from_array(np.ascontiguousarray(w.T), f"w{i}") for i, w in enumerate(weights)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights[0].shape[1]])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(weights[0])]) for name in names]
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(names, {"x": x})


CONTENDERS: dict[str, Callable[[list[np.ndarray]], Pass]] = {
    "ours, LLVM IR": ours,
    "Numba, plain loops": numba_loops,
    "NumPy's OpenBLAS": numpy_blas,
    "PyTorch's MKL": pytorch,
    "ONNX Runtime": onnx_runtime,
}


def measure(rows: int, inputs: int, outputs: int, repeats: int, matrices: int = _MATRICES) -> dict[str, list[float]]:
    """Milliseconds a product of each contender, pass by pass. Raises ValueError for a result that is wrong."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((outputs, inputs), np.float32) for _ in range(matrices)]
    x = rng.standard_normal((rows, inputs), np.float32)
    exact = [x.astype(np.float64) @ w.T.astype(np.float64) for w in weights]
    passes = {name: make(weights) for name, make in CONTENDERS.items()}
    for name, run in passes.items():
        error = max(np.abs(y - e).max() / np.abs(e).max() for y, e in zip(run(x), exact, strict=True))
        if not error < 1e-5:
            raise ValueError(f"{name}: {rows} x {inputs} x {outputs} is wrong by {error:.1e} of its largest number")
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            begin = time.perf_counter()
            run(x)
            found[name].append(1e3 * (time.perf_counter() - begin) / matrices)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=41, help="passes; default 41")
    args = parser.parse_args(arguments)
    print(f"{processor()}, {instruction_set()}; ms a product, and times ours\n")
    print("| rows x inputs x outputs | " + " | ".join(CONTENDERS) + " |\n|---|" + "--:|" * len(CONTENDERS))
    for inputs, outputs in SHAPES:
        for rows in ROWS:
            medians = {k: statistics.median(v) for k, v in measure(rows, inputs, outputs, args.repeats).items()}
            base = next(iter(medians.values()))
            cells = [f"{value:.3f} ({value / base:.2f})" for value in medians.values()]
            print(f"| {rows} x {inputs} x {outputs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
