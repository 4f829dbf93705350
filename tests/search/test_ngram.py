"""N-gram models: scores as KenLM gives them, what a damaged file is told, and fusion in a search."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from talkative import VOCAB_SIZE, runtime_of

from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.search.beam import beam_decode
from sumix_stream.search.ngram import ArpaError, NgramLm, read_arpa, write_pieces
from sumix_stream.search.options import SearchOptions

ARPA = """\\data\\
ngram 1=7
ngram 2=7
ngram 3=4

\\1-grams:
-1.6\t<unk>\t-0.05
0\t<s>\t-0.7
-1.1\t</s>\t0
-0.9\t▁a\t-0.4
-0.7\tb\t-0.3
-0.8\t▁c\t-0.2
-1.2\td\t0

\\2-grams:
-0.4\t<s> ▁a\t-0.25
-0.3\t▁a b\t-0.15
-0.6\tb ▁c\t-0.1
-0.5\t▁c d\t0
-0.9\tb b\t-0.35
-0.7\t<unk> b\t-0.12
-0.8\td </s>\t0

\\3-grams:
-0.2\t<s> ▁a b
-0.25\t▁a b ▁c
-0.45\tb b b
-0.35\t▁c d </s>

\\end\\
"""
# log10 scores of the tokens of each sentence, from KenLM 0.3.0 (full_scores with bos, without eos).
KENLM = {
    "▁a b ▁c d": [-0.4, -0.2, -0.25, -0.6],
    "b b b b ▁a": [-1.4, -0.9, -0.45, -0.45, -1.55],
    "d d ▁c zz b ▁c": [-1.9, -1.2, -0.8, -1.8, -0.7, -0.72],
    "zz zz ▁a b b ▁c": [-2.3, -1.65, -0.95, -0.3, -1.05, -0.95],
    "▁c ▁c ▁a": [-1.5, -1.0, -1.1],
}


class Pieces:
    """A tokenizer of the file's words; `zz` is a piece that the file has not."""

    blank_id, unk_id = 0, 1
    pieces = ("<blk>", "<unk>", "▁a", "b", "▁c", "d", "zz")
    vocab_size = len(pieces)

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(piece) for piece in text.split()]


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_scores_are_kenlms(path, suffix):
    if suffix:
        path = Path(f"{path}.gz")
        path.write_bytes(gzip.compress(ARPA.encode()))
    lm = NgramLm.load(path, Pieces())
    assert lm.order == 3
    sentences = [Pieces().encode(text) for text in KENLM]
    state = lm.start(len(sentences))
    scores = [[] for _ in sentences]
    for position in range(6):  # all sentences together, each as long as it is
        log_probs = lm.log_probs(state)
        assert log_probs.shape == (len(sentences), Pieces.vocab_size)
        tokens = np.array([(sentence + [2] * 6)[position] for sentence in sentences])
        for row, (sentence, token) in enumerate(zip(sentences, tokens.tolist(), strict=True)):
            if position < len(sentence):
                scores[row].append(log_probs[row, token].item() / math.log(10))
        state = lm.advance(tokens, state)
    for found, expected in zip(scores, KENLM.values(), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_without_unk_what_is_not_in_the_file_is_never_said(path):
    text = ARPA.replace("-1.6\t<unk>\t-0.05\n", "").replace("-0.7\t<unk> b\t-0.12\n", "")
    path.write_text(text.replace("ngram 1=7", "ngram 1=6").replace("ngram 2=7", "ngram 2=6"))
    lm = NgramLm.load(path, Pieces())
    scores = lm.log_probs(lm.start(1))[0] / math.log(10)
    assert scores[6].item() == pytest.approx(-100.7, abs=1e-3)
    assert scores[2].item() == pytest.approx(-0.4, abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "no \\\\data\\\\ section"),
        ("ngram 2=7", "ngram 3=7", "lm.arpa:3: expected the count of order 2"),
        ("ngram 1=7\nngram 2=7\nngram 3=4\n", "", "expected `ngram 1=...`"),
        ("ngram 2=7", "ngram 2=10", "7 2-grams, but its head says 10: it is damaged"),
        ("\\2-grams:", "\\4-grams:", "lm.arpa:15: expected .2-grams:"),
        ("-0.3\t▁a b\t-0.15", "-0.3\t▁a\t-0.15 x y", "lm.arpa:17: expected a log10 probability and 2 words"),
        ("-0.3\t▁a b", "0.3\t▁a b", "lm.arpa:17: expected a log10 probability"),
        ("-0.3\t▁a b", "nan\t▁a b", "lm.arpa:17: expected a log10 probability"),
        ("-0.2\t<s> ▁a b", "-0.2\t<s> ▁a", "lm.arpa:25: expected a log10 probability and 3 words"),
        ("\\end\\", "", "no .end.: it is cut short"),
        ("-0.3\t▁a b\t-0.15", "-0.3\t▁a b\tnan", "lm.arpa:17: expected a log10 probability"),
        ("-0.3\t▁a b\t-0.15", "-0.3\t▁a b\tinf", "lm.arpa:17: expected a log10 probability"),
        ("d\t0", "word\t0", "1 of its words are no pieces of this tokenizer, such as 'word': .*write_pieces"),
    ],
    ids=str,
)
def test_a_bad_file_is_told_what_is_wrong(path, old, new, message):
    assert old in ARPA
    path.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(ArpaError, match=message):
        NgramLm.load(path, Pieces())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\\data\\", "\ufeff\\data\\", None),
        ("\n", "\r\n", None),
        ("\\data\\", "made by a toolkit\n\n\\data\\", None),
        ("\t0\n", "\n", None),
        ("<unk>", "<UNK>", "<UNK> is read as <unk>"),
        ("ngram 1=7", "ngram 1=8", "7 1-grams, but its head says 8"),
        ("ngram 3=4", "ngram 3=4\nngram 4=0", "no 4-grams, as its head says: order 3"),
    ],
    ids=str,
)
def test_files_as_other_toolkits_write_them_score_the_same(path, caplog, old, new, said):
    plain = NgramLm.load(path, Pieces())
    path.write_text(ARPA.replace(old, new), encoding="utf-8")
    assert NgramLm.load(path, Pieces()).fingerprint == plain.fingerprint
    assert [record.getMessage() for record in caplog.records] == ([f"{path}: {said}"] if said else [])


