"""Streaming speech recognition with SummaryMixing conformer transducers.

The public names below are loaded on first use: ``import sumix_stream`` imports neither torch nor anything slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sumix_stream.config import ModelConfig
    from sumix_stream.context import ChunkContext
    from sumix_stream.search.hypothesis import Hypothesis
    from sumix_stream.streaming.recognizer import Recognizer, load
    from sumix_stream.tasks.build import build_model

__version__ = "0.1.0"
__all__ = ["ChunkContext", "Hypothesis", "ModelConfig", "Recognizer", "build_model", "load"]

_HOME = {
    "ChunkContext": "sumix_stream.context",
    "Hypothesis": "sumix_stream.search.hypothesis",
    "ModelConfig": "sumix_stream.config",
    "Recognizer": "sumix_stream.streaming.recognizer",
    "build_model": "sumix_stream.tasks.build",
    "load": "sumix_stream.streaming.recognizer",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sumix_stream' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
