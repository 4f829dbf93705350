"""The command `state` of bin/bench: bytes that a stream keeps."""

import argparse
import sys
from pathlib import Path

ABOUT = "bytes that a stream keeps, by model and chunks of left context, SummaryMixing beside attention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--presets", default="tiny,small,large", help="models; default %(default)s")
    parser.add_argument("--out", type=Path, help="file for the table (Markdown) beside standard output")


def main(args: argparse.Namespace, command: str) -> int:
    from sumix_stream.evaluate.state_size import state_sizes, table

    try:
        text = f"`{command}`\n\n{table(state_sizes(args.presets.split(',')))}"
        if args.out is not None:
            args.out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0
