"""Cut manifests to batches: Lhotse samplers, augmentation, corpora that recipes share."""

from sumix_stream.data.batches import Batch, TrainLoader
from sumix_stream.data.cuts import ManifestError, Utterance, UtteranceError, filter_cuts, load_cuts, read_valid

__all__ = [
    "Batch",
    "ManifestError",
    "TrainLoader",
    "Utterance",
    "UtteranceError",
    "filter_cuts",
    "load_cuts",
    "read_valid",
]