def score_of(path, text: str) -> list[float]:
    """log10 scores of the words of a sentence."""
    lm = NgramLm.load(path, Pieces())
    state, scores = lm.start(1), []
    for token in Pieces().encode(text):
        scores.append(float(lm.log_probs(state)[0, token]) / math.log(10))
        state = lm.advance(np.array([token]), state)
    return scores


def test_contexts_that_were_pruned_away(path, caplog):
    """SRILM prunes `▁a b` and keeps `<s> ▁a b` and `▁a b ▁c`. By hand: p(b | ▁a) = backoff(▁a) + p(b), backoff of
    `▁a b` 0."""
    path.write_text(ARPA.replace("-0.3\t▁a b\t-0.15\n", "").replace("ngram 2=7", "ngram 2=6"))
    assert score_of(path, "d ▁a b ▁c b") == pytest.approx(
        [-1.2 - 0.7, -0.9 + 0, -0.4 - 0.7, -0.25, -0.1 - 0.2 - 0.7], abs=1e-5
    )
    assert score_of(path, "d ▁a b d") == pytest.approx([-1.9, -0.9, -1.1, 0 - 0.3 - 1.2], abs=1e-5)
    assert "1 contexts of longer n-grams are no n-grams themselves" in caplog.text


def test_a_whole_chain_of_contexts_that_were_pruned_away(path):
    """`▁a b ▁c d` alone of its order, with neither `▁a b ▁c` nor `▁a b`."""
    text = ARPA.replace("-0.3\t▁a b\t-0.15\n", "").replace("ngram 2=7", "ngram 2=6")
    text = text.replace("-0.25\t▁a b ▁c\n", "").replace("ngram 3=4", "ngram 3=3\nngram 4=1")
    path.write_text(text.replace("\\end\\", "\\4-grams:\n-0.1\t▁a b ▁c d\n\n\\end\\"))
    assert score_of(path, "d ▁a b ▁c d") == pytest.approx([-1.9, -0.9, -1.1, -0.6, -0.1], abs=1e-5)


