"""A model that starts from the weights of another, with its tokenizer or a new one.

V rows of a tensor belong to the tokens of a vocabulary: embeddings, and weights and biases of output layers.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sumix_stream.tasks.checkpoint import CheckpointError, load_model
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer


class Taken(NamedTuple):
    """What a model took over."""

    source: str
    num_parameters: int  # that are the source's, to the last bit
    known: int  # pieces of the new tokenizer that the source's has too
    new: list[str]  # pieces that it has not

    def __str__(self) -> str:
        pieces = f"all {self.known} pieces" if not self.new else f"{self.known} of {self.known + len(self.new)} pieces"
        return f"starting from {self.source}: {self.num_parameters / 1e6:.2f} M parameters, {pieces}"


@torch.no_grad()
def init_from(model: Transducer, tokenizer: Tokenizer, path: str | Path) -> Taken:
    """Give a fresh model the weights, and the features' mean and deviation, of the model at `path`.

    Rows of pieces that both tokenizers know move to their new numbers. A new piece starts from the prior: the mean row
    of the source's pieces, so that it is as likely as they are on average.

    Raises:
        CheckpointError: there is no such model, or its sizes are others; names them.
    """
    source, old = load_model(path)
    ours, theirs = model.state_dict(), source.state_dict()
    rows = [name for name in model.token_rows if name in ours]
    faults = [f"{name} is missing there" for name in ours if name not in theirs]
    faults += [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(value.shape)} here"
        for name, value in ours.items()
        if name in theirs and theirs[name].shape[name in rows :] != value.shape[name in rows :]
    ]
    if faults:
        raise CheckpointError(
            f"train.init_from {path} is a model of other sizes ({'; '.join(faults[:3])}): give the recipe its model "
            f"section, which {Path(path)} has in config.yaml"
        )
    numbers = {old.piece(i): i for i in range(old.vocab_size)}
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    places = [numbers.get(piece) for piece in pieces]
    for name, value in ours.items():
        value.copy_(_moved(theirs[name], places) if name in rows else theirs[name])
    new = [piece for piece, place in zip(pieces, places, strict=True) if place is None]
    taken = sum(value.numel() for name, value in model.named_parameters() if name not in rows)
    taken += sum(value[0].numel() * (len(pieces) - len(new)) for name, value in ours.items() if name in rows)
    return Taken(str(path), taken, len(pieces) - len(new), new)


def _moved(rows: Tensor, places: list[int | None]) -> Tensor:
    """Rows (V, ...) of the source in the order of the new tokenizer; the mean of all but blank's for new pieces."""
    mean = rows[1:].mean(0)
    return torch.stack([mean if place is None else rows[place] for place in places])
