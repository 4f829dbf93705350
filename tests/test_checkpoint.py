"""Checkpoints as arrays: what PyTorch wrote is what is read, and nothing is made of what does not fit."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from talkative import KINDS as OTHERS

from sumix_stream.checkpoint import CheckpointError, read_checkpoint
from sumix_stream.checkpoint.arrays import load_arrays
from sumix_stream.checkpoint.layout import load_yaml, step_directory
from sumix_stream.checkpoint.shapes import transducer_shapes
from sumix_stream.checkpoint.writing import save_yaml, write_checkpoint
from sumix_stream.config import PRESETS, EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import load_model, save_model, save_tensors
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

SIZES = {"dim": 16, "num_layers": 2, "ffn_dim": 24, "num_heads": 2, "conv_kernel": 5, "subsampling_channels": 4}
CONFIG = ModelConfig(EncoderConfig(**SIZES), PredictorConfig(embed_dim=7, hidden_dim=9, num_layers=2), joiner_dim=11)
KINDS = [("summary", kind) for kind in ("fast", "full", "lite", "expdecay")] + [("attention", "fast")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["one two three four five six seven"], path, 8, "word")
    return Tokenizer.load(path)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """(experiment, weights of steps 1 to 3)"""
    states = {}
    for step in (1, 2, 3):
        model = build_model(CONFIG, tokenizer.vocab_size, seed=step)
        states[step] = {name: value.numpy() for name, value in model.state_dict().items()}
        extra = {"metrics": {"wer": step / 10}}
        write_checkpoint(step_directory(tmp_path, step), lambda path: save_model(path, model, tokenizer, extra))  # noqa: B023
    return tmp_path, states


def rewrite(directory, change):
    """Change config.yaml, without the checksums that would tell."""
    data = load_yaml(directory / "config.yaml")
    change(data)
    (directory / "SHA256SUMS").unlink(missing_ok=True)
    save_yaml(directory / "config.yaml", data)


@pytest.mark.parametrize("mixer, variant", KINDS)
@pytest.mark.parametrize("ctc", [True, False])
def test_shapes_are_those_of_the_model(mixer, variant, ctc):
    encoder = EncoderConfig(**SIZES, mixer=mixer, summary_variant=variant)
    config = ModelConfig(encoder, CONFIG.predictor, joiner_dim=11, ctc=ctc)
    expected = {name: tuple(value.shape) for name, value in build_model(config, 13).state_dict().items()}
    assert transducer_shapes(config, 13) == expected


@pytest.mark.parametrize("kind", OTHERS)
def test_shapes_of_other_encoders(kind):
    config = ModelConfig(replace(EncoderConfig(**SIZES), **OTHERS[kind]), CONFIG.predictor, joiner_dim=11)
    expected = {name: tuple(value.shape) for name, value in build_model(config, 13).state_dict().items()}
    assert transducer_shapes(config, 13) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_of_presets(preset):
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in build_model(preset, 500).state_dict().items()}
    assert transducer_shapes(PRESETS[preset], 500) == expected


def test_cells_of_earlier_releases_have_one_layer(tmp_path, tokenizer):
    """Their checkpoints know no `mlp_layers`; their weights are read as they were, and average with later ones."""
    encoder = EncoderConfig(**SIZES, summary_variant="lite", mlp_layers=1)
    model = build_model(ModelConfig(encoder, CONFIG.predictor, joiner_dim=11), tokenizer.vocab_size)
    for step in (1, 2):
        write_checkpoint(step_directory(tmp_path, step), lambda path: save_model(path, model, tokenizer))
    added = ("mlp_layers", "summary_norm", "summary_decay", "subsampling", "cgmlp_dim")
    rewrite(step_directory(tmp_path, 1), lambda data: [data["model"]["encoder"].pop(key) for key in added])
    read, _ = load_model(step_directory(tmp_path, 1))
    assert read.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
    assert read_checkpoint(tmp_path, 2).config == model.config


def test_what_is_saved_is_what_is_read(saved, tokenizer):
    exp_dir, states = saved
    read = read_checkpoint(step_directory(exp_dir, 2))
    assert read.config == CONFIG and read.vocab_size == tokenizer.vocab_size
    assert read.extra == {"metrics": {"wer": 0.2}} and read.directory == step_directory(exp_dir, 2)
    assert read.tokenizer.encode("three one") == tokenizer.encode("three one")
    assert read.arrays.keys() == states[2].keys()
    for name, value in read.arrays.items():
        np.testing.assert_array_equal(value, states[2][name])
        assert value.dtype == states[2][name].dtype and value.shape == states[2][name].shape


@pytest.mark.parametrize("average, steps", [(2, (2, 3)), ("best2", (1, 2)), ("none", (3,))])
def test_means(saved, average, steps):
    exp_dir, states = saved
    path = step_directory(exp_dir, 3) if average == "none" else exp_dir
    for name, value in read_checkpoint(path, average).arrays.items():
        mean = sum(states[step][name].astype(np.float64) for step in steps) / len(steps)
        np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-8)
        assert value.dtype == np.float32


def test_the_running_average_is_taken_unless_told_otherwise(saved):
    exp_dir, states = saved
    directory, name = step_directory(exp_dir, 1), "simple_am.bias"
    save_tensors(directory / "average.safetensors", {name: torch.full((9,), 3.0)})
    (directory / "SHA256SUMS").unlink()
    assert (read_checkpoint(directory).arrays[name] == 3).all()
    np.testing.assert_array_equal(read_checkpoint(directory, "none").arrays[name], states[1][name])
    for wrong in ({name: torch.zeros(8)}, {"other": torch.zeros(9)}):
        save_tensors(directory / "average.safetensors", wrong)
        with pytest.raises(CheckpointError, match=r"average.safetensors is an average of another model.*average none"):
            read_checkpoint(directory)


def test_types_that_numpy_has_not(tmp_path):
    tensors = {"half": torch.randn(3, 5).bfloat16(), "none": torch.zeros(0, 2).bfloat16(), "one": torch.tensor(7)}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path)
    arrays = load_arrays(path)
    np.testing.assert_array_equal(arrays["half"], tensors["half"].float().numpy())
    assert arrays["half"].dtype == np.float32 and arrays["none"].shape == (0, 2)
    assert arrays["one"].shape == () and arrays["one"] == 7
    safetensors.torch.save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(CheckpointError, match="x is F8_E4M3, which cannot be read here"):
        load_arrays(path)


@pytest.mark.parametrize("load", [read_checkpoint, load_model])
@pytest.mark.parametrize(
    "section, key, value",
    [
        ("encoder", "dim", 10**7),
        ("encoder", "ffn_dim", 10**9),
        ("encoder", "num_layers", 10**12),
        ("encoder", "conv_kernel", 10**9 + 1),
        ("encoder", "subsampling_channels", 10**6),
        ("predictor", "hidden_dim", 10**8),
        ("predictor", "num_layers", 10**12),
        ("predictor", "embed_dim", 10**9),
        (None, "joiner_dim", 10**10),
    ],
)
def test_a_configuration_of_a_huge_model_is_refused_before_it_is_made(saved, load, section, key, value):
    directory = step_directory(saved[0], 1)
    load(directory)  # what is imported at the first use is not counted
    rewrite(directory, lambda data: (data["model"][section] if section else data["model"]).update({key: value}))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"holds another model than the configured one"):
        load(directory)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_a_huge_vocabulary_is_refused(saved):
    directory = step_directory(saved[0], 1)
    rewrite(directory, lambda data: data.update(vocab_size=10**12))
    with pytest.raises(CheckpointError, match=r"holds another model than the configured one"):
        read_checkpoint(directory)


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "a: &a [*a]\n",
        "a: " + "[" * 5_000,
        "a: " + "x" * 5_000_000 + "\n",
    ],
    ids="aliases itself deep long".split(),
)
def test_a_hostile_configuration_is_one_short_error(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text + "format: 1\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml is damaged") as error:
        load_yaml(tmp_path / "config.yaml")
    assert len(str(error.value)) < 2_000
