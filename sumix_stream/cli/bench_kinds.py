"""The command `kinds` of bin/bench: what encoders and cells cost."""

import argparse
import sys
from pathlib import Path

ABOUT = "CPU seconds of encoders, cells and frame lengths beside the default, training and streaming, untrained models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="tiny", help="sizes; default %(default)s")
    parser.add_argument("--kinds", help="some of them, separated by semicolons; default all")
    parser.add_argument("--utterances", type=int, default=8, help="in a batch; default %(default)s")
    parser.add_argument("--seconds", type=float, default=12.0, help="of an utterance; default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken; default %(default)s")
    parser.add_argument("--out", type=Path, help="file for the table (Markdown) beside standard output")


def main(args: argparse.Namespace, command: str) -> int:
    from sumix_stream.bench.kinds import KINDS, costs, table

    kinds = [kind.strip() for kind in args.kinds.split(";")] if args.kinds else list(KINDS)
    try:
        found = costs(args.preset, kinds, args.utterances, args.seconds, args.repeats)
        text = f"`{command}`\n\n{table(found)}"
        if args.out is not None:
            args.out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0
