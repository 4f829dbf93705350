import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sumix_stream.tokenizer import MODEL_TYPES, Tokenizer, TokenizerError, train_tokenizer

WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE ZERO ELEVEN TWELVE THIRTEEN SIXTEEN TWENTY DON'T ÜBER".split()
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=6)) for i in range(200)]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "new" / f"{request.param}.model"
    trained = train_tokenizer(TEXTS, path, 40, request.param)
    loaded = Tokenizer.load(path)
    assert loaded.to_bytes() == trained.to_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return loaded


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_texts_come_back(tokenizer, words):
    text = " ".join(words)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(1 < i < tokenizer.vocab_size for i in ids)


def test_blank_and_unknown(tokenizer):
    assert tokenizer.blank_id == 0 and tokenizer.piece(0) == "<blk>"
    assert tokenizer.unk_id == 1
    ids = tokenizer.encode("ONE TWO")
    assert tokenizer.decode([0, *ids[:1], 0, 0, *ids[1:], 0]) == "ONE TWO"
    assert tokenizer.unk_id in tokenizer.encode("ONE @ TWO")
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_vocabulary_size(tokenizer, request):
    kind = request.node.callspec.params["tokenizer"]
    letters = set("".join(WORDS))
    size = {"bpe": 40, "unigram": 40, "char": 2 + len(letters) + 1, "word": 2 + len(WORDS)}[kind]
    assert tokenizer.vocab_size == size
    pieces = [tokenizer.piece(i) for i in range(size)]
    assert len(set(pieces)) == size
    if kind == "word":
        assert set(pieces[2:]) == {"▁" + word for word in WORDS}


def test_unknown_characters(tokenizer, request):
    assert tokenizer.unknown_characters(" ONE  ÜBER DON'T ") == set()
    if request.node.callspec.params["tokenizer"] == "word":
        assert tokenizer.unknown_characters("ONE HUNDRED two") == {"HUNDRED", "two"}
    else:
        assert tokenizer.unknown_characters("ONE ÄÖ3 two@\tNINE") == set("ÄÖ3two@")
        assert tokenizer.unknown_characters("<blk>ONE") == set("<blk>")


def test_copies(tokenizer):
    for copy in (Tokenizer.from_bytes(tokenizer.to_bytes()), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        assert copy.unknown_characters("@") == tokenizer.unknown_characters("@")


def test_ids_out_of_range_are_refused(tokenizer):
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"0\.\.{tokenizer.vocab_size - 1}, got {bad}"):
            tokenizer.decode([2, bad])
        with pytest.raises(ValueError, match=f"got {bad}"):
            tokenizer.piece(bad)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_an_impossible_size_is_refused_with_the_possible_one(tmp_path, model_type):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(TokenizerError, match=r"vocab_size 5000 is too large.*largest possible is \d+") as error:
        train_tokenizer(TEXTS, path, 5_000, model_type)
    largest = int(str(error.value).split()[-1])
    assert train_tokenizer(TEXTS, tmp_path / "large.model", largest, model_type).vocab_size == largest
    with pytest.raises(TokenizerError, match=r"vocab_size 5 is too small.*smallest possible is \d+") as error:
        train_tokenizer(TEXTS, path, 5, model_type)
    smallest = int(str(error.value).split()[-1])
    assert train_tokenizer(TEXTS, tmp_path / "small.model", smallest, model_type).vocab_size == smallest
    assert not path.exists()


def test_bad_training_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match="one of bpe, unigram, char, word, got 'BPE'"):
        train_tokenizer(TEXTS, path, 40, "BPE")
    for size in (None, 2):
        with pytest.raises(ValueError, match=f"vocab_size must be at least 3 .*got {size}"):
            train_tokenizer(TEXTS, path, size)
    for texts in ([], [" ", ""]):
        with pytest.raises(TokenizerError, match="no text"):
            train_tokenizer(texts, path, 40)
    assert not path.exists()


def test_a_long_text_and_a_long_word_are_not_dropped(tmp_path):
    long_text, long_word = "ABC " * 5_000 + "Q", "X" * 40
    letters = train_tokenizer([long_text], tmp_path / "char.model", model_type="char")
    assert letters.unknown_characters("ABCQ") == set()
    words = train_tokenizer([f"ABC {long_word}"], tmp_path / "word.model", model_type="word")
    assert words.decode(words.encode(long_word)) == long_word


def test_bad_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"gone\.model: no such tokenizer; run"):
        Tokenizer.load(tmp_path / "gone.model")
    with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path)
    good = train_tokenizer(TEXTS, tmp_path / "good.model", 40).to_bytes()
    for data in (b"", b"no model", good[: len(good) // 2]):
        path = tmp_path / "bad.model"
        path.write_bytes(data)
        with pytest.raises(TokenizerError, match=r"bad\.model: not a sentencepiece model, or truncated"):
            Tokenizer.load(path)


def test_a_model_without_blank_is_refused(tmp_path):
    import sentencepiece

    prefix = str(tmp_path / "other")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=prefix, vocab_size=30, minloglevel=2
    )
    with pytest.raises(TokenizerError, match=r"other\.model: piece 0 is not <blk>"):
        Tokenizer.load(prefix + ".model")
