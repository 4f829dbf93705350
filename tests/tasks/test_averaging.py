import pytest
import torch

from sumix_stream.checkpoint.reading import checkpoints_meant
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.tasks import checkpoint
from sumix_stream.tasks.averaging import save_alone
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import CheckpointError, load_model, save_model
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

CONFIG = ModelConfig(
    encoder=EncoderConfig(dim=16, num_layers=1, ffn_dim=16, num_heads=2, conv_kernel=3, subsampling_channels=4),
    predictor=PredictorConfig(embed_dim=8, hidden_dim=8),
    joiner_dim=8,
)
ERRORS = {10: 0.5, 20: 0.2, 30: None, 40: 0.3, 50: 0.4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["one two three four five six seven"], path, 8, "word")
    return Tokenizer.load(path)


def save(exp_dir, tokenizer, step, wer=None, config=CONFIG):
    """A checkpoint of random weights; its state."""
    model = build_model(config, tokenizer.vocab_size, seed=step)
    path = checkpoint.step_directory(exp_dir, step)
    checkpoint.write_directory_atomically(path, lambda d: save_model(d, model, tokenizer, {"step": step, "wer": wer}))
    return model.state_dict()


@pytest.fixture
def run(tmp_path, tokenizer):
    """(experiment, weights by step)"""
    states = {step: save(tmp_path, tokenizer, step, wer) for step, wer in ERRORS.items()}
    checkpoint.point(tmp_path, "best", 20)
    checkpoint.point(tmp_path, "last", 50)
    return tmp_path, states


@pytest.mark.parametrize(
    "average, steps", [(1, [50]), (3, [30, 40, 50]), ("5", [10, 20, 30, 40, 50]), ("best3", [20, 40, 50])]
)
def test_the_mean_of_the_checkpoints_meant(run, average, steps):
    exp_dir, states = run
    model, _ = load_model(exp_dir, average)
    assert not model.training and model.config == CONFIG
    for name, value in model.state_dict().items():
        mean = sum(states[step][name].double() for step in steps) / len(steps)
        assert torch.allclose(value.double(), mean, rtol=1e-6, atol=1e-8), name


def test_a_checkpoint_counts_back_from_itself(run):
    exp_dir, _ = run
    at = checkpoint.step_directory(exp_dir, 30)
    assert [path.name for path in checkpoints_meant(at, 2)] == ["step-00000020", "step-00000030"]
    assert checkpoints_meant(at / "model.safetensors", "2") == checkpoints_meant(at, 2)
    with pytest.raises(ValueError, match="best2 chooses among all checkpoints: give the experiment directory"):
        checkpoints_meant(at, "best2")


@pytest.mark.parametrize("average", ["", "0", 0, -1, "best", "best0", "worst3", "5.0", True])
def test_other_forms_are_refused(run, average):
    with pytest.raises(ValueError, match=r"must be a number of checkpoints \(5\), best5 or none"):
        load_model(run[0], average)


def test_too_few_checkpoints_are_an_error_with_the_setting(run):
    with pytest.raises(CheckpointError, match=r"asks for 6 checkpoints, 5 are .* train.keep_last 6"):
        load_model(run[0], 6)
    with pytest.raises(CheckpointError, match=r"asks for 5 validated checkpoints, 4 are .* train.keep_best 5"):
        load_model(run[0], "best5")


def test_a_lone_checkpoint_directory_has_no_neighbours(run, tmp_path, tokenizer):
    alone = tmp_path / "given" / "to" / "someone"
    alone.parent.mkdir(parents=True)
    checkpoint.step_directory(run[0], 50).rename(alone)
    with pytest.raises(CheckpointError, match="asks for 2 checkpoints, 0 are"):
        load_model(alone, 2)


def test_other_models_have_no_mean(run, tokenizer, tmp_path_factory):
    exp_dir, _ = run
    save(exp_dir, tokenizer, 60, config=ModelConfig(CONFIG.encoder, CONFIG.predictor, joiner_dim=9))
    with pytest.raises(CheckpointError, match=r"step-00000050 and .*step-00000060 differ in config.yaml"):
        load_model(exp_dir, 2)
    other = tmp_path_factory.mktemp("other") / "tokenizer.model"
    train_tokenizer(["seven six five four three two eight"], other, 8, "word")
    save(exp_dir, Tokenizer.load(other), 70, config=ModelConfig(CONFIG.encoder, CONFIG.predictor, joiner_dim=9))
    with pytest.raises(CheckpointError, match=r"differ in tokenizer.model"):
        load_model(exp_dir, 2)


def test_the_running_average_is_what_is_loaded_unless_told_otherwise(run):
    exp_dir, states = run
    directory = checkpoint.step_directory(exp_dir, 50)
    running = {"simple_am.bias": torch.full_like(states[50]["simple_am.bias"], 3.0)}
    checkpoint.save_tensors(directory / "average.safetensors", running)
    name = "simple_am.bias"
    assert torch.equal(load_model(directory)[0].state_dict()[name], running[name])
    own = load_model(directory, "none")[0].state_dict()
    assert all(torch.equal(value, states[50][name]) for name, value in own.items())
    mean = load_model(exp_dir, 2)[0].state_dict()[name]
    assert torch.allclose(mean, (running[name] + states[40][name]) / 2)


def test_an_average_is_written_as_a_checkpoint_of_its_own(run, tmp_path):
    exp_dir, _ = run
    model, tokenizer = load_model(exp_dir, "best3")
    out = exp_dir / "made" / "best3"
    assert f"{out}: {model.num_parameters:,} parameters" in save_alone(out, model, tokenizer, exp_dir, "best3")
    again, _ = load_model(out)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="exists already"):
        save_alone(out, model, tokenizer, exp_dir, "best3")
    with pytest.raises(ValueError, match="is a bundle"):
        save_alone(tmp_path / "x", object(), tokenizer, "exp")
