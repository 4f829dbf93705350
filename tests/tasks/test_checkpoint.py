import errno
import os
import subprocess
import sys

import pytest
import torch
import yaml

from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import CheckpointError, load_model, resolve_checkpoint, save_model
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

CONFIG = ModelConfig(
    encoder=EncoderConfig(dim=16, num_layers=1, ffn_dim=16, num_heads=2, conv_kernel=3, subsampling_channels=4),
    predictor=PredictorConfig(embed_dim=8, hidden_dim=8),
    joiner_dim=8,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["one two three four five six seven"], path, 8, "word")
    return Tokenizer.load(path)


@pytest.fixture
def model(tokenizer):
    model = build_model(CONFIG, tokenizer.vocab_size, seed=3)
    model.set_normalisation(torch.arange(80.0), torch.arange(1.0, 81.0))
    return model


@pytest.fixture
def saved(tmp_path, model, tokenizer):
    """An experiment with steps 1 and 2; best is 1, last is 2."""
    for step in (1, 2):
        path = checkpoint.step_directory(tmp_path, step)
        checkpoint.write_directory_atomically(path, lambda aside: save_model(aside, model, tokenizer, {"wer": 0.5}))
    checkpoint.point(tmp_path, "best", 1)
    checkpoint.point(tmp_path, "last", 2)
    return checkpoint.step_directory(tmp_path, 1)


def test_what_is_saved_is_what_is_loaded(saved, model, tokenizer):
    loaded, loaded_tokenizer = load_model(saved)
    expected = model.state_dict()
    assert loaded.config == CONFIG and not loaded.training
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert any(torch.equal(value, torch.arange(80.0)) for value in loaded.state_dict().values())  # normalisation
    assert loaded_tokenizer.encode("three one") == tokenizer.encode("three one")
    assert yaml.safe_load((saved / "config.yaml").read_text())["extra"] == {"wer": 0.5}
    assert sorted(os.listdir(saved)) == ["config.yaml", "model.safetensors", "tokenizer.model"]


def test_resolving(tmp_path, saved):
    last = checkpoint.step_directory(tmp_path, 2)
    assert resolve_checkpoint(tmp_path) == saved
    assert resolve_checkpoint(str(last)) == last
    assert resolve_checkpoint(last / "model.safetensors") == last
    (tmp_path / "best.txt").unlink()
    assert resolve_checkpoint(tmp_path) == last
    (tmp_path / "last.txt").write_text("checkpoints/step-00000003\n")
    with pytest.raises(CheckpointError, match=r"last.txt names .*step-00000003, which is gone: .*step-00000002"):
        resolve_checkpoint(tmp_path)


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory; train one with bin/train"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor best.txt"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damage_is_named_with_a_remedy(saved, name, damage):
    path = saved / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert str(path) in message and "step-00000002" in message
    assert "step-00000001)" not in message  # not itself


def test_pickled_weights_are_not_run(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"w": Bomb()}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(saved)
    (saved / "config.yaml").write_text("!!python/object/apply:os.mkdir ['ran']\n")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(saved)
    assert not (tmp_path / "ran").exists()


def test_another_models_weights_are_refused(saved, tokenizer):
    wider = build_model(
        ModelConfig(encoder=CONFIG.encoder, predictor=CONFIG.predictor, joiner_dim=9), tokenizer.vocab_size
    )
    checkpoint.save_tensors(saved / "model.safetensors", wider.state_dict())
    with pytest.raises(CheckpointError, match=r"joiner.* is \(9.*\), the model's is \(8.*use the configuration"):
        load_model(saved)
    checkpoint.save_tensors(saved / "model.safetensors", {"odd": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"is missing; .* and .* more"):
        load_model(saved)


def test_unknown_key_and_format_of_a_later_version(saved):
    path = saved / "config.yaml"
    data = yaml.safe_load(path.read_text())
    checkpoint.save_yaml(path, {**data, "model": {**data["model"], "encodr": {}}})
    with pytest.raises(CheckpointError, match=r"config.yaml.*'encodr'"):
        load_model(saved)
    path.write_text(yaml.safe_dump({**data, "format": 9}))
    with pytest.raises(CheckpointError, match="has format 9, this version reads 1"):
        load_model(saved)


def test_another_vocabulary_is_refused(saved, tmp_path):
    train_tokenizer(["one two"], tmp_path / "other.model", 4, "word")
    (saved / "tokenizer.model").write_bytes((tmp_path / "other.model").read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer.model has 4 tokens, the model 9"):
        load_model(saved)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("ours"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_nothing_and_touches_nothing(tmp_path, saved, error):
    before = sorted(tmp_path.rglob("*"))

    def writer(directory):
        (directory / "part").write_text("half")
        raise error

    expected, message = (CheckpointError, "disk is full") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected, match=message):
        checkpoint.write_directory_atomically(checkpoint.step_directory(tmp_path, 3), writer)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.write_directory_atomically(saved, lambda directory: None)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_really_fills_up_is_an_os_error():
    """Through the file itself: the safetensors writer reports this in an exception of its own."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError) as caught:
        checkpoint.save_tensors("/dev/full", {"x": torch.zeros(100_000)})
    assert caught.value.errno == errno.ENOSPC


def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sumix_stream.tasks import checkpoint as c\n"
        "def writer(d): (d / 'model.safetensors').write_text('half'); os.kill(os.getpid(), 9)\n"
        "c.write_directory_atomically(c.step_directory(Path(sys.argv[1]), 5), writer)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == -9
    assert checkpoint.step_directories(tmp_path) == {}


def test_pointers_are_replaced_whole(tmp_path, saved, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(CheckpointError, match=r"best.txt: the disk is full"):
        checkpoint.point(tmp_path, "best", 2)
    assert resolve_checkpoint(tmp_path) == saved
