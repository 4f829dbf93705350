"""CPU seconds of encoders and cells beside the default: a training step, and a chunk of one stream and of many.

Kinds take turns, so that what else the machine does falls on all alike; medians of CPU time of this process.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from sumix_stream.config import PRESETS, LossConfig
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.registry import choose, make_runtime
from sumix_stream.runtime.weights import Weights
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer

CHUNK_SECONDS, LEFT_CONTEXT, MANY = 0.64, 4, 16
VOCAB_SIZE, TOKENS_PER_SECOND = 500, 3.3
KINDS = {
    "conformer, fast": {},
    "frames of 80 ms": {"subsampling": 8},
    "full": {"summary_variant": "full"},
    "lite": {"summary_variant": "lite"},
    "full, decay 0.995": {"summary_variant": "full", "summary_decay": 0.995},
    "attention": {"mixer": "attention"},
    "no mixer": {"mixer": "none"},
    "branchformer, full": {"kind": "branchformer", "summary_variant": "full"},
    "branchformer, full, 80 ms": {"kind": "branchformer", "summary_variant": "full", "subsampling": 8},
}
_WEIGHTS = {"simple": 0.5, "pruned": 1.0, "ctc": 0.3}


class Cost(NamedTuple):
    """Of one kind.

    training: CPU seconds of whole training steps for an hour of audio. alone, among_many: of a core for a stream in
    real time, by `runtime`.
    """

    kind: str
    encoder_parameters: int
    training: float
    alone: float
    among_many: float
    runtime: str


def costs(preset: str, kinds: Sequence[str], utterances: int, seconds: float, repeats: int) -> list[Cost]:
    """Batches of so many utterances, of `seconds` each. Raises ValueError for an unknown preset or kind."""
    for given, known, name in ((preset, PRESETS, "preset"), *((kind, KINDS, "kinds") for kind in kinds)):
        if given not in known:
            raise ValueError(f"{name} must be of {'; '.join(known)}, got {given!r}")
    models = {kind: _model(preset, kind) for kind in kinds}
    training = _training(models, utterances, seconds, repeats)
    streaming = {count: _streaming(models, count, repeats) for count in (1, MANY)}
    found = []
    for kind, model in models.items():
        size = sum(parameter.numel() for parameter in model.encoder.parameters())
        alone, runtime = streaming[1][kind]
        found.append(Cost(kind, size, training[kind], alone, streaming[MANY][kind][0], runtime))
    return found


def table(found: Sequence[Cost]) -> str:
    """Markdown, the kinds in rows."""
    head = ("encoder", "its parameters, M", "training, CPU s an audio hour", "a stream alone, % of a core")
    lines = [f"| {' | '.join((*head, f'among {MANY}', 'runtime'))} |", "|---|--:|--:|--:|--:|---|"]
    for cost in found:
        shares = (f"{100 * share:.2f}" for share in (cost.alone, cost.among_many))
        cells = (cost.kind, f"{cost.encoder_parameters / 1e6:.2f}", f"{cost.training:.0f}", *shares, cost.runtime)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _model(preset: str, kind: str) -> Transducer:
    config = PRESETS[preset]
    changes = {"cgmlp_dim": 6 * config.encoder.dim} | KINDS[kind]  # the published share
    return build_model(replace(config, encoder=replace(config.encoder, **changes)), VOCAB_SIZE)


def _context(model: Transducer) -> ChunkContext:
    return ChunkContext(model.timebase.encoder_frames(CHUNK_SECONDS), LEFT_CONTEXT)


def _training(models: dict[str, Transducer], utterances: int, seconds: float, repeats: int) -> dict[str, float]:
    num_frames, num_tokens = round(100 * seconds), max(1, round(TOKENS_PER_SECOND * seconds))
    feats, lengths = torch.randn(utterances, num_frames, 80), torch.full((utterances,), num_frames)
    tokens = torch.randint(1, VOCAB_SIZE, (utterances, num_tokens))
    batch = feats, lengths, tokens, torch.full((utterances,), num_tokens)
    optimizers = {kind: torch.optim.AdamW(model.parameters(), lr=1e-4) for kind, model in models.items()}
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for turn in range(repeats + 1):
        for kind, model in models.items():
            begin = time.process_time()
            model.train()(*batch, _context(model), _WEIGHTS, LossConfig()).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizers[kind].step()
            optimizers[kind].zero_grad()
            if turn:  # the first compiles
                times[kind].append(time.process_time() - begin)
    return {kind: statistics.median(of) * 3600 / (utterances * seconds) for kind, of in times.items()}


def _streaming(models: dict[str, Transducer], count: int, repeats: int) -> dict[str, tuple[float, str]]:
    """Share of a core that a stream takes, and the runtime that does it."""
    num_frames, chunks = round(100 * CHUNK_SECONDS), 10 if count == 1 else 2
    feats = np.random.default_rng(0).standard_normal((count, num_frames, 80)).astype(np.float32)
    lengths, final = np.full(count, num_frames), np.zeros(count, bool)
    weights = {kind: Weights.of(model.eval(), cuda_graph=False) for kind, model in models.items()}
    runtimes = {kind: make_runtime(of, _context(models[kind])) for kind, of in weights.items()}
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for turn in range(repeats + 1):
        for kind, runtime in runtimes.items():
            states = [runtime.fresh_state() for _ in range(count)]
            begin = time.process_time()
            for _ in range(chunks):
                _, states = runtime.encode(feats, lengths, states, final)
            if turn:
                times[kind].append(time.process_time() - begin)
    share = 1 / (chunks * count * CHUNK_SECONDS)
    names = {kind: choose(of, _context(models[kind]))[0] for kind, of in weights.items()}
    return {kind: (statistics.median(of) * share, names[kind]) for kind, of in times.items()}
