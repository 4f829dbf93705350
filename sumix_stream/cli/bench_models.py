"""Commands of bin/bench that time operations and models."""

import argparse
import os
from pathlib import Path

COMMANDS = {
    "kernels": "chunk ops and the mixer's cell beside what they replace, over frames",
    "loss": "pruned RNN-T loss with its joiner, beside k2's path and torchaudio's loss, over the vocabulary's tokens",
    "encoder": "whole encoder, forward and backward, summary beside attention, over seconds",
    "train-step": "whole training step: tokens, frames and hours of audio, over seconds of an utterance",
    "stream": "one chunk step in ms and streams in real time, over streams",
    "all": "everything, and a table of the goals, in about 8 minutes on a GPU",
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    for name, about in COMMANDS.items():
        parser = commands.add_parser(name, help=about, description=about)
        parser.set_defaults(fast_rnnt=None, op=None)
        add = parser.add_argument
        add("--out", required=True, type=Path, help="directory for tables (CSV, Markdown) and plots (PNG)")
        add("--device", default="cpu", help="cpu or cuda; default cpu (threads: OMP_NUM_THREADS)")
        add("--memory-limit", type=float, help="GB that a contender may need, else it is not run; CPU default 0.3")
        add("--min-seconds", default=0.2, type=float, help="seconds that a measurement is repeated for; default 0.2")
        add("--budget", type=float, help="seconds for a benchmark (for all: together); what does not fit is not run")
        add("--max-size", type=int, help="leave out sizes above it (frames, tokens, seconds or streams)")
        add("--no-plot", action="store_true", help="no PNG, which needs matplotlib")
        if name in ("loss", "all"):
            add("--fast-rnnt", type=Path, help="unpacked sources of PyPI's fast_rnnt, built at the first use")
        if name == "kernels":
            add("--op", help="one op: chunk_summary, mixer, chunk_conv1d, chunk_decay_mean; default all")


def main(args: argparse.Namespace, command: str) -> int:
    from sumix_stream.bench import commands

    if args.fast_rnnt:
        os.environ["SUMIX_FAST_RNNT"] = str(args.fast_rnnt.resolve())
    options = {"device": args.device, "memory_limit_gb": args.memory_limit, "min_seconds": args.min_seconds}
    options |= {"most": args.max_size, "budget": args.budget, "plot": not args.no_plot, "command": command}
    return commands.main(args.command, args.out, args.op, **options)
