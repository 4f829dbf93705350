"""The command `loader` of bin/bench: how fast a recipe's training batches come, or what they sound like."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import recipe_options

ABOUT = (
    "a recipe's training batches: audio hours an hour, CPU seconds by part, over worker processes; or listen to them"
)


def main(command: str) -> int:
    """Read the arguments after `loader` and do it; the exit status."""
    parser = argparse.ArgumentParser(prog="bench loader", description=ABOUT)
    add = parser.add_argument
    add("--config", required=True, type=Path, help="YAML of the recipe")
    add("--out", required=True, type=Path, help="directory for the tables (CSV, Markdown), or for the sounds")
    add("--workers", default="0,2", help="numbers of worker processes, each timed; default 0,2")
    add("--batches", type=int, default=40, help="batches for each measurement; default 40")
    needed = "audio hours an hour for which cores are counted; default %(default)s"
    add("--needed", default="1000,3000,10000", help=needed)
    listen = "time nothing: write N utterances as training hears them, with a page that plays them"
    add("--listen", type=int, metavar="N", help=listen)
    sys.argv[1:2] = []
    try:
        args, recipe = recipe_options.parse(parser, ())
        from sumix_stream.bench import loader
        from sumix_stream.report.listen import write_examples

        if args.listen is not None:
            print(write_examples(loader.open_loader(recipe), args.out, args.listen))
            return 0
        options = {"workers": [int(n) for n in args.workers.split(",")], "num_batches": args.batches}
        options["needed"] = [float(n) for n in args.needed.split(",")]
        path = loader.run(recipe, args.out, **options, command=command)
        print(f"{path.read_text()}\n{path}")
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0
