"""Recognise whole utterances: a manifest's word error rate, or the text of audio files."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import missing, search_options
from sumix_stream.cli.search_options import left_context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("audio", nargs="*", type=Path, help="audio files: print the text of each")
    add("--checkpoint", required=True, help="experiment directory (its best, else its last), checkpoint or bundle")
    add("--cuts", type=Path, help="Lhotse cut manifest (.jsonl.gz) to decode and score instead of audio files")
    add("--chunk", default="default", help="full, 640ms or encoder frames (16); default full, or the bundle's")
    left = "chunks before its own, or unlimited; default unlimited, or the bundle's"
    add("--left-context", default="default", type=left_context, help=left)
    add("--out", type=Path, help="directory for report.txt and report.json; default under CHECKPOINT/decode")
    add("--batch-size", default=16, type=int, help="utterances of --cuts decoded together; default 16")
    add("--times", action="store_true", help="print each word of the audio files with its time in seconds")
    add("--nbest", default=1, type=int, help="results printed for each audio file, at most --beam; default 1")
    add("--allow-commands", action="store_true", help=search_options.ALLOW_COMMANDS)
    search_options.add_arguments(parser)
    args = parser.parse_args()
    if bool(args.audio) == bool(args.cuts):
        parser.error("give either audio files or --cuts, one of the two")
    return args


def main(args: argparse.Namespace) -> int:
    search_options.allow_commands(args)
    from sumix_stream.cli import decoding as commands

    recognizer = search_options.recognizer(args, args.checkpoint)
    context = recognizer.whole_context(args.chunk, args.left_context)
    options = search_options.search_options(args, recognizer.tokenizer, args.nbest)
    if args.cuts is None:
        return commands.print_text(recognizer, args.audio, context, args.times, options)
    suffix = "-masked" + search_options.report_suffix(args)
    out = args.out or commands.report_directory(args.checkpoint, args.cuts, context, options, suffix)
    return commands.score_masked(recognizer, args.cuts, context, out, args.batch_size, options)


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
