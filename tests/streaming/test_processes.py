"""A recogniser that was used, elsewhere: forked, pickled, copied."""

import copy
import os
import pickle
import shutil
import subprocess
import sys

import onnx
import pytest
from conftest import ROOT
from talkative import sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.runtime.bundle import BundleError, load_tokenizer, open_bundle
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.tokenizer import train_tokenizer

FORKED = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])
import torch
from talkative import LetterTokenizer, sound, talkative_model
from sumix_stream.streaming.recognizer import Recognizer
assert torch.get_num_threads() == 2
audio = sound(2.0), 16_000
model = Recognizer(talkative_model(), LetterTokenizer())

def whole(_):
    return model.transcribe(audio).text

def streamed(_):
    stream = model.stream("640ms", 4)
    stream.feed(audio[1], audio[0])
    return stream.finish().text

for work in (whole, streamed):
    expected = work(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert set(pool.map_async(work, range(4)).get(120)) == {expected} != {""}
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_children_do_not_hang():
    """After use with two threads; the parent keeps both."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(ROOT / "tests")],
        env={**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"


def test_pickled_and_copied_after_use(tmp_path):
    letters = " ".join(chr(ord("a") + n) for n in range(21))
    tokenizer = train_tokenizer([letters], tmp_path / "letters.model", model_type="char")
    model, audio = Recognizer(talkative_model(), tokenizer), (sound(1.0), 16_000)
    fresh = len(pickle.dumps(model))
    expected = model.transcribe(audio).text
    stream = model.stream("640ms", 4)
    stream.feed(16_000, audio[0])
    live = stream.finish().text
    again = pickle.dumps(model)
    assert len(again) == fresh
    for other in (pickle.loads(again), copy.deepcopy(model)):
        assert other.transcribe(audio).text == expected
        stream = other.stream("640ms", 4)
        stream.feed(16_000, audio[0])
        assert stream.finish().text == live


@pytest.mark.parametrize("form", ["sherpa-onnx", "onnx"])
def test_bundles_are_pickled_and_copied_after_use(bundle, form, tmp_path):
    """By their files, which must be there and the same."""
    context, audio = ChunkContext(8, 2), sound(1.5)
    folder = shutil.copytree(bundle(form, "fast", context), tmp_path / "bundle")
    opened = open_bundle(folder)
    model = Recognizer(opened, load_tokenizer(opened))
    expected = model.transcribe((audio, 16_000))
    data = pickle.dumps(model)
    assert len(data) < 20_000 and expected.tokens
    for other in (pickle.loads(data), copy.deepcopy(model)):
        assert other.transcribe((audio, 16_000)) == expected
        stream = other.stream()
        stream.feed(16_000, audio)
        assert stream.finish().tokens == expected.tokens
    joiner = folder / "joiner.onnx"
    model = onnx.load(joiner)
    model.doc_string = "another"
    onnx.save(model, joiner)
    with pytest.raises(BundleError, match="holds another model than when this was copied"):
        pickle.loads(data)
    joiner.unlink()
    with pytest.raises(BundleError, match=r"joiner\.onnx is missing"):
        pickle.loads(data)


@pytest.mark.parametrize("rate", [16_000.0, 44_100.0])
def test_rates_as_floats_and_blocks_of_one_column(rate, tmp_path):
    letters = " ".join(chr(ord("a") + n) for n in range(21))
    tokenizer = train_tokenizer([letters], tmp_path / "letters.model", model_type="char")
    model, samples = Recognizer(talkative_model(), tokenizer), sound(1.5, int(rate))
    expected, stream = model.transcribe((samples, int(rate))), model.stream("640ms", 4)
    assert model.transcribe((samples[:, None], rate)) == expected
    other = model.stream("640ms", 4)
    for start in range(0, len(samples), 1_000):
        stream.feed(int(rate), samples[start : start + 1_000])
        other.feed(rate if start else int(rate), samples[start : start + 1_000, None])
    assert other.finish() == stream.finish()
