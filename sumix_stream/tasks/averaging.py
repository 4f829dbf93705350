"""A model, or the mean of several checkpoints, written as a checkpoint of its own."""

from pathlib import Path

from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer


def save_alone(
    out: str | Path, model: Transducer, tokenizer: Tokenizer, source: str | Path, average: int | str | None = None
) -> str:
    """Write a model as a checkpoint directory `out` that can be loaded, without what training needs; a line about it.

    Raises ValueError for a bundle, CheckpointError when `out` exists or cannot be written.
    """
    if not isinstance(model, Transducer):
        raise ValueError(f"{source} is a bundle: a checkpoint is made from a checkpoint")
    about = {"made_from": Path(source).resolve().name, "average": None if average is None else str(average)}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_checkpoint(Path(out), lambda folder: checkpoint.save_model(folder, model, tokenizer, extra=about))
    mean = "" if average is None else f", average {average}"
    return f"{out}: {model.num_parameters:,} parameters of {source}{mean}"
