"""Training of the LSTM language model: joined sentences, batches of similar length, saved as it goes.

N sequences, U tokens of the longest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sumix_stream.checkpoint.layout import CheckpointError
from sumix_stream.tasks.checkpoint import load_tensors, save_tensors
from sumix_stream.tasks.language_model import LstmLm
from sumix_stream.train.resume import load_optimizer_tensors, optimizer_tensors

PROGRESS, OPTIMIZER = "training.json", "training.safetensors"
_BUCKET = 64  # batches sorted by length together
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class LmTraining:
    """How a language model is trained; what it says decides the weights, with the text and the sizes.

    Raises ValueError naming the setting, its value and what is allowed.
    """

    epochs: int = 5  # passes over the text
    batch_tokens: int = 4096  # of a batch, padding included
    max_tokens: int = 80  # of a sequence: neighbouring sentences are joined at random up to so many
    learning_rate: float = 3e-3  # peak of Adam; risen to in 2 % of the batches, then falling to a twentieth
    clip_norm: float = 1.0  # of the gradients
    seed: int = 0  # of the order and of what is joined

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}")


def join_sentences(sentences: Sequence[Sequence[int]], most: int, rng: random.Random) -> Iterator[list[int]]:
    """Neighbours joined to sequences of a random length of up to `most` tokens, as an utterance holds one sentence or
    several; a longer sentence stays by itself, cut into parts of `most`."""
    joined: list[int] = []
    room = rng.randint(1, most)
    for sentence in sentences:
        if joined and len(joined) + len(sentence) > room:
            yield joined
            joined, room = [], rng.randint(1, most)
        joined = [*joined, *sentence]
        while len(joined) > most:
            yield joined[:most]
            joined = joined[most:]
    if joined:
        yield joined


def fit(
    model: LstmLm,
    sentences: Sequence[Sequence[int]],
    config: LmTraining,
    out: Path,
    on_batch: Callable[[int, int, float], object] = lambda done, total, loss: None,
) -> float:
    """Train and save into `out`; a run that was stopped goes on, to the same weights, where it was last
    saved: at Ctrl-C, else at most a minute before.

    Args:
        sentences: token ids, in the order of the text.
        out: folder for the model, and for what a resumed run needs, until it is done.
        on_batch: told the batches done, of how many, and a batch's loss in nats a token.
    Returns:
        Mean loss of the last pass in nats a token (of what this process trained of it).
    Raises:
        ValueError: there is no token to learn from.
        CheckpointError: `out` holds a run of other text or settings.
    """
    if not any(map(len, sentences)):
        raise ValueError("the sentences hold no token to learn from")
    plan = [_batches(sentences, config, epoch) for epoch in range(config.epochs)]
    total = sum(map(len, plan))
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
    described = {
        "sizes": asdict(model.config),
        "training": asdict(config),
        "vocab_size": model.vocab_size,
        "text": _fingerprint(sentences),
    }
    done = _resume(model, optimizer, out, described)
    batches = [batch for epoch in plan for batch in epoch]
    model.train()
    saved, last = time.monotonic(), []
    try:
        with torch.random.fork_rng(devices=[]):
            while done < total:
                torch.manual_seed(config.seed * 1_000_003 + done)  # of dropout, wherever the run was begun
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _share(done, total)
                loss, count = _step(model, optimizer, batches[done], config.clip_norm)
                done += 1
                if done > total - len(plan[-1]):
                    last.append((loss, count))
                on_batch(done, total, loss)
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(model, optimizer, out, described, done)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        _save(model, optimizer, out, described, done)
        raise
    finally:
        model.eval()
    model.save(out)
    for name in (PROGRESS, OPTIMIZER):
        (out / name).unlink(missing_ok=True)
    return sum(loss * count for loss, count in last) / max(1, sum(count for _, count in last))


def _step(
    model: LstmLm, optimizer: torch.optim.Optimizer, batch: list[list[int]], clip_norm: float
) -> tuple[float, int]:
    """One update: loss in nats a token, and tokens."""
    rows = [torch.tensor(sequence) for sequence in batch]
    lengths = torch.tensor([len(row) for row in rows])
    loss = model(pad_sequence(rows, batch_first=True), lengths)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item(), int(lengths.sum())


@torch.no_grad()
def perplexity(model: LstmLm, sequences: Sequence[Sequence[int]], batch_size: int = 64) -> tuple[float, int]:
    """Perplexity a token, ends of sentences not scored, and the number of tokens."""
    kept = sorted((sequence for sequence in sequences if len(sequence)), key=len)
    total, number = 0.0, 0
    for start in range(0, len(kept), batch_size):
        rows = [torch.tensor(sequence) for sequence in kept[start : start + batch_size]]
        lengths = torch.tensor([len(row) for row in rows])
        count = int(lengths.sum())
        total += model(pad_sequence(rows, batch_first=True), lengths).item() * count
        number += count
    return math.exp(total / max(1, number)), number


def _fingerprint(sentences: Sequence[Sequence[int]]) -> str:
    found = hashlib.sha256()
    for sentence in sentences:
        found.update(np.asarray([len(sentence), *sentence], np.int32))
    return found.hexdigest()


def _batches(sentences: Sequence[Sequence[int]], config: LmTraining, epoch: int) -> list[list[list[int]]]:
    """Those of an epoch: the same whenever they are asked for."""
    rng = random.Random(f"{config.seed}-{epoch}")
    sequences = list(join_sentences(sentences, config.max_tokens, rng))
    rng.shuffle(sequences)
    found: list[list[list[int]]] = []
    bucket = max(1, _BUCKET * config.batch_tokens // config.max_tokens)
    for start in range(0, len(sequences), bucket):
        batch: list[list[int]] = []
        for sequence in sorted(sequences[start : start + bucket], key=len):
            if batch and len(sequence) * (len(batch) + 1) > config.batch_tokens:
                found.append(batch)
                batch = []
            batch.append(sequence)
        found.append(batch)
    rng.shuffle(found)
    return found


def _share(number: int, total: int) -> float:
    """Of the peak learning rate."""
    rise = max(1, total // 50)
    if number < rise:
        return (number + 1) / rise
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (number - rise) / max(1, total - rise)))


def _save(model: LstmLm, optimizer: torch.optim.Optimizer, out: Path, described: dict[str, Any], done: int) -> None:
    """One file replaces another, the weights among them: a stop on the way leaves what was there before."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    tensors["done"] = torch.tensor(done)
    save_tensors(out / f"{OPTIMIZER}.new", tensors)
    os.replace(out / f"{OPTIMIZER}.new", out / OPTIMIZER)
    (out / PROGRESS).write_text(json.dumps(described), encoding="utf-8")


def _resume(model: LstmLm, optimizer: torch.optim.Optimizer, out: Path, described: dict[str, Any]) -> int:
    """Batches that are done already."""
    if not (out / OPTIMIZER).exists() or not (out / PROGRESS).exists():
        return 0
    if json.loads((out / PROGRESS).read_text(encoding="utf-8")) != described:
        raise CheckpointError(f"{out} holds a run of other text, sizes or settings: use another folder, or remove it")
    tensors = load_tensors(out / OPTIMIZER)
    done = int(tensors.pop("done"))
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    model.load_state_dict(parts["model"])
    load_optimizer_tensors(model, optimizer, parts["optimizer"], out / OPTIMIZER)
    return done
