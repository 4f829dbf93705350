"""What people listen to is what training hears."""

import base64
import re

import numpy as np
import pytest
import soundfile
from trees import write_cuts_and_tokenizer

from sumix_stream.config import DataConfig, NoiseConfig
from sumix_stream.data import TrainLoader
from sumix_stream.features import whole_fbank
from sumix_stream.report.listen import write_examples
from sumix_stream.timebase import Timebase


@pytest.fixture
def loader(tmp_path) -> TrainLoader:
    _, manifest, tokenizer = write_cuts_and_tokenizer(tmp_path, [1.0, 1.1, 1.2])
    config = DataConfig(max_duration=2.5, noise=NoiseConfig(1.0, (10.0, 10.0)), spec_augment=None)
    return TrainLoader(config, manifest, tokenizer, Timebase(), seed=0)


def test_the_sound_is_that_of_the_batches(loader):
    for epoch in (0, 1):
        for batch in loader.epoch_batches(epoch):
            heard = loader.hear(epoch, batch.index)
            assert [h.id for h in heard] == batch.ids and [h.text for h in heard] == batch.texts
            for b, utterance in enumerate(heard):
                length = int(batch.feat_lengths[b])
                np.testing.assert_allclose(whole_fbank(utterance.augmented), batch.feats[b, :length], atol=1e-4)
                assert not np.array_equal(utterance.recorded, utterance.augmented)


def test_the_page_plays_the_files(loader, tmp_path):
    page = write_examples(loader, tmp_path / "out", 2)
    assert sorted(path.name for path in page.parent.iterdir()) == [
        *("00.flac", "00.recorded.flac", "01.flac", "01.recorded.flac", "listen.html")
    ]
    sounds = re.findall(r'src="data:audio/flac;base64,([^"]+)"', page.read_text())
    assert base64.b64decode(sounds[0]) == (page.parent / "00.flac").read_bytes()
    assert "http" not in page.read_text()  # nothing is fetched
    first = loader.hear(0, 0)[0]
    np.testing.assert_allclose(soundfile.read(page.parent / "00.flac")[0], first.augmented, atol=1e-4)
    np.testing.assert_allclose(soundfile.read(page.parent / "00.recorded.flac")[0], first.recorded, atol=1e-4)


def test_no_more_than_there_is(loader, tmp_path):
    assert "3 utterances of epoch 5" in write_examples(loader, tmp_path / "out", 100, epoch=5).read_text()


def test_none_is_refused(loader, tmp_path):
    with pytest.raises(ValueError, match="number must be at least 1"):
        write_examples(loader, tmp_path, 0)
