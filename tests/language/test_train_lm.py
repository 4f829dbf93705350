"""bin/train_lm: text in books' spelling to an ARPA file that the decoders read."""

import gzip
import subprocess
import sys

import pytest
from conftest import ROOT

from sumix_stream.language.text import LanguageModelError, normalise, read_sentences, split_sentences, tokenizer_case
from sumix_stream.search.ngram import NgramLm
from sumix_stream.tokenizer import train_tokenizer

BOOK = """It was the best of times; it was the worst of
times. "Don’t," said he -- 'no one' -- in 1859!

CHAPTER II

The mail went on: it was late.
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    text = "IT WAS THE BEST OF TIMES WORST DON'T SAID HE NO ONE IN CHAPTER MAIL WENT ON LATE"
    return train_tokenizer([text], tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", model_type="char")


def test_sentences_of_books_and_lines_of_transcripts(tokenizer):
    assert tokenizer_case(tokenizer) == "upper"
    found = [normalise(sentence, "upper") for sentence in split_sentences(BOOK)]
    assert [text for text in found if text] == [
        "IT WAS THE BEST OF TIMES",
        "IT WAS THE WORST OF TIMES",
        "DON'T SAID HE NO ONE IN 1859",
        "CHAPTER II",
        "THE MAIL WENT ON",
        "IT WAS LATE",
    ]
    assert list(split_sentences("it was\nthe best\n")) == ["it was", "the best"]


def test_sentences_with_unknown_characters_are_left_out_and_counted(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    found = read_sentences([tmp_path / "book.txt"], tokenizer)
    assert len(found.tokens) == 5 and found.num_words == 21
    assert dict(found.left_out) == dict.fromkeys("1859", 1)
    (tmp_path / "numbers.txt").write_text("1 2 3.")
    with pytest.raises(LanguageModelError, match="no sentence of the text can be written .*'1'"):
        read_sentences([tmp_path / "numbers.txt"], tokenizer)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(LanguageModelError, match=r"latin.txt: cannot be read as UTF-8"):
        read_sentences([tmp_path / "latin.txt"], tokenizer)


def test_the_command_makes_what_the_decoders_read(tokenizer, tmp_path):
    with gzip.open(tmp_path / "book.txt.gz", "wt") as file:
        file.write(20 * BOOK)
    (tmp_path / "valid.txt").write_text("it was the best\nthe mail was late\n")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.to_bytes())
    command = [sys.executable, ROOT / "bin" / "train_lm", tmp_path / "book.txt.gz", "--tokenizer"]
    command += [tmp_path / "tokenizer.model", "--out", tmp_path / "lm" / "lm.arpa.gz", "--order", "3"]
    done = subprocess.run([*command, "--valid", tmp_path / "valid.txt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "100 sentences, 420 words" in done.stdout and "perplexity" in done.stdout and "'1' 20" in done.stdout
    assert "(8 words" in done.stdout
    lm = NgramLm.load(tmp_path / "lm" / "lm.arpa.gz", tokenizer)
    assert lm.order == 3
    done = subprocess.run([*command, "--prune", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "prune must be 0 for order 1" in done.stderr
