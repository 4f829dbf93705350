"""Checkpoints without PyTorch: a directory of safetensors, YAML and the tokenizer. Nothing is pickled, and nothing is
half written."""

from sumix_stream.checkpoint.layout import CheckpointError, DamagedCheckpoint
from sumix_stream.checkpoint.reading import CheckpointArrays, read_checkpoint

__all__ = ["CheckpointArrays", "CheckpointError", "DamagedCheckpoint", "read_checkpoint"]
