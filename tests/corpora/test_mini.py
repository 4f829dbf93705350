"""The synthetic corpus: its grammar, its speakers, and its files where eSpeak NG is installed."""

from collections import Counter

import pytest
from lhotse.recipes import prepare_librispeech

from sumix_stream.corpora.mini import ACCENTS, GRAMMAR, VARIANTS, draw_sentences, draw_speakers, prepare_mini
from sumix_stream.data import load_cuts
from sumix_stream.tokenizer import Tokenizer


def test_sentences_are_short_and_of_known_words_and_held_out_ones_are_new():
    numbers = {"train": 2500, "valid": 100, "test": 200}
    sentences = draw_sentences(numbers, 0)
    assert {part: len(drawn) for part, drawn in sentences.items()} == numbers
    train, valid, test = (set(sentences[part]) for part in numbers)
    assert len(valid | test) == 300 and not train & (valid | test)
    assert {len(sentence.split()) for sentence in train} == set(range(3, 10))
    words = Counter(word for sentence in sentences["train"] for word in sentence.split())
    assert 60 <= len(words) <= 150 and all(word.isalpha() and word.islower() for word in words)
    assert min(words.values()) >= 15, "a word is too rare to be learnt"
    assert {word for sentence in valid | test for word in sentence.split()} <= set(words)
    assert sentences == draw_sentences(numbers, 0) != draw_sentences(numbers, 1)


def test_every_rule_is_used():
    named = {name for rule in GRAMMAR.values() for name in rule.replace("<", " <").split() if name.startswith("<")}
    assert {name[1 : name.index(">")] for name in named} == set(GRAMMAR) - {"sentence"}


def test_held_out_speakers_are_new_but_their_accents_and_variants_are_not():
    parts = draw_speakers(0)
    assert {part: len(speakers) for part, speakers in parts.items()} == {"train": 10, "valid": 2, "test": 2}
    speakers = [speaker for part in parts.values() for speaker in part]
    assert len({speaker.id for speaker in speakers}) == len({speaker.voice for speaker in speakers}) == 14
    voices = [speaker.voice.partition("+") for speaker in parts["train"]]
    assert {accent for accent, _, _ in voices} == set(ACCENTS)
    assert {plus + variant for _, plus, variant in voices} == set(VARIANTS)


def test_prepare(tmp_path):
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
    for name, jobs in (("a", 1), ("b", 2)):
        prepare_mini(tmp_path / name, num_train=8, num_valid=2, num_test=2, num_jobs=jobs)
    corpus = tmp_path / "a/corpus/LibriSpeech"
    texts = {}
    for part, number in (("train", 8), ("valid", 2), ("test", 2)):
        cuts = list(load_cuts(tmp_path / f"a/cuts_{part}.jsonl.gz"))
        assert len(cuts) == number
        for cut in cuts:
            assert texts.setdefault(cut.supervisions[0].text, part) == part
            samples = cut.load_audio()[0]
            assert len(samples) == cut.num_samples and 0.05 < abs(samples).max() <= 1
            assert 0.2 < cut.duration / len(cut.supervisions[0].text.split()) < 1
        # Lhotse's own reader finds the same utterances.
        found = prepare_librispeech(corpus, dataset_parts=part)[part]["supervisions"]
        assert {s.id: s.text for s in found} == {cut.id: cut.supervisions[0].text for cut in cuts}
    assert Tokenizer.load(tmp_path / "a/tokenizer.model").vocab_size < 60
    # The number of processes does not change a sample.
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*.*"))
    other = tmp_path / "b/corpus/LibriSpeech"
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.*")) and len(files) >= 12
    for file in files:
        assert (corpus / file).read_bytes() == (other / file).read_bytes(), file
