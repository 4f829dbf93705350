"""Cut manifests to batches: Lhotse samplers, augmentation, corpora that recipes share."""

from sumix_stream.data.batching.loader import Batch, TrainLoader
from sumix_stream.data.manifests import ManifestError, Utterance, UtteranceError, filter_cuts, load_cuts, read_valid

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
