import dataclasses
import os

import pytest
import yaml

from sumix_stream.config import (
    PRESETS,
    ChunkConfig,
    ConfigError,
    DataConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    PredictorConfig,
    RecipeConfig,
    SourceConfig,
    SpecAugmentConfig,
    TrainConfig,
)
from sumix_stream.config.reader import dump_yaml, from_dict, load_recipe, to_dict


def write_recipe(folder, text, name="tiny.yaml"):
    path = folder / "egs" / "mini" / "conf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_defaults():
    for data in (None, {}, {"model": None}, {"model": {}, "data": {"spec_augment": {}}}):
        assert from_dict(RecipeConfig, data) == RecipeConfig()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_come_back_from_plain_values(preset):
    assert from_dict(ModelConfig, to_dict(PRESETS[preset])) == PRESETS[preset]
    assert from_dict(ModelConfig, {"preset": preset}) == PRESETS[preset]
    attention = from_dict(ModelConfig, {"preset": preset, "encoder": {"mixer": "attention"}})
    assert attention.encoder == dataclasses.replace(PRESETS[preset].encoder, mixer="attention")
    assert attention.predictor == PRESETS[preset].predictor


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RecipeConfig().model.encoder.dim = 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": {"encodr": {}}}, "unknown key 'encodr' in model; did you mean 'encoder'?"),
        ({"model": {"encoder": {"dims": 3}}}, "unknown key 'dims' in model.encoder; did you mean 'dim'?"),
        ({"model": {"prest": "tiny"}}, "unknown key 'prest' in model; did you mean 'preset'?"),
        ({"tokenizer": {"zzz": 1}}, "unknown key 'zzz' in tokenizer; it has path"),
        ({"train": {"preset": 1}}, "unknown key 'preset' in train"),
        ({"data": {"spec_augment": {"time_wrap": 5}}}, "'time_wrap' in data.spec_augment; did you mean 'time_warp'?"),
        ({5: 6}, "unknown key 5"),
        (
            {"model": {"preset": "tinny"}},
            "large, branchformer-small, branchformer-large (did you mean 'tiny'?)",
        ),
        (
            {"model": {"preset": ["tiny"]}},
            "large, branchformer-small, branchformer-large (did you mean 'tiny'?), got ['tiny']",
        ),
        ({"model": "tiny"}, "model must be a section of keys and values, got 'tiny'"),
        ({"model": {"encoder": [1]}}, "model.encoder must be a section of keys and values, got [1]"),
        ({"train": {"max_steps": "many"}}, "train.max_steps must be an integer, got 'many'"),
        ({"train": {"max_steps": 10.5}}, "train.max_steps must be an integer, got 10.5"),
        ({"train": {"max_steps": True}}, "train.max_steps must be an integer, got True"),
        ({"train": {"max_steps": None}}, "train.max_steps must be an integer, got None"),
        ({"train": {"left_context": "all"}}, "train.left_context must be an integer or null, got 'all'"),
        ({"train": {"weight_decay": "0.1"}}, "train.weight_decay must be a number, got '0.1'"),
        ({"train": {"exp_dir": 1.5}}, "train.exp_dir must be text, got 1.5"),
        ({"model": {"ctc": 1}}, "model.ctc must be true or false, got 1"),
        ({"data": {"train_cuts": "a.jsonl.gz"}}, "data.train_cuts must be a list, got 'a.jsonl.gz'"),
        (
            {"data": {"train_cuts": [{"path": "a", "weight": 0}]}},
            "data.train_cuts[0].weight must be above 0, got 0.0",
        ),
        (
            {"data": {"train_cuts": [{"path": "a"}, {"path": "b", "weight": float("nan")}]}},
            "data.train_cuts[1].weight must be above 0, got nan",
        ),
        ({"data": {"train_cuts": [{"path": "a", "weight": "much"}]}}, "data.train_cuts[0].weight must be a number"),
        ({"data": {"train_cuts": [{"path": "a", "wieght": 1}]}}, "in data.train_cuts[0]; did you mean 'weight'?"),
        ({"data": {"train_cuts": [{"weight": 1}]}}, "data.train_cuts[0].path must be a cut manifest, got ''"),
        ({"data": {"train_cuts": ["a", {"path": "b"}]}}, "data.train_cuts must be all plain manifests, or"),
        ({"data": {"valid_cuts": {"a/b": "c"}}}, "data.valid_cuts must be manifests by names of letters"),
        ({"data": {"valid_cuts": {"a": ["c"]}}}, "data.valid_cuts.a must be text, got ['c']"),
        (
            {"data": {"valid_cuts": {"new": "a", "old": "b"}}, "train": {"best_by": "odl"}},
            "train.best_by must be one of the sets of data.valid_cuts, new, old (did you mean 'old'?), got 'odl'",
        ),
        ({"data": {"valid_cuts": ["a"]}, "train": {"best_by": "a"}}, "data.valid_cuts has no sets with names"),
        ({"data": {"speed_perturb": [0.9, "fast"]}}, "data.speed_perturb[1] must be a number, got 'fast'"),
        ({"model": {"encoder": {"conv_kernel": 30}}}, "model.encoder.conv_kernel must be odd"),
        ({"loss": {"prune_range": 1}}, "loss.prune_range must be at least 2, got 1"),
        (
            {"model": {"encoder": {"mixer": "atention"}}},
            "summary, attention, hypermixer, none (did you mean 'attention'?), got 'atention'",
        ),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(data, message):
    with pytest.raises(ConfigError) as error:
        from_dict(RecipeConfig, data)
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (EncoderConfig, {"dim": 0}),
        (EncoderConfig, {"dim": -144}),
        (EncoderConfig, {"num_layers": 0}),
        (EncoderConfig, {"summary_variant": "quick"}),
        (EncoderConfig, {"decay": 0.0}),
        (EncoderConfig, {"decay": 1.1}),
        (EncoderConfig, {"dropout": 1.1}),
        (EncoderConfig, {"dropout": float("nan")}),
        (EncoderConfig, {"mixer": "attention", "num_heads": 5}),
        (EncoderConfig, {"summary_variant": "full", "num_heads": 5}),
        (PredictorConfig, {"hidden_dim": 0}),
        (PredictorConfig, {"dropout": -0.1}),
        (ModelConfig, {"joiner_dim": 0}),
        (LossConfig, {"rnnt_type": "irregular"}),
        (LossConfig, {"delay_penalty": -1.0}),
        (LossConfig, {"ctc_scale": float("inf")}),
        (LossConfig, {"lm_only_scale": 0.5, "am_only_scale": 0.5}),
        (ChunkConfig, {"full_probability": 1.5}),
        (ChunkConfig, {"min_chunk": 0}),
        (ChunkConfig, {"min_chunk": 16, "max_chunk": 8}),
        (ChunkConfig, {"min_left": 4, "max_left": 2}),
        (SpecAugmentConfig, {"max_freq_mask": 81}),
        (SpecAugmentConfig, {"time_warp": -1}),
        (DataConfig, {"max_duration": 0.0}),
        (DataConfig, {"min_utterance": 5.0, "max_utterance": 5.0}),
        (DataConfig, {"speed_perturb": (0.9, 0.1)}),
        (DataConfig, {"num_workers": -1}),
        (TrainConfig, {"learning_rate": 0.0}),
        (TrainConfig, {"warmup_fraction": 1.5}),
        (TrainConfig, {"precision": "fp16"}),
        (TrainConfig, {"accelerator": "gpus"}),
        (TrainConfig, {"chunk_size": "640"[:0]}),
        (TrainConfig, {"chunk_size": "0"}),
        (TrainConfig, {"chunk_size": "640 m"}),
        (TrainConfig, {"valid_chunk_size": "dynamic"}),
        (TrainConfig, {"left_context": -1}),
        (TrainConfig, {"devices": 0}),
        (TrainConfig, {"exp_dir": ""}),
    ],
)
def test_impossible_values_are_refused_however_they_come(cls, values):
    name = list(values)[-1]
    with pytest.raises(ConfigError, match=rf"^{name} must be "):
        cls(**values)
    with pytest.raises(ConfigError, match=rf"^here\.{name} must be "):
        from_dict(cls, values, "here")


