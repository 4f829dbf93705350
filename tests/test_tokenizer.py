import pickle
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from sumix_stream.tokenizer import (
    MODEL_TYPES,
    PieceTokenizer,
    Tokenizer,
    TokenizerError,
    clean_text,
    name_characters,
    train_tokenizer,
)

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ttwo", "one two"),
        ("one\u00a0two\u3000 three\n", "one two three"),
        ("\ufeffone two", "one two"),
        ("one\u200b two\u00ad\u200e", "one two"),
        ("cafe\u0301", "caf\u00e9"),
        ("on\u200ce two", "one two"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u0645\u06cc\u200c \u0645", "\u0645\u06cc \u0645"),
        ("  Case, and PUNCTUATION.  ", "Case, and PUNCTUATION."),
    ],
    ids="tab no-break bom zero-width decomposed joiner persian stray-joiner rest".split(),
)
def test_cleaned_texts(text, expected):
    assert clean_text(text) == expected


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_spaces_and_accents_of_any_kind_are_the_same_tokens(tmp_path, kind):
    texts = ["caf\u00e9 noir one two"] * 5
    tokenizer = train_tokenizer(texts, tmp_path / "a.model", 22, kind)
    expected = tokenizer.encode("one caf\u00e9")
    assert tokenizer.unk_id not in expected
    for text in ("one\tcaf\u00e9", "one\u00a0cafe\u0301", "\ufeffone caf\u00e9\u200b"):
        assert tokenizer.encode(text) == expected
        assert tokenizer.unknown_characters(text) == set()
    assert tokenizer.decode(expected) == "one caf\u00e9"
    untidy = [f"\ufeff{text}".replace("\u00e9", "e\u0301").replace(" ", "\u3000") for text in texts]
    again = train_tokenizer(untidy, tmp_path / "b.model", 22, kind)
    assert [again.piece(i) for i in range(again.vocab_size)] == [
        tokenizer.piece(i) for i in range(tokenizer.vocab_size)
    ]


def sentencepiece_model(path, texts, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path.with_suffix("")),
        vocab_size=300,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
        **options,
    )
    return Tokenizer.load(path)


def test_a_tokenizer_of_decomposed_texts_stays_of_use(tmp_path):
    path = tmp_path / "nfd.model"
    tokenizer = sentencepiece_model(
        path,
        ["cafe\u0301 noir"] * 5,
        model_type="char",
        pad_id=0,
        pad_piece="<blk>",
        unk_id=1,
        normalization_rule_name="identity",
    )
    for text in ("caf\u00e9", "cafe\u0301"):
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == "caf\u00e9"


def test_invisible_characters_are_named():
    assert name_characters({"\u0301", "a", "\u200d", "word"}) == (
        "a word U+0301 (combining acute accent) U+200D (zero width joiner)"
    )


def test_a_text_that_spells_blank_does_not_become_it(tmp_path):
    tokenizer = sentencepiece_model(
        tmp_path / "a.model", ["A B C D E F"] * 9, user_defined_symbols=["<blk>", "<sos/eos>"], unk_id=2
    )
    ids = tokenizer.encode("A <blk> B")
    assert 0 not in ids and tokenizer.unk_id in ids
    assert tokenizer.unknown_characters("A <blk> B")


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "bytes.model"
    options = {"byte_fallback": True, "model_type": "bpe", "pad_id": 0, "pad_piece": "<blk>", "unk_id": 1}
    return sentencepiece_model(path, ["A B C D E F"] * 9, **options)


def test_characters_of_bytes_appear_when_they_are_whole(byte_tokenizer):
    """Partial results show no broken character, with the model and with its pieces alone."""
    pieces = PieceTokenizer([byte_tokenizer.piece(i) for i in range(byte_tokenizer.vocab_size)])
    text = "A \u723f B\U0001f3a4"
    ids = byte_tokenizer.encode(text)
    for tokenizer in (byte_tokenizer, pieces):
        partial = [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
        assert partial[-1] == text
        assert all(text.startswith(part.rstrip()) for part in partial)
    stray = byte_tokenizer.encode("\U0001f3a4")[1:3] + byte_tokenizer.encode("B")
    assert pieces.decode(stray) == byte_tokenizer.decode(stray)
    assert "\ufffd" in pieces.decode(stray)
