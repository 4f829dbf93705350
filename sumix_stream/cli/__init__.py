"""The commands behind bin/ and the console script `sumix`: arguments in, one call, print."""

import os

# Of OpenMP's threads, where others share their cores: without it they spin for milliseconds at the end of each short
# operation, waiting for one that cannot run, and training beside another program took 70 times as long. Alone it
# takes a tenth longer with it. It is read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Libraries that are not part of the light install, and the extra that brings them.
_TRAIN = "torch torchaudio triton lhotse lightning lightning_fabric tensorboard PIL tqdm kaldialign"
_EXTRAS = dict.fromkeys(_TRAIN.split(), "train") | {
    "onnx": "export",
    "onnxscript": "export",
    "matplotlib": "bench",
    "av": "media",
}


def missing(error: ImportError) -> str:
    """What to install for a library that is not here. Raises the error itself where it is about something else."""
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        raise error
    return f"{name} is not installed: pip install 'sumix-stream[{_EXTRAS[name]}]'"