def test_an_odd_number_of_heads_is_fine_where_there_are_none():
    assert EncoderConfig(dim=144, num_heads=5).num_heads == 5


def test_numbers_become_what_their_field_is():
    train = from_dict(TrainConfig, {"chunk_size": 16, "clip_norm": 2, "learning_rate": None, "left_context": None})
    assert (train.chunk_size, train.clip_norm) == ("16", 2.0)
    assert isinstance(train.clip_norm, float)
    data = from_dict(DataConfig, {"speed_perturb": [0.9, 1], "spec_augment": None})
    assert data.speed_perturb == (0.9, 1.0) and data.spec_augment is None


def test_a_recipe_is_read_and_its_paths_belong_to_its_folder(tmp_path, monkeypatch):
    path = write_recipe(
        tmp_path,
        "model: {preset: tiny, encoder: {num_layers: 2}}\n"
        "data: {train_cuts: [data/a.jsonl.gz, /abs/b.jsonl.gz], speed_perturb: [0.9, 1.1]}\n"
        "tokenizer: {path: ../shared/tokenizer.model}\n"
        "train: {learning_rate: 1e-3, max_steps: 7, chunk_size: 640ms}\n",
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for where in (path.parent, elsewhere):
        monkeypatch.chdir(where)
        recipe = load_recipe(os.path.relpath(path, where))
        mini = tmp_path / "egs" / "mini"
        assert recipe.data.train_cuts == (str(mini / "data" / "a.jsonl.gz"), "/abs/b.jsonl.gz")
        assert recipe.data.valid_cuts == ()
        assert recipe.tokenizer.path == str(tmp_path / "egs" / "shared" / "tokenizer.model")
        assert recipe.train.exp_dir == str(mini / "exp")
    assert recipe.train.learning_rate == 0.001 and recipe.train.max_steps == 7
    assert recipe.model == dataclasses.replace(ModelConfig(), encoder=EncoderConfig(num_layers=2))


def test_a_recipe_outside_conf_is_relative_to_its_own_folder(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("tokenizer: {path: a.model}")
    assert load_recipe(path).tokenizer.path == str(tmp_path / "a.model")
    path.write_text("")
    assert load_recipe(path).tokenizer.path == ""


def test_overrides(tmp_path, monkeypatch):
    path = write_recipe(
        tmp_path,
        "model: {preset: tiny, encoder: {num_layers: 2}}\ndata: {train_cuts: [a], spec_augment: null}\n",
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        path,
        {
            "train.max_steps": "100",
            "train.chunk_size": "16",
            "train.learning_rate": "2e-4",
            "train.valid_left_context": "null",
            "train.exp_dir": "out",
            "model.preset": "small",
            "model.encoder.mixer": "attention",
            "model.ctc": False,
            "data.spec_augment.time_warp": "5",
            "data.valid_cuts": "[b, c]",
        },
    )
    assert (recipe.train.max_steps, recipe.train.chunk_size, recipe.train.learning_rate) == (100, "16", 2e-4)
    assert recipe.train.valid_left_context is None and recipe.model.ctc is False
    assert recipe.train.exp_dir == str(tmp_path / "out")  # as typed at the prompt: where one stands
    assert recipe.data.valid_cuts == (str(tmp_path / "b"), str(tmp_path / "c"))
    assert recipe.data.train_cuts == (str(tmp_path / "egs" / "mini" / "a"),)
    assert recipe.data.spec_augment == SpecAugmentConfig(time_warp=5)
    expected = dataclasses.replace(PRESETS["small"].encoder, num_layers=2, mixer="attention")
    assert recipe.model.encoder == expected


def test_sources_and_sets_by_name_are_read_and_written(tmp_path):
    text = (
        "data: {train_cuts: [{path: a, weight: 2}, {path: /b}], valid_cuts: {new: c, old: /d}}\ntrain: {best_by: old}\n"
    )
    recipe = load_recipe(write_recipe(tmp_path, text))
    folder = tmp_path / "egs" / "mini"
    assert recipe.data.train_cuts == (SourceConfig(str(folder / "a"), 2.0), SourceConfig("/b", 1.0))
    assert list(recipe.valid_sets.items()) == [("old", ("/d",)), ("new", (str(folder / "c"),))]
    assert from_dict(RecipeConfig, to_dict(recipe)) == recipe
    plain = load_recipe(write_recipe(tmp_path, text), {"data.train_cuts": "[/e]", "data.valid_cuts.new": "/f"})
    assert plain.data.train_paths == ("/e",) and plain.data.train_weights == ()
    assert plain.data.valid_sets == {"new": ("/f",), "old": ("/d",)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.max_step": "100"}, "unknown key 'max_step' in train; did you mean 'max_steps'?"),
        ({"trian.max_steps": "100"}, "unknown key 'trian'; did you mean 'train'?"),
        ({"train": "100"}, "train must be a section"),
        ({"train.max_steps.more": "1"}, "train.max_steps must be an integer, got {'more': 1}"),
        ({"train.max_steps": "-1"}, "train.max_steps must be at least 1, got -1"),
        ({"data.valid_cuts": "[a"}, "data.valid_cuts: not a YAML value: '[a'"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        load_recipe(write_recipe(tmp_path, "train: {max_steps: 5}"), overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_step: 5}", "unknown key 'max_step' in train"),
        ("train: {max_steps: 5", "not YAML"),
        ("- 1", "must hold sections"),
        ("train: {seed: 1}\ntrain: {max_steps: 5}", "'train' is given twice"),
        ("train: {seed: 1, seed: 2}", "'seed' is given twice"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = write_recipe(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_recipe(path, {"train.max_steps": "3"})
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot read the configuration: No such file"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"train: {exp_dir: \xe9t\xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a text file in UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_what_is_written_is_read_back(tmp_path):
    path = write_recipe(
        tmp_path,
        "model: {preset: medium}\ndata: {train_cuts: [données/a], speed_perturb: [0.9], spec_augment: null}\n"
        "train: {learning_rate: 1e-5, chunk_size: 16}\n",
    )
    recipe = load_recipe(path)
    copy = tmp_path / "elsewhere.yaml"
    dump_yaml(recipe, copy)
    assert load_recipe(copy) == recipe
    assert from_dict(RecipeConfig, yaml.safe_load(copy.read_text(encoding="utf-8"))) == recipe


def alias_bomb(levels: int, width: int = 10) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        alias_bomb(9) + "train: *a8\n",
        alias_bomb(9) + "data: {train_cuts: *a8}\n",
        alias_bomb(30) + "train: {max_steps: *a29}\n",
        "a: &a [*a]\ntrain: *a\n",
        "train: " + "[" * 5_000,
        "train: {exp_dir: [" + "x" * 5_000_000 + "]}\n",
        "x" * 100_000 + ": 1\n",
        "train: {max_steps: " + str(list(range(2_000))) + "}\n",
    ],
    ids="section list number itself deep long key many".split(),
)
def test_a_hostile_recipe_is_one_short_error(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: ") as error:
        load_recipe(tmp_path / "a.yaml")
    assert len(str(error.value)) < 2_000


def test_plain_aliases_are_followed(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {train_cuts: &cuts [a.jsonl.gz], valid_cuts: *cuts}\n")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.data.valid_cuts == recipe.data.train_cuts == (str(tmp_path / "a.jsonl.gz"),)
