"""The examples for clusters: what can be known of them without one."""

import os
import re
import signal
import subprocess
import time

import pytest
import yaml
from conftest import ROOT

CLUSTER = ROOT / "egs" / "librispeech" / "cluster"


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sh beside stand-ins for Slurm's commands, which note how they were called. `srun` does as told."""

    def start(srun: str) -> tuple[subprocess.Popen, callable]:
        calls = tmp_path / "calls"
        commands = {
            "srun": srun.format(note=f"echo srun $* >> {calls}"),
            "scontrol": f'echo "scontrol $*" >> {calls}; [ "$1" != show ] || printf "node7\\nnode8\\n"',
        }
        for name, body in commands.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "20042", "SLURM_JOB_NUM_NODES": "2"}
        environment = {**os.environ, **job, "SLURM_JOB_NODELIST": "node[7-8]"}
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        process = subprocess.Popen(["bash", CLUSTER / "slurm.sh", "--train.seed", "3"], env=environment)
        return process, lambda: calls.read_text().splitlines() if calls.exists() else []

    return start


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_starts_training_once_and_errors_do_not_come_again(slurm, status):
    process, calls = slurm(f"{{note}}; exit {status}")
    assert process.wait(timeout=60) == status
    assert calls()[0] == "scontrol show hostnames node[7-8]"
    (command,) = calls()[1:]
    assert "--rdzv-endpoint node7:20042 " in command and "--nnodes 2 " in command
    config = re.search(r"bin/train --config (\S+) .*--train\.seed 3$", command)[1]
    assert (ROOT / config).is_file()


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_saves_and_queues_again_when_the_job_is_taken_away(slurm, sent):
    process, calls = slurm("trap 'exit 143' TERM; {note}; while true; do sleep 0.05; done")
    deadline = time.monotonic() + 60
    while len(calls()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(timeout=60) == 143
    assert calls()[2:] == ["scontrol requeue 20042"]


def test_kubernetes_pods_meet_at_the_first_of_them():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}  # a label that Kubernetes gives to a job's pods
    assert service["spec"]["clusterIP"] == "None"  # a string: without a value there would be an address
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    (container,) = pod["containers"]
    options = dict(part.split("=", 1) for part in container["command"] if "=" in part)
    (port,) = service["spec"]["ports"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options["--rdzv-endpoint"] == f"{name}-0.{pod['subdomain']}:{port['port']}"
    assert int(options["--nnodes"]) == spec["completions"]
    assert (ROOT / options["--config"]).is_file()
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
