"""Recognise whole utterances: a manifest's word error rate, or the text of audio files."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import file_options, missing, search_options
from sumix_stream.cli.search_options import left_context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("audio", nargs="*", type=Path, help=file_options.AUDIO + "print the text of each")
    add("--checkpoint", required=True, help="experiment directory (its best, else its last), checkpoint or bundle")
    add("--cuts", type=Path, help="Lhotse cut manifest (.jsonl.gz) to decode and score instead of audio files")
    add("--chunk", default="default", help="full, 640ms or encoder frames (16); default full, or the bundle's")
    left = "chunks before its own, or unlimited; default unlimited, or the bundle's"
    add("--left-context", default="default", type=left_context, help=left)
    add("--out", type=Path, help=file_options.OUT)
    add("--batch-size", default=16, type=int, help="utterances of --cuts decoded together; default 16")
    add(
        "--longest",
        default="300s",
        help="audio recognised at once under full context; longer is cut at quiet places; default 300s",
    )
    add(
        "--errors", type=int, help="worst utterances of --cuts to print, errors marked; default 3 on a terminal, else 0"
    )
    add("--times", action="store_true", help="print each word of the audio files with its time in seconds")
    add("--nbest", default=1, type=int, help="results printed for each audio file, at most --beam; default 1")
    add("--allow-commands", action="store_true", help=search_options.ALLOW_COMMANDS)
    file_options.add_arguments(parser)
    search_options.add_arguments(parser)
    args = parser.parse_args()
    if bool(args.audio) == bool(args.cuts):
        parser.error("give either audio files or --cuts, one of the two")
    return args


def main(args: argparse.Namespace) -> int:
    search_options.allow_commands(args)
    from sumix_stream.cli import decoding as commands
    from sumix_stream.timebase import parse_duration

    wanted = None if args.cuts else file_options.wanted(args)
    longest = parse_duration(args.longest)
    recognizer = search_options.recognizer(args, args.checkpoint)
    context = recognizer.whole_context(args.chunk, args.left_context)
    options = search_options.search_options(args, recognizer.tokenizer, args.nbest)
    if args.cuts is None:
        return commands.print_text(recognizer, wanted, context, args.times, options, longest)
    suffix = "-masked" + search_options.report_suffix(args)
    out = args.out or commands.report_directory(args.checkpoint, args.cuts, context, options, suffix)
    return commands.score_masked(recognizer, args.cuts, context, out, args.batch_size, options, args.errors)


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"decode: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"decode: {missing(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
