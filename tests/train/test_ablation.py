import json
import subprocess
import sys

import pytest
from conftest import ROOT

from sumix_stream.config import ConfigError
from sumix_stream.config.reader import load_recipe
from sumix_stream.train.ablation import read_plan, results_table

PLAN = """
base: conf/base.yaml
common: {train.max_steps: 20}
runs:
  baseline: {}
  attention: {model.encoder.mixer: attention, data.speed_perturb: [0.9, 1.1]}
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("train: {exp_dir: exp/base, max_steps: 5}\n")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_runs_differ_in_what_the_plan_says_and_nothing_else(plan, tmp_path):
    variations = read_plan(plan, [0, 3], tmp_path / "out")
    assert [(v.name, v.seed) for v in variations] == [(n, s) for s in (0, 3) for n in ("baseline", "attention")]
    assert len({v.exp_dir for v in variations}) == 4
    attention = variations[3]
    words = attention.arguments
    assert words[:4] == ["--config", str(tmp_path / "conf" / "base.yaml"), "--exp-dir", str(attention.exp_dir)]
    overrides = dict(word.removeprefix("--").split("=", 1) for word in words[4:])
    recipe = load_recipe(words[1], overrides)  # as bin/train reads them
    assert (recipe.train.seed, recipe.train.max_steps) == (3, 20)
    assert recipe.model.encoder.mixer == "attention" and recipe.data.speed_perturb == (0.9, 1.1)
    assert load_recipe(variations[0].base, {"train.max_steps": 20}).model.encoder.mixer == "summary"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("baseline: {}", "baseline: {train.max_stesp: 1}", "baseline: unknown key 'max_stesp'.*max_steps"),
        ("baseline: {}", "a/b: {}", "name has letters, digits, dots, dashes; got 'a/b'"),
        ("baseline: {}", "b: {train.seed: 1}", "b sets train.seed, which is the same for all"),
        ("common:", "comon:", "must have base, runs .* and perhaps common"),
        ("conf/base.yaml", "conf/none.yaml", "none.yaml: cannot read"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_trained(plan, tmp_path, old, new, message):
    plan.write_text(PLAN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_plan(plan, [0], tmp_path)


def write_run(variation, steps, wers, parameters=1000):
    variation.exp_dir.mkdir(parents=True)
    line = {"skipped": False, "learning_rate": 1e-3, "seconds": 36.0, "loss": 1.0}
    lines = [{"step": n, "parts": {"simple": 10.0 / n, "ctc": 0.5}, **line} for n in range(1, steps + 1)]
    lines += [{"step": step, "valid": {"wer": wer}} for step, wer in wers]
    (variation.exp_dir / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    start = {"step": 0, "time": 0, "changes": [], "recipe": {"train": {"max_steps": 20}}}
    start["system"] = {"parameters": parameters}
    (variation.exp_dir / "runs.jsonl").write_text(json.dumps(start) + "\n")


def test_table_says_what_came_out_and_what_did_not(plan, tmp_path):
    plan.write_text(PLAN + "  third: {}\n  fourth: {}\n")
    variations = read_plan(plan, [0], tmp_path / "out")
    write_run(variations[0], 20, [(10, 0.25), (20, 0.3)])
    write_run(variations[1], 7, [])
    write_run(variations[2], 20, [(20, 0.5)])
    rows = results_table(variations, {variations[2].exp_dir: 1}).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    losses = f"simple {(10 / 19 + 10 / 20) / 2:.3f}, ctc 0.500"
    assert cells[0] == ["baseline", "0", "20", "0.2", "30.00", "25.00 (10)", losses, "1,000", ""]
    assert cells[1][-1] == "stopped before 20" and cells[1][4:6] == ["", ""]
    assert cells[2][-1] == "failed (exit code 1)" and cells[2][4] == "50.00"
    assert cells[3][-1] == "not begun"


def test_the_plan_of_librispeech_is_right_and_the_door_makes_its_table(tmp_path):
    command = [sys.executable, str(ROOT / "egs" / "librispeech" / "ablate"), "--table", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not begun") >= 8 and "| baseline | 0 |" in (tmp_path / "RESULTS.md").read_text()
    done = subprocess.run([*command, "--only", "basline"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--only names no run of the plan: basline" in done.stderr
