"""Hotwords: the automaton against a slow count of occurrences, and what boosting does in a search."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from talkative import VOCAB_SIZE, runtime_of

from sumix_stream.search.backoff import BackoffAutomaton
from sumix_stream.search.beam import BeamState, NBest, beam_decode
from sumix_stream.search.hotwords import Hotwords, parse_hotwords, read_hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.tokenizer import Tokenizer, train_tokenizer

SEQUENCES = (((1, 2), 2.0), ((1, 2, 3), 6.0), ((2, 3, 2), 1.5), ((3,), 0.5), ((2, 1, 2, 4), 8.0), ((4, 4), -3.0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "char.model"
    return train_tokenizer(["NEW YORK CITY", "OLD"], path, model_type="char")


def expected(tokens: tuple[int, ...]) -> tuple[float, float]:
    """What complete occurrences have earned, and what the longest open match has on approval."""
    earned = sum(
        score
        for sequence, score in SEQUENCES
        for start in range(len(tokens))
        if tokens[start : start + len(sequence)] == sequence
    )
    prefixes = {sequence[:n] for sequence, _ in SEQUENCES for n in range(len(sequence) + 1)}
    tail = next(tokens[start:] for start in range(len(tokens) + 1) if tokens[start:] in prefixes)
    shares = [
        score * len(tail) / len(sequence)
        for sequence, score in SEQUENCES
        if tail and len(sequence) > len(tail) and sequence[: len(tail)] == tail
    ]
    return earned, max(shares, default=0.0)


def test_every_path_earns_its_occurrences_and_no_more():
    matcher = Hotwords(SEQUENCES, 6).matcher
    draw = random.Random(0)
    for _ in range(200):
        tokens = tuple(draw.choice((1, 2, 2, 3, 4, 5)) for _ in range(12))
        state, total = np.array([0]), 0.0
        for n, token in enumerate(tokens, 1):
            total += matcher.rows(state)[0, token].item()
            state = matcher.next(state, np.array([token]))
            earned, approval = expected(tokens[:n])
            assert -matcher.to_root(state).item() == pytest.approx(approval, abs=1e-5)
            assert total == pytest.approx(earned + approval, abs=1e-4)


def test_automata_side_by_side_are_what_they_were():
    parts = [Hotwords(SEQUENCES[:3], 6).matcher, BackoffAutomaton.empty(6), Hotwords(SEQUENCES[3:], 6).matcher]
    joined, first = BackoffAutomaton.join(parts)
    assert first == [0, len(parts[0].fallback), len(parts[0].fallback) + 1]
    for part, offset in zip(parts, first, strict=True):
        states = np.arange(len(part.fallback))
        assert np.array_equal(joined.rows(states + offset), part.rows(states))
        assert np.array_equal(joined.to_root(states + offset), part.to_root(states))
        for token in range(6):
            tokens = np.full_like(states, token)
            assert np.array_equal(joined.next(states + offset, tokens), part.next(states, tokens) + offset)


def search(hotwords: Hotwords | None = None, of_streams: list | None = None, beam: int = 4) -> list[NBest]:
    torch.manual_seed(0)
    enc, lengths = torch.randn(3, 24, 32).numpy(), np.array([24, 24, 17])
    options = SearchOptions(method="modified_beam", beam=beam, nbest=beam, hotwords=hotwords)
    state = BeamState.init(runtime_of(), 3, options, of_streams)
    return beam_decode(runtime_of(), enc, lengths, state, options)[0]


def test_a_likely_alternative_wins_with_a_boost_and_scores_it():
    plain = search()
    best, other = plain[0][0], plain[0][1]
    length = next(n for n, pair in enumerate(zip(best.tokens, other.tokens, strict=False)) if pair[0] != pair[1])
    phrase = tuple(other.tokens[max(0, length - 1) : length + 2])
    boosted = search(Hotwords(((phrase, 5.0),), VOCAB_SIZE))
    tokens = boosted[0][0].tokens
    assert tokens != best.tokens
    assert any(tuple(tokens[n : n + len(phrase)]) == phrase for n in range(len(tokens)))
    found = {tuple(x.tokens): x.score for x in boosted[0]}
    before = {tuple(x.tokens): x.score for x in search(beam=64)[0]}
    for sequence, score in found.items():
        times = sum(sequence[n : n + len(phrase)] == phrase for n in range(len(sequence)))
        if sequence in before:  # a wide beam loses little of what the alignments of a sequence add up to
            assert score == pytest.approx(before[sequence] + 5.0 * times, abs=0.3)


@pytest.mark.parametrize("sequences", [(((3, 7, 11), 0.0),), ()], ids=["of score 0", "none"])
def test_no_boost_changes_nothing(sequences):
    assert search(Hotwords(sequences, VOCAB_SIZE)) == search()


def test_an_unfinished_phrase_gains_nothing():
    plain = search()[0]
    last = plain[1].tokens[-1]
    free = next(token for token in range(1, VOCAB_SIZE) if all(token not in x.tokens for x in plain))
    boosted = search(Hotwords((((last, free), 4.0),), VOCAB_SIZE))[0]
    assert any(x.tokens[-1] == last for x in boosted)
    assert not any(free in x.tokens for x in boosted)
    assert boosted[0].tokens == plain[0].tokens
    for result in boosted:
        assert result.score <= plain[0].score + 0.3
    assert [x.score for x in boosted] == sorted((x.score for x in boosted), reverse=True)


def test_each_stream_has_its_own():
    plain = search()
    phrases = [tuple(plain[n][-1].tokens[-2:]) for n in range(3)]
    words = [Hotwords(((phrase, 20.0),), VOCAB_SIZE) for phrase in phrases]
    mixed = search(of_streams=[None, words[1], words[2]])
    for n in range(3):
        tokens = [x.tokens for x in mixed[n]]
        assert tokens == [x.tokens for x in (search(words[n]) if n else plain)[n]]
        assert (tokens != [x.tokens for x in plain[n]]) == (n > 0)


def test_phrases_become_tokens(tokenizer):
    words = Hotwords.compile({"NEW YORK": None, "OLD": 3.0}, tokenizer, score=1.0)
    assert words.vocab_size == tokenizer.vocab_size
    new_york, old = words.sequences
    assert (tokenizer.decode(new_york[0]), new_york[1]) == ("NEW YORK", float(len(new_york[0])))
    assert (tokenizer.decode(old[0]), old[1]) == ("OLD", 3.0 * len(old[0]))
    assert Hotwords.compile("OLD", tokenizer, 3.0).sequences == (old,)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ([], "at least one phrase"),
        ([" "], "hotword ' ' has no text"),
        (["new"], "hotword 'new' has e n w, which the model cannot write; it writes 'NEW'; spell it as"),
        (["NEW @"], "hotword 'NEW @' has @, which the model cannot write; spell it as"),
        ({"OLD": float("inf")}, "the score of hotword 'OLD' must be a finite number, got inf"),
    ],
    ids=str,
)
def test_bad_phrases_are_named(tokenizer, phrases, message):
    with pytest.raises(ValueError, match=message):
        Hotwords.compile(phrases, tokenizer)


def test_hotword_file():
    lines = ["# cities", "NEW YORK :2.5", "", "OLD  # of old", " A:B "]
    assert parse_hotwords(lines) == {"NEW YORK": 2.5, "OLD": None, "A:B": None}
    with pytest.raises(ValueError, match="list.txt:2: the score of 'OLD' must be a number, got 'two'"):
        parse_hotwords(["NEW", "OLD :two"], "list.txt")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("C# :2.0", {"C#": 2.0}),
        ("C#", {"C#": None}),
        ("C# # a language", {"C#": None}),
        ("#none", {}),
        ("PRESS #9 :1", {"PRESS #9": 1.0}),
        ("NEW YORK\t:2.0", {"NEW YORK": 2.0}),
        ("NEW\u00a0YORK : 2.0 # city", {"NEW YORK": 2.0}),
        ("RATIO 3 :2 OK :1.5", {"RATIO 3 :2 OK": 1.5}),
        ("RATIO 3 :2 OK", {"RATIO 3 :2 OK": None}),
        ("NEW YORK:2.0", {"NEW YORK:2.0": None}),
        ("NEW YORK :-2", {"NEW YORK": -2.0}),
        ("NEW YORK :", {"NEW YORK": None}),
        ("  ", {}),
    ],
)
def test_lines_of_a_hotword_file(line, expected):
    assert parse_hotwords([line]) == expected


@pytest.mark.parametrize("score", ["nan", "inf", "2,5", "two"])
def test_scores_that_are_none_are_named_with_their_line(score):
    with pytest.raises(ValueError, match=f"list:2: the score of 'OLD' must be a number, got '{score}'"):
        parse_hotwords(["NEW", f"OLD :{score}"], "list")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_of_a_hotword_file(tokenizer, tmp_path, encoding, end):
    path, text = tmp_path / "list.txt", end.join(["NEW YORK :2.0", "OLD", ""])
    if encoding == "utf-16-be-sig":
        path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be"))
    else:
        path.write_bytes(text.encode(encoding))
    expected = Hotwords.compile({"NEW YORK": 2.0, "OLD": None}, tokenizer, 0.5)
    assert read_hotwords(path, tokenizer, 0.5) == expected


def test_a_file_in_another_encoding_is_named_with_the_line(tokenizer, tmp_path):
    (tmp_path / "list.txt").write_bytes("NEW\nJOS\u00c9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.txt:2: not UTF-8 \(byte 0xc9\)"):
        read_hotwords(tmp_path / "list.txt", tokenizer)


def test_one_unknown_phrase_of_many(tokenizer, tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("NEW YORK\nTOKYO \u6771\u4eac\nold\nOLD\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"2 of 4 hotwords cannot .*line 2: 'TOKYO .*line 3: 'old' .* it writes 'OLD'"
    ) as error:
        read_hotwords(path, tokenizer)
    assert "--skip-unknown" in str(error.value) and "\u6771" in str(error.value)
    assert read_hotwords(path, tokenizer, skip_unknown=True) == Hotwords.compile(["NEW YORK", "OLD"], tokenizer)
    assert "2 of 4 hotwords" in caplog.text and "line 2" in caplog.text and "left out" in caplog.text
    path.write_text("new@\n" * 7)
    with pytest.raises(ValueError, match="7 of 7 hotwords .* and 2 more"):
        read_hotwords(path, tokenizer, skip_unknown=True)


def test_phrases_given_twice(tokenizer, tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("NEW YORK :1\nNEW YORK :3\nOLD\nOLD\n")
    assert read_hotwords(path, tokenizer) == Hotwords.compile({"NEW YORK": 3.0, "OLD": None}, tokenizer)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}:2: 'NEW YORK' stood in line 1 with another score; the last holds"
    ]
