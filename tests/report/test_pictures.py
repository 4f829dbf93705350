import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from talkative import sound

from sumix_stream.config import EncoderConfig, LossConfig, ModelConfig, PredictorConfig
from sumix_stream.context import ChunkContext
from sumix_stream.corpora.preparation import make_cut, write_cuts, write_flac
from sumix_stream.features import whole_fbank
from sumix_stream.report.picture_figures import picture_figures
from sumix_stream.report.pictures import Pictures, align, best_path
from sumix_stream.report.records import RunRecords
from sumix_stream.tasks.build import build_model
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

SMALL = ModelConfig(
    encoder=EncoderConfig(dim=16, num_layers=1, ffn_dim=16, num_heads=2, conv_kernel=3, subsampling_channels=4),
    predictor=PredictorConfig(embed_dim=8, hidden_dim=8),
    joiner_dim=8,
)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
def test_occupation_is_a_distribution_for_each_frame(rnnt_type):
    model = build_model(SMALL, vocab_size=9)
    feats = torch.from_numpy(whole_fbank(sound(1.3)))
    occupation, path = align(model, feats, [3, 4, 5], ChunkContext(4, 1), LossConfig(rnnt_type=rnnt_type))
    assert occupation.shape == (4, 33) and path.shape == (33,)
    if rnnt_type == "regular":
        assert torch.allclose(occupation.sum(0), torch.ones(33), atol=1e-4)
    assert (occupation >= -1e-6).all() and (occupation <= 1 + 1e-4).all()
    assert (path.diff() >= 0).all() and path[-1] == 3


def test_no_tokens_or_too_many_have_no_alignment():
    model, feats = build_model(SMALL, vocab_size=9), torch.from_numpy(whole_fbank(sound(0.1)))
    with pytest.raises(ValueError, match="0 tokens in 3 frames"):
        align(model, feats, [], ChunkContext(None, None), LossConfig())
    with pytest.raises(ValueError, match="4 tokens in 3 frames"):
        align(model, feats, [3] * 4, ChunkContext(None, None), LossConfig(rnnt_type="modified"))


def test_best_path_is_the_best_of_all():
    for _ in range(20):
        occupation = torch.rand(3, 5)
        paths = [p for p in itertools.product(range(3), repeat=5) if list(p) == sorted(p) and p[-1] == 2]
        best = max(paths, key=lambda p: sum(float(occupation[row, t]) for t, row in enumerate(p)))
        assert best_path(occupation).tolist() == list(best)


def test_pictures_of_the_first_utterances(tmp_path):
    train_tokenizer(["one two three four"], tmp_path / "tokenizer.model", 8, "word")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    texts = ["one two", "three <b>", "", "four", "two"]
    cuts = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.flac"
        cuts.append(make_cut(f"<u>{number}", path, write_flac(path, sound(1.0 + number / 2)), text or " ", "me"))
    write_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    pictures = Pictures(tmp_path, [str(tmp_path / "cuts.jsonl.gz")], tokenizer, ChunkContext(4, 2), LossConfig())
    model = build_model(SMALL, tokenizer.vocab_size)
    drawn = pictures.draw(model, 7)
    assert set(drawn) == {f"utterance-{n}/{kind}" for n in (1, 2) for kind in ("spectrogram", "lattice")}
    assert drawn["utterance-1/spectrogram"].shape == (160, 100, 3)
    assert drawn["utterance-1/lattice"].shape[1:] == (100, 3)
    saved = np.asarray(Image.open(tmp_path / "pictures" / "utterance-2-lattice.png"))
    assert np.array_equal(saved, drawn["utterance-2/lattice"])
    entries = json.loads((tmp_path / "pictures" / "pictures.json").read_text())["pictures"]
    assert [(e["id"], e["step"], len(e["pieces"])) for e in entries] == [("<u>0", 7, 2), ("<u>1", 7, 2)]
    (tmp_path / "metrics.jsonl").touch()
    figures = list(picture_figures(RunRecords.read(tmp_path)))
    assert len(figures) == 2
    assert all(f.count("data:image/png;base64,") == 2 and "<u>" not in f and "<b>" not in f for f in figures)
    (tmp_path / "pictures" / "utterance-1-lattice.png").unlink()
    assert len(list(picture_figures(RunRecords.read(tmp_path)))) == 1


def test_without_a_validation_set_nothing_is_drawn(tmp_path):
    assert Pictures(tmp_path, [], None, ChunkContext(None, None), LossConfig()).draw(None, 1) == {}
    assert not (tmp_path / "pictures").exists()
