"""The recipe that suits hours and machine."""

import pytest

from sumix_stream.config.reader import load_recipe
from sumix_stream.corpora.recipe_writer import Machine, plan_for, write_recipe
from sumix_stream.corpora.tokens import choose_tokens, write_tokens
from sumix_stream.tokenizer import Tokenizer, TokenizerError

CPU, GPU, SMALL_GPU = Machine(4), Machine(16, "GPU", 80.0, True), Machine(8, "GPU", 8.0, False)


def summary(hours, words=5000, uses=50_000, characters=30, valid=100):
    letters = [[chr(ord("a") + n), 5 * uses // characters] for n in range(characters)]
    parts = {"train": {"seconds": 3600 * hours, "utterances": 1000, "speakers": 9}, "valid": {"utterances": valid}}
    return {"parts": parts | {"test": {}}, "longest": 20.0, "characters": letters, "words": words, "word uses": uses}


@pytest.mark.parametrize("hours", [0.1, 1, 10, 100, 1000, 20_000])
@pytest.mark.parametrize("machine", [CPU, GPU, SMALL_GPU], ids=["cpu", "gpu", "small gpu"])
def test_recipes_load_and_follow_hours_and_machine(tmp_path, hours, machine):
    plan = write_recipe(tmp_path / "train.yaml", summary(hours), "bpe", machine, lambda dim, seconds: 0.5 / dim)
    recipe = load_recipe(tmp_path / "train.yaml")
    assert recipe.train.max_steps == plan.steps and recipe.loss.warmup_steps < plan.steps
    assert recipe.train.learning_rate == pytest.approx(0.5 / recipe.model.encoder.dim, rel=0.05)  # two digits
    assert recipe.data.max_utterance <= recipe.data.max_duration and recipe.train.valid_interval < plan.steps
    assert recipe.train.precision == ("bf16-mixed" if machine.bf16 else "32-true")
    assert recipe.data.num_workers == (0 if machine is CPU else 7 if machine is SMALL_GPU else 8)
    assert plan.steps * plan.step_seconds / 3600 == pytest.approx(plan.passes * hours, rel=0.01)


def test_more_speech_and_more_machine_get_more_model():
    order = ["tiny", "small", "medium", "large"]
    sizes = [order.index(plan_for(hours, GPU).preset) for hours in (1, 10, 100, 1000)]
    assert sizes == [0, 1, 2, 3]
    assert order.index(plan_for(1000, SMALL_GPU).preset) < 3 and plan_for(1000, CPU).preset == "tiny"
    assert plan_for(10_000, CPU).steps * plan_for(10_000, CPU).step_seconds <= 3 * 10_000 * 3600 + 60


@pytest.mark.parametrize(("cores", "longest", "processes"), [(1, 8.0, 1), (2, 8.0, 2), (2, 60.0, 1), (16, 30.0, 3)])
def test_processes_of_a_cpu_hold_the_longest_utterance(tmp_path, cores, longest, processes):
    plan = plan_for(10, Machine(cores), longest)
    assert plan.processes == processes and plan.batch_seconds >= 1.1 * longest
    assert plan.step_seconds == plan.batch_seconds * processes <= 120.0
    write_recipe(
        tmp_path / "train.yaml", {**summary(10), "longest": longest}, "bpe", Machine(cores), lambda *_: 1e-3, longest
    )
    recipe = load_recipe(tmp_path / "train.yaml")
    assert recipe.train.cpu_processes == processes and longest <= recipe.data.max_utterance <= recipe.data.max_duration


def test_no_validation(tmp_path):
    write_recipe(tmp_path / "train.yaml", summary(1, valid=0), "bpe", CPU, lambda dim, seconds: 1e-3)
    assert load_recipe(tmp_path / "train.yaml").data.valid_cuts == ()


@pytest.mark.parametrize(
    ("facts", "options", "kind", "size"),
    [
        ({"words": 40, "uses": 4000}, {}, "word", None),
        ({"words": 40, "uses": 400}, {}, "bpe", 128),
        ({"characters": 500}, {}, "char", None),
        ({"hours": 5}, {}, "bpe", 256),
        ({"hours": 500}, {"size": 300}, "bpe", 300),
        ({"characters": 200}, {}, "bpe", 232),
        ({}, {"kind": "char"}, "char", None),
    ],
)
def test_tokens(facts, options, kind, size):
    tokens = choose_tokens(summary(**{"hours": 1, **facts}), **options)
    assert (tokens.kind, tokens.size) == (kind, size) and tokens.why


def test_too_many_tokens_for_a_text_become_as_many_as_it_allows(tmp_path):
    from trees import write_cuts_and_tokenizer

    _, manifest, _ = write_cuts_and_tokenizer(tmp_path, [0.2] * 5)
    tokens = choose_tokens(summary(100))
    number = write_tokens(manifest, tmp_path / "t.model", tokens)
    assert 20 < number < tokens.size and Tokenizer.load(tmp_path / "t.model").vocab_size == number
    with pytest.raises(TokenizerError, match="smallest possible"):
        write_tokens(manifest, tmp_path / "t.model", choose_tokens(summary(100), "bpe", 5))
    with pytest.raises(ValueError, match="--tokenizer bpc"):
        choose_tokens(summary(1), "bpc")
