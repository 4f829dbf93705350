"""Recognise speech chunk by chunk: error rate, speed and latency on a manifest, or the words of files as they come."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import file_options, missing, search_options
from sumix_stream.cli.search_options import left_context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("audio", nargs="*", type=Path, help=file_options.AUDIO + "print words with their times in seconds as they come")
    add("--checkpoint", help="experiment directory (its best, else its last), checkpoint or bundle")
    add("--cuts", type=Path, help="Lhotse cut manifest (.jsonl.gz) to decode and score instead of audio files")
    add("--chunk", default="default", help="a duration (640ms) or encoder frames (16); default 640ms, or the bundle's")
    add(
        "--left-context",
        default="default",
        type=left_context,
        help="chunks, or unlimited; 4 or the bundle's",
    )
    add("--out", type=Path, help=file_options.OUT)
    add(
        "--errors", type=int, help="worst utterances of --cuts to print, errors marked; default 3 on a terminal, else 0"
    )
    add(
        "--microphone", nargs="?", const="", metavar="DEVICE", help="recognise what is said now; DEVICE: number or name"
    )
    add("--devices", action="store_true", help="list the microphones, and do nothing else")
    add("--num-streams", default=16, type=int, help="live streams of --cuts at a time; default 16")
    add("--long-form", type=float, metavar="MINUTES", help="play --cuts into one stream, again and again, this long")
    commits = "commit the --cuts at random times, on the average so far apart, and score the pieces joined"
    add("--commit-every", type=float, metavar="SECONDS", help=commits)
    add("--push", default="100ms", help="audio in a packet (100ms, 0.1s); default 100ms")
    again = "hear each segment (of recordings: cut at pauses after 20 s) again under full context; that is the result"
    add("--second-pass", action="store_true", help=again)
    add("--realtime", action="store_true", help="play audio files at the speed they were spoken")
    add("--check-exactness", action="store_true", help="compare streaming of the audio files with the masked forward")
    add("--allow-commands", action="store_true", help=search_options.ALLOW_COMMANDS)
    file_options.add_arguments(parser)
    search_options.add_arguments(parser)
    args = parser.parse_args()
    if args.devices:
        return args
    if args.checkpoint is None:
        parser.error("the following arguments are required: --checkpoint")
    given = bool(args.audio), bool(args.cuts), args.microphone is not None
    if sum(given) != 1 or (args.long_form and not args.cuts):
        parser.error("give either audio files or --cuts (which --long-form needs) or --microphone, one of them")
    if args.check_exactness and not args.audio:
        parser.error("--check-exactness needs audio files")
    if args.microphone is not None and (args.format or args.out):
        parser.error("--format and --out are for recordings: --microphone prints what it hears")
    if args.commit_every is not None and (args.long_form or not args.cuts):
        parser.error("--commit-every needs --cuts, and goes without --long-form")
    if args.second_pass and (args.long_form or args.check_exactness or args.microphone is not None):
        parser.error("--second-pass is for audio files and --cuts, without --long-form and --check-exactness")
    return args


def main(args: argparse.Namespace) -> int:
    if args.devices:
        from sumix_stream.audio.microphone import list_devices

        print(list_devices())
        return 0
    search_options.allow_commands(args)
    from sumix_stream.cli import decoding as commands
    from sumix_stream.timebase import parse_duration

    wanted = file_options.wanted(args) if args.audio else None
    push, recognizer = parse_duration(args.push), search_options.recognizer(args, args.checkpoint)
    context = recognizer.context(args.chunk, args.left_context)
    options, suffix = search_options.search_options(args, recognizer.tokenizer), search_options.report_suffix(args)
    if args.check_exactness:
        return commands.check_exactness(recognizer, wanted)
    if args.microphone is not None:
        from sumix_stream.cli.live import listen

        return listen(recognizer, args.microphone, args.channel, context, options)
    if args.cuts is None:
        return commands.print_live(recognizer, wanted, context, push, args.realtime, options, args.second_pass)
    if args.long_form:
        return commands.play_long(recognizer, args.cuts, context, args.long_form, options)
    if args.commit_every is not None:
        return commands.score_commits(recognizer, args.cuts, context, args.commit_every, options, args.second_pass)
    suffix += "-second-pass" if args.second_pass else ""
    out = args.out or commands.report_directory(args.checkpoint, args.cuts, context, options, suffix)
    again = args.second_pass
    return commands.score_streaming(
        recognizer, args.cuts, context, out, args.num_streams, push, options, again, args.errors
    )


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"stream_decode: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"stream_decode: {missing(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
