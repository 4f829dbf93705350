"""Train a transducer as a recipe says; run again, it goes on from the last checkpoint. Works under torchrun."""

import argparse
import sys

from sumix_stream.cli import missing, recipe_options, search_options, trainer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, help="recipe, such as egs/mini/conf/tiny.yaml")
    add("--chunk-size", help="context trained with: full, dynamic, a duration (640ms) or encoder frames (16)")
    add("--left-context", help="chunks before its own that a frame sees, or unlimited; for a fixed --chunk-size")
    add("--exp-dir", help="directory for checkpoints and logs")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="default; without, old outputs go aside")
    add("--report", action="store_true", help="instead: write the run's page, report.html, as it stands")
    add(
        "--lr-find", action="store_true", help="instead: try learning rates from fresh weights, 150 steps, and name one"
    )
    add("--allow-commands", action="store_true", help=search_options.ALLOW_COMMANDS)
    args, recipe = recipe_options.parse(parser, ("chunk_size", "left_context", "exp_dir"))
    search_options.allow_commands(args)

    if args.report:
        from sumix_stream.report.report import write_report

        print(write_report(recipe.train.exp_dir))
        return 0
    if args.lr_find:
        from sumix_stream.train.lr_find import RangeTest

        print(trainer.make_trainer(RangeTest, recipe).run())
        return 0
    from sumix_stream.train.loop import Trainer

    result = trainer.make_trainer(Trainer, recipe).fit(args.resume)
    return 128 + result.signum if result.signum else 0


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main())
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"train: {error}")
    except ImportError as error:
        sys.exit(f"train: {missing(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
