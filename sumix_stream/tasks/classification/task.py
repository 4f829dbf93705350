"""The task `classification`: speech to labels."""

from __future__ import annotations

from pathlib import Path

import torch

from sumix_stream.checkpoint.layout import CONFIG, TOKENIZER, CheckpointError, load_yaml, require, resolve_checkpoint
from sumix_stream.config import LossConfig, ModelConfig
from sumix_stream.config.reader import from_dict
from sumix_stream.labels import Labels
from sumix_stream.tasks.base import Weights
from sumix_stream.tasks.checkpoint import load_weights
from sumix_stream.tasks.classification.model import Classifier


class ClassificationTask:
    """Cross-entropy of the labels of whole utterances; validated by the share that is wrong."""

    unusable = "no frame, or not a label for each set"
    load_outputs = staticmethod(Labels.load)

    def build(self, config: ModelConfig, num_outputs: int, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Classifier(config, num_outputs).eval()

    def weights(self, step: int, config: LossConfig) -> Weights:
        return {"labels": 1.0}


def load_classifier(path: str | Path, averaged: bool = True) -> tuple[Classifier, Labels]:
    """The model (on the CPU, in evaluation mode) and labels of an experiment or checkpoint directory.

    Args:
        averaged: the running average of the weights, where there is one.
    Raises:
        CheckpointError: a file is missing or damaged, or it is a model of another task.
    """
    directory = resolve_checkpoint(path)
    description = load_yaml(directory / CONFIG)
    if (task := description.get("task", "transducer")) != Classifier.task:
        raise CheckpointError(f"{directory} is a model of the task {task}, not classification: bin/decode runs it")
    require(directory / TOKENIZER)
    labels = Labels.from_bytes((directory / TOKENIZER).read_bytes())
    try:
        config = from_dict(ModelConfig, description["model"])
        model = ClassificationTask().build(config, int(description["vocab_size"]), 0)
        model.set_labels(labels.sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG} does not describe a classifier ({error})") from error
    load_weights(model, directory, averaged=averaged)
    return model, labels