def test_values_that_are_clamped(path, caplog):
    """A probability a little above 1 is 1; after a context that never backs off, other words are next to impossible."""
    path.write_text(ARPA.replace("-0.4\t<s> ▁a", "1e-09\t<s> ▁a").replace("-1.2\td\t0", "-1.2\td\t-inf"))
    scores = score_of(path, "▁a d ▁a")
    assert scores[0] == 0.0
    assert scores[2] == pytest.approx(-100.9, abs=1e-3)
    assert "probabilities a little above 1 count as 1" in caplog.text
    assert "backoff weights of -inf count as -100" in caplog.text


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ArpaError, match="no such language model"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "a.arpa.gz").write_text(ARPA)
    with pytest.raises(ArpaError, match="cannot be read"):
        read_arpa(tmp_path / "a.arpa.gz")
    (tmp_path / "b.arpa").write_bytes(b"\xff\xfe")
    with pytest.raises(ArpaError, match="cannot be read"):
        read_arpa(tmp_path / "b.arpa")


def test_text_in_pieces(tmp_path):
    assert write_pieces(["▁a b", "", "▁c d"], Pieces(), tmp_path / "text") == 2
    assert (tmp_path / "text").read_text() == "▁a b\n▁c d\n"


def pair_lm(log_probs: dict[tuple[int, int], float]) -> NgramLm:
    """Over the talkative model's tokens: log-probabilities of bigrams, 0 for all others."""
    seconds = sorted({first for first, _ in log_probs})
    number = {first: n for n, first in enumerate(seconds, 1)}
    arcs = {(0, token): (0.0, number.get(token, 0)) for token in range(VOCAB_SIZE)}
    arcs |= {(number[a], b): (value, number.get(b, 0)) for (a, b), value in log_probs.items()}
    automaton = BackoffAutomaton.build(VOCAB_SIZE + 1, [0] * (len(number) + 1), [0.0] * (len(number) + 1), arcs)
    return NgramLm(automaton, VOCAB_SIZE, 0, 2)


def search(**options):
    enc = np.random.default_rng(0).standard_normal((2, 24, 32)).astype(np.float32)
    lengths = np.array([24, 17])
    options = SearchOptions(**{"method": "modified_beam", "beam": 4, "nbest": 4, **options})
    return beam_decode(runtime_of(), enc, lengths, options=options)[0]


def test_scale_zero_and_an_even_model_change_nothing():
    plain = search()
    assert search(lm=pair_lm({(1, 2): -9.0}), lm_scale=0.0) == plain
    assert search(lm=pair_lm({}), lm_scale=0.7) == plain


def test_a_bigram_that_never_comes_is_not_said():
    plain = search()
    tokens = plain[0][0].tokens
    banned = tokens[2], tokens[3]
    fused = search(lm=pair_lm({banned: -100.0}), lm_scale=0.5)
    assert fused[0][0].tokens != tokens
    for result in fused[0]:
        assert banned not in zip(result.tokens, result.tokens[1:], strict=False)


def test_score_is_the_sum_of_both():
    everywhere = pair_lm({(a, b): -0.5 for a in range(1, VOCAB_SIZE) for b in range(1, VOCAB_SIZE)})
    plain = {tuple(x.tokens): x.score for x in search(beam=64, nbest=64)[1]}
    fused = search(lm=everywhere, lm_scale=0.8, beam=64, nbest=64)[1]
    both = [x for x in fused if tuple(x.tokens) in plain]
    assert len(both) > 5
    for result in both[:5]:
        expected = plain[tuple(result.tokens)] - 0.8 * 0.5 * (len(result.tokens) - 1)
        assert result.score == pytest.approx(expected, abs=0.2)


def test_pieces_equal_whole_with_fusion():
    model, enc = runtime_of(), np.random.default_rng(1).standard_normal((2, 24, 32)).astype(np.float32)
    lm = pair_lm({(a, b): -((a * b) % 5) / 2 for a in range(1, VOCAB_SIZE) for b in range(1, VOCAB_SIZE)})
    options = SearchOptions(method="modified_beam", nbest=4, lm=lm)
    expected, _ = beam_decode(model, enc, np.array([24, 24]), options=options)
    state = None
    for piece in np.split(enc, range(5, 24, 5), axis=1):
        found, state = beam_decode(model, piece, np.full(2, piece.shape[1]), state, options)
    for nbest, reference in zip(found, expected, strict=True):
        assert [x.tokens for x in nbest] == [x.tokens for x in reference]
        assert [x.score for x in nbest] == pytest.approx([x.score for x in reference], abs=1e-4)
