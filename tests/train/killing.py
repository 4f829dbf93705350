"""Kill bin/train with SIGKILL at random moments, again and again, and compare with a run that nobody touched.

    python tests/train/killing.py --kills 20
    python tests/train/killing.py --kills 20 --processes 2 --num-workers 2 --accumulate 2

With one process the command is started anew after each kill. With several, torchrun runs them, one at random is killed,
and torchrun starts all of them again. Equal must be: every number of every step in metrics.jsonl but the times, no step
missing or double, and every byte of the last weights, moments and average. Exits with 1 where they are not.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMPARED = ("loss", "parts", "grad_norm", "skipped", "seconds", "learning_rate", "context")
SETTINGS = {  # everything that draws random numbers, and a save every few steps
    "data.speed_perturb": "[0.9, 1.1]",
    "data.gain": "[-6, 6]",
    "data.telephone": "0.2",
    "train.chunk_size": "dynamic",
    "train.log_interval": "1",
    "train.save_interval": "3",
    "train.valid_interval": "20",
    "train.average": "ema",
}


@dataclass
class Outcome:
    """What a run left behind, and what happened to it."""

    steps: list[dict]
    validations: list[dict]
    sums: dict[str, str]  # SHA-256 of the last checkpoint's tensors
    killed_at: list[int] = field(default_factory=list)  # last step logged before each kill
    resumed_from: list[int] = field(default_factory=list)


def train(recipe: Path, steps: int, processes: int, num_workers: int, accumulate: int, restarts: int = 0):
    """Start bin/train; its log goes to output.txt beside the recipe."""
    settings = {**SETTINGS, "train.max_steps": steps, "data.num_workers": num_workers, "train.accumulate": accumulate}
    command = [str(ROOT / "bin" / "train"), "--config", str(recipe)]
    command += [f"--{key}={value}" for key, value in settings.items()]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launcher, "--max-restarts", str(restarts), *command]
    with (recipe.parent / "output.txt").open("a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=output, env=environment, start_new_session=True
        )


def outcome(recipe: Path, steps: int) -> Outcome:
    lines = read_metrics(recipe)
    last = recipe.parent / "exp" / "checkpoints" / f"step-{steps:08d}"
    sums = [line.split() for line in (last / "SHA256SUMS").read_text().splitlines()]
    log = (recipe.parent / "exp" / "train.log").read_text()
    return Outcome(
        steps=[{"step": line["step"], **{key: line[key] for key in COMPARED}} for line in lines if "loss" in line],
        validations=[line for line in lines if "valid" in line],
        sums={name: digest for digest, name in sums if name.endswith(".safetensors")},
        resumed_from=[int(step) for step in re.findall(r"resuming after step (\d+)", log)],
    )


def untouched(recipe: Path, steps: int, **how) -> Outcome:
    process = train(recipe, steps, **how)
    require(process.wait() == 0, recipe, "the run failed")
    return outcome(recipe, steps)


def killed(recipe: Path, steps: int, kills: int, seed: int = 0, processes: int = 1, **how) -> Outcome:
    """Run to the end through `kills` kills, spread over the steps; some fall into start, saving and validation."""
    rng, process, killed_at = random.Random(seed), None, []
    for number in range(kills):
        if process is None:
            process = train(recipe, steps, processes, restarts=kills, **how)
        done = killed_at[-1] if killed_at else 0
        target = done + rng.uniform(0, 2 * (steps - done) / (kills - number + 1))
        while last_step(recipe) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break  # it was quicker
        killed_at.append(max(last_step(recipe), done))
        if processes == 1:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, as a machine that goes down
            process.wait()
            process = None
        else:
            while len(running := ranks(process.pid)) < processes and process.poll() is None:
                time.sleep(0.01)
            os.kill(rng.choice(running), signal.SIGKILL)
    process = process or train(recipe, steps, processes, **how)
    require(process.wait() == 0, recipe, "the run failed")
    result = outcome(recipe, steps)
    result.killed_at = killed_at
    return result


def differences(expected: Outcome, actual: Outcome) -> list[str]:
    found = []
    numbers = [line["step"] for line in actual.steps]
    if numbers != [line["step"] for line in expected.steps]:
        found.append(f"steps logged: {numbers}")
    for one, other in zip(expected.steps, actual.steps):
        if one != other:
            found.append(f"first different step: {one} {other}")
            break
    if expected.validations != actual.validations:
        found.append(f"validations: {expected.validations} {actual.validations}")
    found += [f"{name} differs" for name in expected.sums if expected.sums[name] != actual.sums.get(name)]
    return found


def read_metrics(recipe: Path) -> list[dict]:
    return [json.loads(line) for line in (recipe.parent / "exp" / "metrics.jsonl").read_text().splitlines()]


def last_step(recipe: Path) -> int:
    """The last whole line's; 0 before there is one."""
    path = recipe.parent / "exp" / "metrics.jsonl"
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def ranks(launcher: int) -> list[int]:
    """Processes that torchrun started and that train (not helpers that it forks)."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"bin/train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def require(condition: bool, recipe: Path, message: str) -> None:
    if not condition:
        sys.exit(f"{message}:\n{(recipe.parent / 'output.txt').read_text()[-4000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--num-workers", type=int, default=0, help="loader processes of each process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from train.beeps import beep_recipe

    how = {"num_workers": args.num_workers, "accumulate": args.accumulate}
    with tempfile.TemporaryDirectory() as folder:
        recipes = [beep_recipe(Path(folder) / name) for name in ("untouched", "killed")]
        expected = untouched(recipes[0], args.steps, processes=args.processes, **how)
        actual = killed(recipes[1], args.steps, args.kills, args.seed, args.processes, **how)
    found = differences(expected, actual)
    print(f"{len(actual.killed_at)} kills, last step logged before each: {actual.killed_at}")
    print(f"{len(actual.resumed_from)} resumes, after steps: {actual.resumed_from}")
    print(f"{len(actual.steps)} steps: " + ("; ".join(found) if found else "all identical, and the last checkpoint"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
