"""Integer products of int8 files are exact on every processor, in the worst case too."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from sumix_stream.export.quantise import PRODUCTS, quantise
from sumix_stream.runtime import bundle
from sumix_stream.runtime.bundle import BundleError, open_bundle, open_session

DEPTH = 256
LARGEST_INT16, LARGEST_UINT8 = 32_767, 255
LAYOUTS = {
    "ours": quantise,
    "signed": lambda path: quantize_dynamic(path, path, PRODUCTS, per_channel=True, weight_type=QuantType.QInt8),
    "signed, 7 bits": lambda path: quantize_dynamic(
        path, path, PRODUCTS, per_channel=True, weight_type=QuantType.QInt8, reduce_range=True
    ),
}


def worst_weights() -> np.ndarray:
    """(DEPTH, 7) fp32, a column each: the largest of one sign, of alternating signs, one of the other sign; random."""
    ones = np.ones(DEPTH)
    alternating = np.where(np.arange(DEPTH) % 2, 1.0, -1.0)
    one_off = np.where(np.arange(DEPTH) == 3, -1.0, 1.0)
    random = np.random.default_rng(0).standard_normal((2, DEPTH))
    return np.stack([ones, -ones, alternating, one_off, -one_off, *random], 1).astype(np.float32)


def worst_rows() -> np.ndarray:
    """(6, DEPTH) fp32 in -1..1, of which a batch has one scale: the largest, the smallest, zeros, and random ones."""
    random = np.random.default_rng(1).uniform(-1, 1, (2, DEPTH))
    ones = np.ones(DEPTH)
    return np.stack([ones, -ones, 0 * ones, np.where(np.arange(DEPTH) % 2, 1, -1), *random]).astype(np.float32)


def product_file(path: Path, weights: np.ndarray) -> Path:
    """A graph of one MatMul: x (B, K) -> y (B, N)."""
    depth, width = weights.shape
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["streams", depth])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["streams", width])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def integer_weights(path: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each integer product of a file: weights (K, N), and scales and zero points that fit them."""
    graph = onnx.load(path).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix("_quantized")
            found.append((held[node.input[1]], held[f"{name}_scale"], held[node.input[3]]))
    return found


def exact(x: np.ndarray, weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """ONNX's DynamicQuantizeLinear and MatMulInteger in 64-bit integers, then fp64."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32(high - low) / np.float32(LARGEST_UINT8)
    zero = np.clip(np.rint(-low / step), 0, LARGEST_UINT8)
    rounded = np.clip(np.rint(x / step) + zero, 0, LARGEST_UINT8) - zero
    sums = rounded.astype(np.int64) @ (weights.astype(np.int64) - zeros.astype(np.int64))
    return sums * np.float64(step) * scales.astype(np.float64)


def overflows(weights: np.ndarray) -> bool:
    """Whether two neighbours' products with the largest activation exceed 16 bits where weights are signed; unsigned
    ones are not multiplied by the instruction that adds in 16 bits."""
    if weights.dtype == np.uint8:
        return False
    wide = weights.astype(np.int64)
    pairs = np.maximum(wide[0::2], 0) + np.maximum(wide[1::2], 0), np.minimum(wide[0::2], 0) + np.minimum(wide[1::2], 0)
    return bool(LARGEST_UINT8 * max(pairs[0].max(), -pairs[1].min()) > LARGEST_INT16)


@pytest.mark.parametrize("layout, expected", [("ours", False), ("signed", True), ("signed, 7 bits", False)])
def test_which_layouts_can_overflow(layout, expected, tmp_path):
    path = product_file(tmp_path / "product.onnx", worst_weights())
    LAYOUTS[layout](path)
    ((weights, *_),) = integer_weights(path)
    assert overflows(weights) is expected


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 2), slice(4, 5)], ids=str)
def test_sums_are_exact_in_the_worst_case(rows, tmp_path):
    """In onnxruntime on this processor, whichever it is."""
    path = product_file(tmp_path / "product.onnx", worst_weights())
    quantise(path)
    ((weights, scales, zeros),) = integer_weights(path)
    assert weights.min() == 0 and weights.max() == LARGEST_UINT8
    x = worst_rows()[rows]
    (actual,) = open_session(path).run(None, {"x": x})
    expected = exact(x, weights, scales, zeros)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    # Half a step of rows and of weights for each pair; a sum that saturates is 128 off.
    assert np.abs(expected - x.astype(np.float64) @ worst_weights()).max() <= 2.1 / LARGEST_UINT8 * DEPTH


def test_unsigned_weights_lose_least(tmp_path):
    """Against seven bits, the other layout that cannot overflow."""
    x, loss = worst_rows()[4:], {}
    rng = np.random.default_rng(2)
    weights = (rng.standard_normal((DEPTH, 64)) + rng.standard_normal(64)).astype(np.float32)
    for name in ("ours", "signed, 7 bits"):
        path = product_file(tmp_path / "product.onnx", weights)
        LAYOUTS[name](path)
        (y,) = open_session(path).run(None, {"x": x})
        loss[name] = np.square(y - x.astype(np.float64) @ weights).mean()
    assert loss["ours"] < 0.5 * loss["signed, 7 bits"]


def test_a_bundle_of_the_layout_that_overflows_is_refused_where_it_would(tmp_path, monkeypatch, caplog):
    """By its card, before its files are opened: here there are none."""
    for card in ({"weights": "fp32"}, {"weights": "int8", "int8_products": "unsigned"}, ["no card"]):
        (tmp_path / "card.json").write_text(json.dumps(card))
        with pytest.raises(BundleError, match=r"encoder.onnx is missing"):
            open_bundle(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"weights": "int8"}))
    monkeypatch.setattr(bundle.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(bundle, "flags", lambda: frozenset({"avx2"}))
    with pytest.raises(BundleError, match=r"int8 weights in a layout .* this one: export the checkpoint again"):
        open_bundle(tmp_path)
    for machine, flags in (("x86_64", {"avx2", "avx512_vnni"}), ("x86_64", {"avx2", "avx_vnni"}), ("aarch64", set())):
        caplog.clear()
        monkeypatch.setattr(bundle.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(bundle, "flags", lambda flags=flags: frozenset(flags))
        with pytest.raises(BundleError, match=r"encoder.onnx is missing"):
            open_bundle(tmp_path)
        assert "export the checkpoint again before it goes to another machine" in caplog.text
