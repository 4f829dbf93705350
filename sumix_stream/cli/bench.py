"""Measure what the project claims about speed (ms) and memory (MB); a wrong result is never timed."""

import argparse
import os
import shlex
import signal
import sys

from sumix_stream.cli import bench_kinds, bench_loader, bench_models, bench_serve, bench_state


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench_models.add_commands(commands)
    about = "our server under load: chunk latency in ms, streams in real time, MB a stream; hostile clients"
    bench_serve.add_arguments(commands.add_parser("serve", help=about, description=about))
    bench_state.add_arguments(commands.add_parser("state", help=bench_state.ABOUT, description=bench_state.ABOUT))
    bench_kinds.add_arguments(commands.add_parser("kinds", help=bench_kinds.ABOUT, description=bench_kinds.ABOUT))
    commands.add_parser("loader", help=bench_loader.ABOUT)
    return parser.parse_args()


def main() -> int:
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is stopped
    command = shlex.join([*threads, "bin/bench", *sys.argv[1:]])
    if sys.argv[1:2] == ["loader"]:  # any key of its recipe is an option: it reads its arguments itself
        return bench_loader.main(command)
    args = arguments()
    return {"kinds": bench_kinds, "serve": bench_serve, "state": bench_state}.get(args.command, bench_models).main(
        args, command
    )


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    sys.exit(main())
