"""Make a folder that trains from recordings and their texts; run again, it does what has changed."""

import argparse
import re
import sys
from pathlib import Path

KINDS = ("kaldi", "lhotse", "table", "librispeech", "subtitles", "folder")
CHANNELS = {"left": 0, "right": 1, "mix": None}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sources:\n"
        "  folder       a folder of audio files with a .txt or .lab beside each\n"
        "  librispeech  LibriSpeech's layout: audio beside *.trans.txt\n"
        "  table        CSV, TSV or JSON lines with a path and a text in each row: LJSpeech's and Hugging Face's\n"
        "               metadata.csv, a Common Voice folder, NeMo's manifests; or a folder with one\n"
        "  kaldi        a Kaldi data folder: wav.scp and text, with segments, utt2spk, utt2lang where they are\n"
        "  lhotse       Lhotse manifests: cuts, recordings with supervisions, or a Shar folder\n"
        "  subtitles    long audio with .srt or .vtt of the same name",
    )
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="what to prepare; several are put together")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--from", dest="kind", choices=KINDS, help="kind of the sources; recognised if not given")
    share = "share of the audio (at most {}) or number of utterances for {}, where the sources name none; default 0.05"
    add("--valid", type=float, default=0.05, help=share.format("1 hour", "validation"))
    add("--test", type=float, default=0.05, help=share.format("5 hours", "the test"))
    whole = "sources that are the {} as they are; may be repeated"
    for part, name in (("valid", "validation set"), ("test", "test set")):
        add(f"--{part}-source", type=Path, action="append", default=[], metavar="SOURCE", help=whole.format(name))
    add("--ignore-splits", action="store_true", help="divide anew, whatever SOURCEs say")
    add(
        "--keep-overlaps",
        action="store_true",
        help="use utterances of a recording that overlap by more than 0.3 seconds",
    )
    add("--seed", type=int, default=0, help="seed of the division and of the order of the training manifest")
    add("--case", choices=["keep", "lower", "upper"], default="keep", help="case of the transcripts; default keep")
    add("--punctuation", choices=["keep", "remove"], default="keep", help="of the transcripts; default keep")
    add("--columns", help="of tables: path=NAME,text=NAME,speaker=3,...: names in the header, or numbers from 1")
    add("--audio-root", type=Path, metavar="DIR", help="folder that relative paths of audio begin at")
    add("--encoding", help="of text files, such as latin-1; default UTF-8, or UTF-16 with its mark")
    add("--speaker", metavar="REGEX", help=r"its first group, found in an audio file's path, is the speaker: /(\d+)-")
    add("--channel", default="mix", help="of files with several channels: 0, 1, left, right or mix; default mix")
    add("--min-seconds", type=float, default=0.1, help="shorter utterances are left out; default 0.1")
    add("--max-seconds", type=float, default=30.0, help="longer utterances are left out; default 30")
    add("--tokenizer", choices=["auto", "bpe", "unigram", "char", "word"], default="auto", help="default: by the text")
    add("--vocab-size", type=int, help="pieces of bpe and unigram; default by the hours of speech")
    add("--allow-commands", action="store_true", help="run commands and fetch addresses that the sources name as audio")
    add("--jobs", type=int, help="processes that check audio; default one for each core")
    add("--no-estimate", action="store_true", help="do not measure a training step to tell how long training takes")
    args = parser.parse_args()
    if args.channel not in CHANNELS and not args.channel.isdecimal():
        parser.error(f"--channel {args.channel}: must be 0, 1, ..., left, right or mix")
    if not 0 <= args.min_seconds < args.max_seconds:
        parser.error("--min-seconds must be at least 0 and below --max-seconds")
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    return args


def columns(text: str | None) -> dict[str, str]:
    """`path=file,text=2` as a mapping. Raises ValueError for anything else, naming the known columns."""
    from sumix_stream.corpora.readers.table import NAMES

    found = {}
    for pair in filter(None, (text or "").split(",")):
        ours, equals, theirs = (word.strip() for word in pair.partition("="))
        if not equals or ours not in NAMES or not theirs:
            raise ValueError(f"--columns {pair}: must be NAME=COLUMN, with a name of {', '.join(NAMES)}")
        found[ours] = theirs
    return found


def main(args: argparse.Namespace) -> int:
    from sumix_stream.corpora.own_data import RECIPE, Given, Settings, prepare
    from sumix_stream.corpora.readers.base import ReadOptions
    from sumix_stream.report.data_page import write_data_page
    from sumix_stream.train.optim import default_learning_rate

    if args.speaker is not None:
        try:
            groups = re.compile(args.speaker).groups
        except re.error as error:
            raise ValueError(f"--speaker {args.speaker}: no regular expression ({error})") from None
        if not groups:
            raise ValueError(f"--speaker {args.speaker}: has no group; put what is the speaker into (...)")
    channel = CHANNELS[args.channel] if args.channel in CHANNELS else int(args.channel)
    settings = Settings(
        valid=args.valid,
        test=args.test,
        seed=args.seed,
        use_splits=not args.ignore_splits,
        keep_overlaps=args.keep_overlaps,
        case=args.case,
        punctuation=args.punctuation,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        channel=channel,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        read=ReadOptions(columns(args.columns), args.audio_root, args.encoding, args.allow_commands, args.speaker),
    )
    summary = prepare(
        [
            *(Given(path, args.kind) for path in args.sources),
            *(Given(path, args.kind, "valid") for path in args.valid_source),
            *(Given(path, args.kind, "test") for path in args.test_source),
        ],
        args.out,
        settings,
        learning_rate=default_learning_rate,
        write_page=write_data_page,
        jobs=args.jobs,
    )
    print(f"\npage:    {args.out / 'report.html'}")
    print(f"recipe:  {args.out / RECIPE}")
    print(f"train:   bin/train --config {args.out / RECIPE}")
    print(f"         {_estimate(args.out / RECIPE, args.no_estimate)}")
    part = next((name for name in ("test", "valid") if summary["parts"][name].get("utterances")), None)
    if part is not None:
        cuts = args.out / f"cuts_{part}.jsonl.gz"
        print(f"then:    bin/decode --checkpoint {args.out / 'exp'} --cuts {cuts}")
    return 0


def _estimate(recipe: Path, without: bool) -> str:
    from sumix_stream.config.reader import load_recipe
    from sumix_stream.train.estimate import estimate

    steps = load_recipe(recipe).train.max_steps
    if without:
        return f"{steps} steps"
    try:
        return str(estimate(load_recipe(recipe)))
    except (ValueError, OSError, RuntimeError) as error:
        return f"{steps} steps; how long they take could not be measured ({error})"


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        sys.exit(f"prepare: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare: stopped; run the same command again to go on")
