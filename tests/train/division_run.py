"""Run by torchrun, or alone, from test_division.py: `division_run.py FOLDER RUN...` trains the named RUNS in FOLDER.

Batches differ in number and length of utterances, contexts are drawn, dropout is on, an epoch ends on the way: what has
to come out the same however many processes share the steps.
"""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from train.fakes import FakeTokenizer, fake_recipe

from sumix_stream.config import ChunkConfig, EncoderConfig, LossConfig, ModelConfig, PredictorConfig
from sumix_stream.data import Batch
from sumix_stream.tasks.build import build_model
from sumix_stream.train.loop import Trainer
from sumix_stream.train.precision import make_fabric

STEP_BATCHES = 4
VOCAB_SIZE = 7
SMALL = ModelConfig(
    encoder=EncoderConfig(dim=32, num_layers=2, ffn_dim=32, num_heads=2, conv_kernel=3, subsampling_channels=4),
    predictor=PredictorConfig(embed_dim=16, hidden_dim=16, token_dropout=0.1),
    joiner_dim=16,
)


class Loader:
    """Batch n of rank r of W is batch n W + r of one process. 20 batches an epoch, of 1 to 4 utterances."""

    def __init__(self, rank, world_size, hangs=False):
        self.rank, self.world_size, self.hangs = rank, world_size, hangs

    def fingerprint(self, epoch):
        return str(epoch)

    def epoch_batches(self, epoch, skip=0):
        for index in range(skip, 20 // self.world_size):
            number = index * self.world_size + self.rank
            if self.hangs and 20 * epoch + number >= HANGS_IN_STEP * STEP_BATCHES:
                time.sleep(600)
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            size = number % 4 + 1
            lengths = torch.randint(40, 160, (size,), generator=generator)
            feats = torch.randn(size, int(lengths.max()), 80, generator=generator)
            token_lengths = torch.randint(1, 6, (size,), generator=generator)
            tokens = torch.randint(1, VOCAB_SIZE, (size, int(token_lengths.max())), generator=generator)
            for row, (length, count) in enumerate(zip(lengths, token_lengths, strict=True)):
                feats[row, length:] = 0
                tokens[row, count:] = 0
            ids = [f"{epoch}-{number}-{row}" for row in range(size)]
            yield Batch(index, feats, lengths, tokens, token_lengths, ids, [""] * size, float(lengths.sum()) / 100)


# name -> (folder, steps, settings); the runs of one folder go on from each other
RUNS = {
    "straight": ("straight", 6, {}),
    "begun": ("continued", 3, {}),
    "continued": ("continued", 6, {}),
    "compressed": ("compressed", 6, {"compress_gradients": True}),
    "cores": ("cores", 6, {"cpu_processes": 2, "accelerator": "cpu"}),
    "elastic": ("elastic", 12, {"log_interval": 1, "save_interval": 2, "keep_last": 2}),
}
HANGS_IN_STEP = 6  # steps that all nodes do of "elastic"; in the next, the second of two nodes waits for its end


def recipe_of(folder, steps, settings):
    settings = {"chunk_size": "dynamic", "clip_norm": 1.0, "step_batches": STEP_BATCHES, "log_interval": 2, **settings}
    rate = {"learning_rate": 1e-3, "warmup_fraction": 0, "final_lr_fraction": 1}  # the same for any number of steps
    recipe = fake_recipe(folder, max_steps=steps, **rate, **settings)
    chunks = ChunkConfig(min_chunk=2, max_chunk=8, full_probability=0.2, per_utterance=True)
    return replace(recipe, chunks=chunks, loss=LossConfig(warmup_steps=4))


def train(top, name):
    folder, steps, settings = RUNS[name]
    recipe = recipe_of(top / folder, steps, settings)
    fabric = make_fabric(recipe.train)
    second_node = fabric.world_size == 4 and fabric.global_rank >= 2
    loader = Loader(fabric.global_rank, fabric.world_size, hangs=name == "elastic" and second_node)
    trainer = Trainer(recipe, build_model(SMALL, VOCAB_SIZE), FakeTokenizer(), loader, fabric=fabric)
    trainer.fit()
    return trainer


def main():
    torch.set_num_threads(1)
    top = Path(sys.argv[1])
    for name in sys.argv[2:]:
        with torch.profiler.profile(record_shapes=True) if name == "begun" else nullcontext() as profile:
            trainer = train(top, name)
        if profile is not None and trainer.fabric.is_global_zero:
            events = [[event.name, event.input_shapes] for event in profile.events() if event.name.startswith("gloo:")]
            (top / RUNS[name][0] / "exchanged.json").write_text(json.dumps(events))
        torch.save(trainer.model.state_dict(), top / RUNS[name][0] / f"rank{trainer.fabric.global_rank}.pt")


if __name__ == "__main__":
    main()
