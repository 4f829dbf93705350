"""Options that bin/decode, bin/stream_decode and bin/serve share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sumix_stream.search.fusion import LanguageModel
    from sumix_stream.search.options import SearchOptions
    from sumix_stream.streaming.recognizer import Recognizer
    from sumix_stream.streaming.stream import StreamingRecognizer
    from sumix_stream.tokenizer import Tokenizer


AVERAGE = "mean weights of the last 5 checkpoints (5) or of the best (best5); none = without a running average"
ALLOW_COMMANDS = "run the commands and fetch the URLs that a manifest names as audio: only for manifests you trust"
PRECISION = "of the encoder's products; bf16 is quicker and needs a CPU with AVX512_BF16 or AMX; default fp32"
RUNTIME = "who computes: one that cannot run says why; default auto, which tells the log whom it took"


def left_context(text: str) -> int | str | None:
    """Chunks; None = unlimited, "default" = a bundle's own, else the command's."""
    words = {"unlimited": None, "default": "default"}
    return words[text] if text in words else int(text)


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """Who computes, where, which weights and how precisely."""
    parser.add_argument("--runtime", default="auto", choices=("auto", "torch", "compiled", "onnx"), help=RUNTIME)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--average", help=AVERAGE)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help=PRECISION)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runtime and device, and the search's as a group."""
    add_runtime_arguments(parser)
    add = parser.add_argument_group("search").add_argument
    add("--beam", type=int, help="hypotheses of a modified beam search, e.g. 4; default greedy search")
    add("--blank-penalty", default=0.0, type=float, help="taken off blank's logit: above 0, fewer deletions; default 0")
    add("--max-symbols", type=int, help="tokens a frame, of greedy search; default 5 (a beam search has 1)")
    add("--lm", type=Path, help="language model over the model's tokens, with --beam: ARPA file or LSTM directory")
    add("--lm-scale", default=0.3, type=float, help="weight of its log-probabilities; default 0.3")
    add("--hotwords", type=Path, help="phrases to listen for, with --beam: one a line, `NEW YORK :2.0` with its score")
    add(
        "--skip-unknown",
        action="store_true",
        help="go on without hotwords that the model cannot write",
    )
    add("--hotword-score", default=1.5, type=float, help="nats for each token of the other phrases; default 1.5")


def allow_commands(args: argparse.Namespace) -> None:
    """Let manifests run commands where --allow-commands says so."""
    if args.allow_commands:
        from sumix_stream.data.manifests import allow_commands

        allow_commands()


def report_suffix(args: argparse.Namespace) -> str:
    """What the name of a report's folder says of --average and --precision."""
    average = "" if args.average is None else f"-average-{args.average}"
    return average if args.precision == "fp32" else f"{average}-{args.precision}"


def recognizer(args: argparse.Namespace, path: str) -> Recognizer:
    """The model at a path, as the arguments say."""
    from sumix_stream import load

    return load(path, args.device, args.average, args.precision, args.runtime)


def search_options(args: argparse.Namespace, tokenizer: Tokenizer, nbest: int = 1) -> SearchOptions:
    """The options that the arguments say; ValueError for those that do not go together."""
    from sumix_stream.search.hotwords import read_hotwords
    from sumix_stream.search.options import SearchOptions

    chosen = {"nbest": nbest, "blank_penalty": args.blank_penalty, "lm_scale": args.lm_scale}
    if args.max_symbols is not None:
        if args.beam is not None:
            raise ValueError("--max-symbols is for greedy search: leave it out, or --beam")
        chosen["max_symbols"] = args.max_symbols
    if args.beam is not None:
        chosen |= {"method": "modified_beam", "beam": args.beam}
    if args.lm is not None:
        chosen["lm"] = language_model(args.lm, tokenizer)
    if args.hotwords is not None:
        skip = {"skip_unknown": args.skip_unknown}
        chosen["hotwords"] = read_hotwords(args.hotwords, tokenizer, args.hotword_score, **skip)
    return SearchOptions(**chosen)


def language_model(path: Path | None, tokenizer: Tokenizer) -> LanguageModel | None:
    """The ARPA file or LSTM directory at a path."""
    from sumix_stream.search.neural_lm import NeuralLm
    from sumix_stream.search.ngram import NgramLm

    if path is None:
        return None
    return NeuralLm.load(path) if path.is_dir() else NgramLm.load(path, tokenizer)


def streaming_recognizer(args: argparse.Namespace) -> StreamingRecognizer:
    """What bin/serve's arguments say; its worker processes call this too."""
    from sumix_stream.streaming.endpointing import Endpointing

    model = recognizer(args, args.model)
    search = search_options(args, model.tokenizer)
    rules = Endpointing.sherpa(*args.endpoint, args.reset_predictor)
    again = args.second_pass
    return model.streaming(args.chunk, args.left_context, search=search, endpointing=rules, second_pass=again)
