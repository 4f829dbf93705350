"""Spot keywords in recordings or a microphone, chunk by chunk, or classify whole recordings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sumix_stream.cli import missing
from sumix_stream.cli.search_options import left_context

if TYPE_CHECKING:
    from sumix_stream.streaming.spotting import Event, Spotter


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("audio", nargs="*", type=Path, help="audio or video files, folders of them, - for standard input")
    add("--model", help="experiment directory (its best, else its last), checkpoint, or bundle of bin/spot --export")
    add("--chunk", help="a duration (320ms) or encoder frames (8), after which there is a score; default 320ms")
    add("--left-context", default="default", type=left_context, help="chunks, or unlimited; default 4")
    add("--window", type=float, help="seconds that a score is of; default 1")
    add("--threshold", default=0.5, type=float, help="probability from which a word is an event; default 0.5")
    add("--refractory", default=1.0, type=float, help="seconds after an event without another of that word; default 1")
    add("--words", nargs="+", default=[], help="labels that are events; default all but none and _those_like_this_")
    add("--whole", action="store_true", help="the labels of whole recordings instead, of every set, under full context")
    add("--format", choices=("json", "tsv"), default="json", help="of a line; times in seconds; default json")
    add("--channel", default="mix", help="0, 1, left, right, or mix: the average of all; default mix")
    add("--microphone", nargs="?", const="", metavar="DEVICE", help="listen until Ctrl-C; DEVICE: number or name")
    add("--export", type=Path, metavar="FOLDER", help="write an ONNX bundle of these chunks and this window instead")
    args = parser.parse_args()
    if args.model is None:
        parser.error("the following arguments are required: --model")
    given = bool(args.audio), args.microphone is not None, args.export is not None
    if sum(given) != 1:
        parser.error("give either audio files or --microphone or --export, one of them")
    if args.whole and not args.audio:
        parser.error("--whole is for audio files")
    return args


def main(args: argparse.Namespace) -> int:
    from sumix_stream.streaming.spotting import SpotOptions

    given = [args.chunk is not None, args.left_context != "default", args.window is not None]
    fixed = [name for name, one in zip(("--chunk", "--left-context", "--window"), given, strict=True) if one]
    args.chunk, args.window = args.chunk or "320ms", 1.0 if args.window is None else args.window
    args.left_context = 4 if args.left_context == "default" else args.left_context
    options = SpotOptions(args.threshold, args.refractory, args.window, tuple(args.words))
    if args.whole:
        if fixed:
            raise ValueError(f"{fixed[0]} is of streams: leave it or --whole out")
        return _whole(args)
    from sumix_stream.export.classifier import is_classifier_bundle, open_classifier
    from sumix_stream.runtime.torch_classifier import TorchSteps
    from sumix_stream.streaming.spotting import Spotter

    if is_classifier_bundle(args.model):
        if args.export:
            raise ValueError(f"--model {args.model} is exported already: give the experiment it came from")
        if fixed:
            raise ValueError(
                f"{args.model} was exported with its own chunk, left context and window: leave {fixed[0]} out"
            )
        steps, labels = open_classifier(args.model)
    else:
        model, labels, context = _load(args)
        if args.export:
            from sumix_stream.export.classifier import export_classifier

            difference = export_classifier(model, labels, context, args.window, args.export)
            print(f"{args.export}: probabilities within {difference:.1e} of PyTorch's")
            return 0
        steps = TorchSteps(model, context, args.window)
    spotter = Spotter(steps, labels, options)
    return _listen(args, spotter) if args.microphone is not None else _files(args, spotter)


def _load(args: argparse.Namespace):
    from sumix_stream.context import ChunkContext
    from sumix_stream.tasks.classification.task import load_classifier

    model, labels = load_classifier(args.model)
    return model, labels, ChunkContext.parse(args.chunk, args.left_context, model.timebase)


def _files(args: argparse.Namespace, spotter: Spotter) -> int:
    from sumix_stream.audio import parse_channel, read_audio
    from sumix_stream.cli.recordings import plan

    status = 0
    for job in plan(args.audio, None, None):
        try:
            samples, rate = read_audio(job.path, parse_channel(args.channel))
        except (ValueError, OSError) as error:
            print(f"spot: {error}", file=sys.stderr)
            status = 2
            continue
        stream, size = spotter.stream(), max(1, rate // 10)
        for start in range(0, len(samples), size):
            _write(args, job.path, stream.feed(rate, samples[start : start + size]))
        _write(args, job.path, stream.finish())
    return status


def _whole(args: argparse.Namespace) -> int:
    from sumix_stream.audio import parse_channel, read_audio, resample
    from sumix_stream.cli.recordings import plan
    from sumix_stream.context import ChunkContext
    from sumix_stream.features import whole_fbank
    from sumix_stream.runtime.torch_classifier import classify

    model, labels, _ = _load(args)
    status = 0
    for job in plan(args.audio, None, None):
        try:
            samples, rate = read_audio(job.path, parse_channel(args.channel))
            feats = whole_fbank(resample(samples, rate, model.timebase.sample_rate))
            if not len(feats):
                raise ValueError(f"{job.path}: too short for a label (5 ms at least)")
        except (ValueError, OSError) as error:
            print(f"spot: {error}", file=sys.stderr)
            status = 2
            continue
        found = classify(model, labels, feats, ChunkContext.full())
        if args.format == "tsv":
            print("\t".join([str(job.path), *(f"{one.label}\t{one.score:.3f}" for one in found.values())]), flush=True)
        else:
            each = {name: {"label": one.label, "score": round(one.score, 4)} for name, one in found.items()}
            print(json.dumps({"audio": str(job.path), **each}, ensure_ascii=False), flush=True)
    return status


def _listen(args: argparse.Namespace, spotter: Spotter) -> int:
    from sumix_stream.audio.channels import MIX, OneChannel, check_channel, one_channel, parse_channel
    from sumix_stream.audio.microphone import open_microphone
    from sumix_stream.cli.live import first_interrupt

    stream, one = spotter.stream(), parse_channel(args.channel)
    with first_interrupt() as stopped, open_microphone(args.microphone, stopped) as microphone:
        about = f"{microphone.name}, {microphone.sample_rate} Hz"
        print(f"listening to {about}; Ctrl-C ends it", file=sys.stderr, flush=True)
        check_channel(one, microphone.num_channels)
        chosen = one if microphone.num_channels > 1 else MIX
        mixed = OneChannel(chosen, microphone.num_channels, microphone.sample_rate, about)
        for block in one_channel(microphone.blocks(), mixed):
            _write(args, Path("microphone"), stream.feed(microphone.sample_rate, block))
        _write(args, Path("microphone"), stream.finish())
    return 0


def _write(args: argparse.Namespace, path: Path, events: Iterable[Event]) -> None:
    for label, time, score in events:
        if args.format == "tsv":
            print(f"{path}\t{time:.2f}\t{label}\t{score:.3f}", flush=True)
        else:
            line = {"audio": str(path), "time": round(time, 3), "label": label, "score": round(score, 4)}
            print(json.dumps(line, ensure_ascii=False), flush=True)


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"spot: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"spot: {missing(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
