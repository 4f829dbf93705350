"""Processes of a training, forked from one that has imported the toolkit: the imports are most of a short run's time.

Several find what torchrun would tell them. What torchrun does, starting again and meeting on two nodes, is tested
with it, in test_distributed.py, test_kill.py and test_nodes.py.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
IMPORTED = [
    "sumix_stream.cli.train",
    "sumix_stream.data.batching.loader",
    "sumix_stream.evaluate.error_rates",
    "sumix_stream.tasks.build",
    "sumix_stream.train.loop",
    "sumix_kernels.training.branches",
]


def launch(script: Path, processes: int, *arguments: object, log: Path) -> str:
    """Run the script in so many processes; what they wrote. One that fails ends the others and is an error."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        told |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
        running.append(start(script, *arguments, log=log, **{name: str(value) for name, value in told.items()}))
    _wait(running)
    assert [process.exitcode for process in running] == [0] * processes, log.read_text()[-3000:]
    return log.read_text()


def start(script: Path, *arguments: object, log: Path, **environment: str) -> BaseProcess:
    """The script in a process and session of its own, which appends what it writes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    words = [str(script), *map(str, arguments)]
    told = {"OMP_NUM_THREADS": "1", "_SUMIX_VENV_ENTERED": "1", **environment}  # a door stays in this process
    process = context.Process(target=_run, args=(words, told, str(log)))
    process.start()
    return process


def _wait(running: list[BaseProcess], timeout: float = 240) -> None:
    until = time.monotonic() + timeout
    while alive := [process for process in running if process.is_alive()]:
        if any(process.exitcode for process in running) or time.monotonic() > until:
            for process in alive:
                process.kill()
        alive[0].join(0.05)


def _run(words: list[str], environment: dict[str, str], log: str) -> None:
    os.setsid()
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.path[:0] = [str(Path(words[0]).parent), str(TESTS)]
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
