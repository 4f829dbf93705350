"""Every door runs in ROOT/.venv when it exists: ``import _venv; _venv.enter()`` before the project is imported."""

import os
import sys
from importlib.util import find_spec

_ENTERED = "_SUMIX_VENV_ENTERED"  # breaks the loop should an environment not report its own prefix


def enter() -> None:
    """Re-execute this command with the project's own Python, if there is one and this is not it.

    Arguments, interpreter options, working directory and exit code are kept (the process is replaced). Without a
    .venv the running Python is used, if the project is installed in it; else the command ends with the remedy.
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    venv = os.path.join(root, ".venv")
    python = os.path.join(venv, "bin", "python")
    entered = os.environ.pop(_ENTERED, None)
    if not entered and os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(venv):
        sys.stdout.flush()
        os.execve(python, [python, *sys.orig_argv[1:]], {**os.environ, _ENTERED: "1"})
    if find_spec("sumix_stream") is None or find_spec("sumix_kernels") is None:
        sys.exit(
            f"error: sumix-stream is not installed for {sys.executable}. Run bin/test or bin/demo once (they make "
            f"{venv}), or: pip install -c {root}/constraints.txt -e {root}[demo,train]"
        )
