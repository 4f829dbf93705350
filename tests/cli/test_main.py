"""The console script `sumix` runs what bin/ runs; what the commands set before PyTorch is imported."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from sumix_stream.cli.main import COMMANDS


def sumix(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sumix_stream.cli.main", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_script_is_the_command_of_bin(name):
    own = sumix(name, "--help")
    command = ROOT / "bin" / name.replace("-", "_")
    other = subprocess.run([sys.executable, command, "--help"], capture_output=True, text=True, check=True)
    assert own.returncode == 0, own.stderr
    assert own.stdout.split() == re.sub(rf"\b{command.name} ", f"sumix {name} ", other.stdout, count=1).split()


@pytest.mark.parametrize(("arguments", "named"), [((), "no command"), (("trian",), "'trian'")])
def test_what_is_no_command_is_told_and_the_commands_are_listed(arguments, named):
    done = sumix(*arguments)
    assert done.returncode == 1 and named in done.stderr
    assert all(name in done.stderr for name in COMMANDS)


def test_commands_are_listed():
    done = sumix("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["default", "a number chosen", "a policy chosen"],
)
def test_threads_that_share_their_cores_do_not_spin_for_long(environment, spins):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    code = (
        "import os, sys, sumix_stream.cli; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment)
    assert done.stdout.strip() == spins, done.stderr
