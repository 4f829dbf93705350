"""A folder as a recipe's prepare makes it, with beeps for words: bin/train runs on it in seconds."""

from pathlib import Path

import numpy as np
import yaml

from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.config.reader import to_dict
from sumix_stream.corpora.preparation import make_cut, write_cuts, write_flac, write_stats, write_tokenizer

SMALL = ModelConfig(
    encoder=EncoderConfig(dim=32, num_layers=1, ffn_dim=32, num_heads=2, conv_kernel=3, subsampling_channels=4),
    predictor=PredictorConfig(embed_dim=16, hidden_dim=16),
    joiner_dim=16,
)
WORDS = ["one", "two", "three", "four"]


def beep_recipe(folder: Path, **train) -> Path:
    """Write 24 utterances of a second, a tokenizer and recipe.yaml, whose output goes to exp; the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    cuts = []
    for i in range(24):
        words = generator.integers(0, len(WORDS), 2)
        clock = np.arange(8000) / 16_000
        samples = np.concatenate([0.3 * np.sin(2 * np.pi * 300 * (1 + word) * clock) for word in words])
        samples = (samples + 0.01 * generator.standard_normal(len(samples))).astype(np.float32)
        path = folder / f"{i}.flac"
        cuts.append(make_cut(f"beep-{i}", path, write_flac(path, samples), " ".join(WORDS[w] for w in words), "me"))
    write_cuts(cuts, folder / "cuts_train.jsonl.gz")
    write_cuts(cuts[:4], folder / "cuts_valid.jsonl.gz")
    write_tokenizer(folder, 8, "word")
    write_stats(folder)
    recipe = {
        "model": to_dict(SMALL),
        "data": {"train_cuts": ["cuts_train.jsonl.gz"], "valid_cuts": ["cuts_valid.jsonl.gz"], "max_duration": 6.0},
        "tokenizer": {"path": "tokenizer.model"},
        "train": {"exp_dir": "exp", "max_steps": 400, "log_interval": 2, "accelerator": "cpu", **train},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
