"""Options of bin/decode and bin/stream_decode about recordings and what is written of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sumix_stream.cli.recordings import Wanted

FORMATS = ("txt", "srt", "vtt", "json", "tsv")
AUDIO = "audio or video files, folders of them, - for standard input: "
OUT = "directory: a file for each recording in --format, or the report of --cuts (default under CHECKPOINT/decode)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recordings").add_argument
    add("--format", choices=FORMATS, help="of transcripts, printed or in --out: text, captions, words with times")
    add("--overwrite", action="store_true", help="let --out replace transcripts that are there")
    add("--channel", default="mix", help="0, 1, left, right, or mix: the average of all; default mix")
    add("--split-channels", action="store_true", help="a transcript of each channel")
    add(
        "--raw",
        metavar="FORMAT",
        help="the files are samples without a header: ENCODING,RATE in Hz,CHANNELS (s16le,16000,1)",
    )
    add = parser.add_argument_group("captions").add_argument
    add("--caption-columns", default=42, type=int, help="columns of a line; default 42")
    add("--caption-lines", default=2, type=int, help="lines of a caption; default 2")
    add("--caption-seconds", default=6.0, type=float, help="that a caption lasts at most; default 6")
    add(
        "--pause",
        default=1.0,
        type=float,
        help="seconds without a word that end a caption, or a line of txt; default 1",
    )


def wanted(args: argparse.Namespace) -> Wanted:
    """What the arguments say. Raises ValueError for those that do not go together, before anything is decoded."""
    from sumix_stream.audio import MIX, RawFormat, parse_channel
    from sumix_stream.cli.recordings import Wanted, plan
    from sumix_stream.streaming.captions import CaptionStyle

    channel = parse_channel(args.channel)
    if args.split_channels and channel != MIX:
        raise ValueError("--split-channels takes all channels: leave it or --channel out")
    form = args.format or ("txt" if args.out else None)
    style = CaptionStyle(args.caption_columns, args.caption_lines, args.caption_seconds, args.pause)
    raw = None if args.raw is None else RawFormat.parse(args.raw)
    jobs = plan(args.audio, args.out, form, args.overwrite, raw is not None)
    if form in ("srt", "vtt") and args.out is None and (len(jobs) > 1 or args.split_channels):
        raise ValueError(f"several {form} files cannot be printed one after another: give --out DIR")
    return Wanted(jobs, form, channel, args.split_channels, raw, style)
