"""Export a model under one latency for sherpa-onnx, ONNX runtimes or PyTorch, proved equal before it is given away."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import missing, search_options
from sumix_stream.cli.search_options import left_context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="experiment directory (its best, else its last) or checkpoint directory")
    formats = ("sherpa-onnx", "onnx", "torch-export", "checkpoint")
    add("--format", default=formats[0], choices=formats, help="default sherpa-onnx; checkpoint = weights for bin/*")
    add("--average", help=search_options.AVERAGE)
    add("--chunk", default="640ms", help="chunk size: a duration (640ms, 0.64s) or encoder frames (16); default 640ms")
    add(
        "--left-context",
        default=4,
        type=left_context,
        help="chunks seen before its own, or unlimited; 4",
    )
    add("--out", required=True, type=Path, help="directory to make; it appears whole or not at all")
    add("--audio", nargs="+", default=[], type=Path, help="recordings for the equality check; default synthetic sound")
    add("--manifest", type=Path, help="Lhotse cut manifest (.jsonl.gz) to measure the word error rate of the export on")
    add("--int8", action="store_true", help="int8 weights; needs --manifest")
    again = "with a graph of any length, by which a segment is heard again when it ends; for SummaryMixing"
    add("--second-pass", action="store_true", help=again)
    add("--max-wer-increase", default=0.3, type=float, help="what int8 may cost, %% absolute; default 0.3")
    add("--language", action="append", default=[], help="for the model card, such as en; may be repeated")
    add("--data", default="unknown", help="for the model card: what the model was trained on")
    add("--license", default="unknown", help="for the model card: of the model, such as CC-BY-4.0")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    from sumix_stream import load
    from sumix_stream.evaluate import scoring
    from sumix_stream.export.export import ExportOptions, Origin, export_model
    from sumix_stream.runtime.registry import make_runtime
    from sumix_stream.search.greedy import greedy_decode
    from sumix_stream.tasks.averaging import save_alone

    recognizer = load(args.checkpoint, average=args.average)
    model, tokenizer = recognizer.model, recognizer.tokenizer
    if args.format == "checkpoint":
        if args.second_pass:
            raise ValueError("--second-pass is for bundles: weights can always hear again; leave it out")
        print(save_alone(args.out, model, tokenizer, args.checkpoint, args.average))
        return 0
    origin = Origin(Path(args.checkpoint).resolve().name, args.language, args.data, args.license)
    measured = {"manifest": args.manifest, "max_wer_increase": args.max_wer_increase}
    chosen = {"int8": args.int8, "second_pass": args.second_pass, "origin": origin}
    options = ExportOptions(args.format, args.audio, **chosen, **measured)
    context = recognizer.context(args.chunk, args.left_context)

    def search(model, frames, lengths):
        return [emitted.tokens for emitted in greedy_decode(make_runtime(model, context), frames, lengths.numpy())[0]]

    found = {"score": scoring.score, "search": search}
    facts = export_model(model, tokenizer, context, args.out, options, tell=print, **found)
    print(f"{args.out}: {facts.format}, {facts.weights}, chunk {context}, latency {facts.latency * 1000:g} ms")
    return 0


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"export: {missing(error) if error.name else error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
