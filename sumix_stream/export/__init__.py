"""Models for other runtimes: ONNX files, sherpa-onnx bundles, torch.export programs."""

from importlib.util import find_spec

for _name in ("onnx", "onnxruntime", "onnxscript"):
    if find_spec(_name) is None:
        raise ImportError(f"export needs {_name}, which is not installed: pip install 'sumix-stream[export]'")
