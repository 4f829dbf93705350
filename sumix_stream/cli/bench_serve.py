"""Options of `bin/bench serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sumix_stream.cli.search_options import left_context


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _milliseconds(text: str) -> tuple[float, ...]:
    return tuple(float(part) / 1000 for part in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    model = "experiment or checkpoint directory; or tiny, small, medium, large: untrained weights that emit tokens"
    add("--model", default="small", help=f"{model}; default small")
    add("--out", required=True, type=Path, help="directory for tables (CSV, Markdown) and plots (PNG)")
    add("--clients", default=(8, 16, 32), type=_numbers, help="streams at a time, ascending; default 8,16,32")
    add("--seconds", default=12.0, type=float, help="measured seconds a row, after 4 of warming up; default 12")
    add("--audio", nargs="+", default=[], type=Path, help="recordings or cut manifests; default synthetic speech")
    add("--chunk", default="640ms", help="chunk size: a duration (640ms, 0.64s) or encoder frames (16); default 640ms")
    add(
        "--left-context",
        default=4,
        type=left_context,
        help="chunks seen before its own, or unlimited; 4",
    )
    against = "the same load on: bf16 = our server with --precision bf16, bundle and int8 = with the exported model, in"
    against += " fp32 and int8, second-pass = with segments of 5 s that are heard again, sherpa and sherpa-int8 = the"
    against += " stock sherpa-onnx server with the same two bundles"
    contenders = ("bf16", "bundle", "int8", "sherpa", "sherpa-int8", "second-pass")
    add("--against", nargs="+", default=[], choices=contenders, help=against)
    add("--bundle", type=Path, help="sherpa-onnx bundle of the model and context; default: it is exported")
    add("--bundle-int8", type=Path, help="the same with int8 weights, from bin/export --int8; default: it is made")
    add("--bound", type=float, help="seconds of p99 chunk latency that still count as real time; default one chunk")
    add("--repeats", default=3, type=int, help="searches for the most streams in real time; default 3, 0 = none")
    add("--most", default=1024, type=int, help="streams that the search does not go beyond; default 1024")
    add("--hostile", action="store_true", help="instead: the first of --clients with and without hostile ones beside")
    sizing = "instead: a table for planning, of streams a core and memory by model and chunk; run again, it goes on"
    add("--sizing", action="store_true", help=sizing)
    add("--models", nargs="+", default=["tiny", "small", "medium"], help="of --sizing; default tiny small medium")
    add("--chunks", nargs="+", default=["320ms", "640ms", "1280ms"], help="of --sizing; default 320ms 640ms 1280ms")
    add("--packets", default="20,40,60,100", type=_milliseconds, help="ms of audio, in turn; default 20,40,60,100")
    add("--cores", type=_numbers, help="cores of the server, 0,1 for example; clients are on the last; default all")
    add("--threads", type=int, help="of each server's network; default as many as cores")
    add("--seed", default=0, type=int, help="of the clients' beginnings and of untrained weights; default 0")
    add("--no-plot", action="store_true", help="no PNG, which needs matplotlib")


def main(args: argparse.Namespace, command: str) -> int:
    from sumix_stream.bench.serve import commands

    names = (
        "model",
        "out",
        "clients",
        "seconds",
        "chunk",
        "left_context",
        "bundle",
        "bundle_int8",
        "bound",
        "most",
        "hostile",
    )
    chosen = {name: getattr(args, name) for name in (*names, "repeats", "packets", "cores", "threads", "seed")}
    chosen |= {"audio": tuple(args.audio), "against": tuple(args.against)}
    try:
        request = commands.Request(**chosen, plot=not args.no_plot, command=command)
    except ValueError as error:
        parser = argparse.ArgumentParser(prog="bench serve", usage=argparse.SUPPRESS)
        parser.error(str(error))
    if args.sizing:
        from sumix_stream.bench.serve import sizing

        return sizing.main(request, args.models, args.chunks)
    return commands.main(request)
