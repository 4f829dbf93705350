"""Digit strings: official split, equal coverage, no digital silence."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from trees import tone, write_digits

from sumix_stream.corpora.digits import (
    WORDS,
    draw_strings,
    find_digits,
    prepare_digits,
    split_digits,
)
from sumix_stream.data import load_cuts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "recordings")
    return folder


def test_the_split_is_by_index(corpus):
    split = split_digits(find_digits(corpus))
    indices = {part: sorted({digit.index for digit in digits}) for part, digits in split.items()}
    assert indices == {"test": [0, 1, 2, 3, 4], "valid": [5, 6, 7], "train": [8, 9]}
    assert {part: len(digits) for part, digits in split.items()} == {"test": 100, "valid": 60, "train": 40}


def test_the_recordings_folder_itself_will_do(corpus):
    assert find_digits(corpus / "recordings") == find_digits(corpus)


@pytest.mark.parametrize("name", [None, "hello.wav", "seven_ann_0.wav", "7_ann.wav"])
def test_other_folders_are_refused(tmp_path, name):
    if name:
        soundfile.write(tmp_path / name, tone(0.1), 8000)
    with pytest.raises(ValueError, match=name or "--corpus"):
        find_digits(tmp_path)


def test_a_corpus_without_training_recordings_is_refused(tmp_path):
    write_digits(tmp_path / "few", ["ann"], num_indices=5)
    with pytest.raises(ValueError, match="train"):
        split_digits(find_digits(tmp_path / "few"))


def test_strings_use_every_recording_equally(corpus):
    digits = split_digits(find_digits(corpus))["test"]
    strings = list(draw_strings("test", digits, 120, 0, 0.0, (0.0, 0.0)))
    assert strings == list(draw_strings("test", digits, 120, 0, 0.0, (0.0, 0.0)))
    assert len({string.digits for string in strings}) == 120
    assert set(Counter(len(string.digits) for string in strings)) == set(range(1, 8))
    assert all(len({digit.speaker for digit in string.digits}) == 1 for string in strings)
    uses = Counter(digit for string in strings for digit in string.digits)
    assert len(uses) == 100
    for speaker in ("ann", "bob"):
        counts = [number for digit, number in uses.items() if digit.speaker == speaker]
        assert max(counts) - min(counts) <= 1
    assert strings[0].text == " ".join(WORDS[digit.digit] for digit in strings[0].digits)


def test_some_training_strings_mix_speakers(corpus):
    digits = split_digits(find_digits(corpus))["train"]
    strings = list(draw_strings("train", digits, 200, 0, 0.3, (0.0, 0.0)))
    mixed = sum(len({digit.speaker for digit in string.digits}) > 1 for string in strings)
    assert 20 < mixed < 80


def test_training_strings_repeat_digits_as_other_recordings(corpus):
    digits = split_digits(find_digits(corpus))["train"]

    def share(repeat):
        strings = draw_strings("train", digits, 300, 0, 0.0, (0.0, 0.0), repeat)
        pairs = [pair for string in strings for pair in zip(string.digits, string.digits[1:])]
        return sum(a.digit == b.digit for a, b in pairs) / len(pairs)

    assert 0.05 < share(0.0) < 0.15
    assert 0.25 < share(0.25) < 0.42  # 0.25 + 0.75 / 10


def test_more_strings_than_there_are_is_an_error(corpus):
    digits = [d for d in find_digits(corpus) if d.index == 0 and d.speaker == "ann" and d.digit < 1]
    with pytest.raises(ValueError, match="50 different test strings"):
        list(draw_strings("test", digits, 50, 0, 0.0, (0.0, 0.0)))


def test_prepare(corpus, tmp_path):
    prepare_digits(corpus, tmp_path, num_train=30, num_valid=6, num_test=12, num_jobs=1)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for part, number in (("train", 30), ("valid", 6), ("test", 12)):
        cuts = list(load_cuts(tmp_path / f"cuts_{part}.jsonl.gz"))
        assert len(cuts) == number
        for cut in cuts:
            samples, num_digits = cut.load_audio()[0], len(cut.supervisions[0].text.split())
            assert len(samples) == cut.num_samples and cut.sampling_rate == 16_000
            assert 0.2 + 0.2 * num_digits + 0.05 * (num_digits - 1) <= cut.duration <= 1 + 0.7 * num_digits
            assert np.count_nonzero(samples[:1600]) > 1000  # a noise floor before the first digit
    prepare_digits(corpus, tmp_path, num_train=30, num_valid=6, num_test=12, num_jobs=1)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
