"""A model that starts from another: what both know is the same to the last bit, new pieces start from the prior."""

from dataclasses import replace

import pytest
import torch

from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.context import ChunkContext
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import CheckpointError, save_model, step_directory, write_checkpoint
from sumix_stream.tasks.fine_tuning import init_from
from sumix_stream.tokenizer import train_tokenizer

CONFIG = ModelConfig(
    EncoderConfig(dim=16, num_layers=1, ffn_dim=32, conv_kernel=3, subsampling_channels=4),
    PredictorConfig(embed_dim=12, hidden_dim=12),
    joiner_dim=10,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return [
        train_tokenizer([text], folder / f"{n}.model", model_type="char") for n, text in enumerate(("ab c", "xb ca"))
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizers):
    """An experiment whose model has its own statistics."""
    folder = tmp_path_factory.mktemp("source")
    model = build_model(CONFIG, tokenizers[0].vocab_size, seed=3)
    model.set_normalisation(torch.full((80,), -5.0), torch.full((80,), 2.0))
    write_checkpoint(step_directory(folder, 7), lambda path: save_model(path, model, tokenizers[0]))
    (folder / "last.txt").write_text("checkpoints/step-00000007\n")
    return folder, model


def test_the_same_tokenizer_gives_the_same_model(source, tokenizers):
    folder, old = source
    model = build_model(CONFIG, tokenizers[0].vocab_size, seed=4)
    taken = init_from(model, tokenizers[0], folder)
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in model.state_dict().items())
    assert taken.new == [] and taken.num_parameters == old.num_parameters and "all" in str(taken)


def test_pieces_move_to_their_new_numbers_and_new_ones_are_as_likely_as_the_others(source, tokenizers):
    folder, old = source
    first, second = tokenizers
    model = build_model(CONFIG, second.vocab_size, seed=4)
    taken = init_from(model, second, folder)
    assert taken.new == ["x"]
    where = {first.piece(i): i for i in range(first.vocab_size)}
    for name in ("predictor.embedding.weight", "joiner.output.weight", "joiner.output.bias", "ctc_head.bias"):
        mine, theirs = model.get_parameter(name), old.get_parameter(name)
        for i in range(second.vocab_size):
            expected = theirs[where[second.piece(i)]] if second.piece(i) in where else theirs[1:].mean(0)
            assert torch.equal(mine[i], expected), (name, second.piece(i))
    feats, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    with torch.inference_mode():
        frames = [m.encoder(feats, lengths, ChunkContext(4, 1))[0] for m in (old, model)]
    assert torch.equal(*frames)
    assert "6 of 7 pieces" in str(taken)


def test_what_does_not_fit_is_named(source, tokenizers):
    wider = replace(CONFIG, encoder=replace(CONFIG.encoder, dim=20))
    with pytest.raises(CheckpointError, match=r"of other sizes \(encoder.* there and .* here"):
        init_from(build_model(wider, tokenizers[0].vocab_size), tokenizers[0], source[0])
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        init_from(build_model(CONFIG, tokenizers[0].vocab_size), tokenizers[0], source[0] / "nothing")
