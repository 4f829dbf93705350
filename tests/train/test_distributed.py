import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train.ranks import launch

TESTS = Path(__file__).resolve().parent.parent
RUN = """
import sys
from pathlib import Path
import torch
from train.fakes import FakeLoader, FakeModel, FakeTokenizer, fake_recipe, fake_validation
from sumix_stream.train.loop import Trainer
from sumix_stream.train.precision import make_fabric

torch.set_num_threads(1)
exp_dir = Path(sys.argv[1])
recipe = fake_recipe(exp_dir, max_steps=int(sys.argv[2]), log_interval=3, save_interval=4, accumulate=2)
fabric = make_fabric(recipe.train)
loader = FakeLoader(bad={"e0-b4-u1"} if fabric.global_rank == 1 else set())
validate = fake_validation(0.25) if fabric.global_rank == 0 else fake_validation()
trainer = Trainer(recipe, FakeModel(), FakeTokenizer(), loader, validate, fabric)
result = trainer.fit()
torch.save((tuple(result), trainer.model.state_dict()), exp_dir / f"rank{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path):
    """Skip together though the bad utterance is one process's, agree on everything, write once, and resume."""
    import torch

    script = tmp_path / "run.py"
    script.write_text(RUN)

    def torchrun(max_steps):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        command += [str(script), str(tmp_path), str(max_steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def check(max_steps):
        first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
        assert first[0] == second[0] == (max_steps, {"wer": 0.25}, None)
        assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())

    assert "rank 1: step 3: update skipped, loss of e0-b4-u1 is not finite" in torchrun(5)
    check(5)
    launch(script, 2, tmp_path, 7, log=tmp_path / "log")
    check(7)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["skipped"] for line in steps] == [False, False, True, False, False, False, False]
    assert all(line["seconds"] == pytest.approx(4 * 3.6) for line in steps)
    assert [line["valid"]["wer"] for line in lines if "valid" in line] == [0.25, 0.25]
    assert (tmp_path / "train.log").read_text().count("resuming after step 5") == 1
