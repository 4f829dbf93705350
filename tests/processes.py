"""Programs that tests run beside themselves."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path | str | None = None) -> Iterator[subprocess.Popen]:
    """Start a silent program in a folder, and end it: politely, after ten seconds by force."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
