"""Find the weights of a search, the language model's and the blank penalty, on a development set."""

import argparse
import sys
from pathlib import Path

from sumix_stream.cli import missing, search_options
from sumix_stream.cli.search_options import left_context

SCALES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
PENALTIES = [0.0, 0.5, 1.0, 1.5, 2.0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="experiment directory (its best, else its last), checkpoint or bundle")
    add("--cuts", required=True, type=Path, help="Lhotse cut manifest of the development set; never the test set")
    add("--chunk", default="640ms", help="full, 640ms or encoder frames (16); default 640ms")
    add("--left-context", default=4, type=left_context, help="chunks before its own, or unlimited; default 4")
    add("--beam", default=4, type=int, help="hypotheses; 0 = greedy search, which has no language model; default 4")
    add("--lm", type=Path, help="language model over the model's tokens: ARPA file or LSTM directory")
    scales = "weights of the language model to try; default 0 0.1 ... 0.5, and 0 alone without --lm"
    add("--lm-scale", type=float, nargs="+", metavar="X", help=scales)
    penalties = "taken off blank's logit, to try; default 0 0.5 1 1.5 2"
    add("--blank-penalty", default=PENALTIES, type=float, nargs="+", metavar="X", help=penalties)
    add("--max-utterances", type=int, help="of the set, spread evenly over it; default all")
    add("--notes", type=Path, help="file that keeps what was found, for the next time; default beside the checkpoint")
    add("--allow-commands", action="store_true", help=search_options.ALLOW_COMMANDS)
    search_options.add_runtime_arguments(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    search_options.allow_commands(args)
    from tqdm import tqdm

    from sumix_stream.data import load_cuts
    from sumix_stream.data.manifests import read_valid
    from sumix_stream.evaluate.tuning import Encoded, best, table, try_weights
    from sumix_stream.search.options import SearchOptions

    if args.lm is not None and args.beam == 0:
        raise ValueError("--lm needs a beam, and --beam 0 has none: give --beam 4")
    if args.lm is None and args.lm_scale:
        raise ValueError("--lm-scale weighs a language model, and there is none: give --lm")
    if args.max_utterances is not None and args.max_utterances < 1:
        raise ValueError(f"--max-utterances must be at least 1, got {args.max_utterances}")
    scales = (args.lm_scale or SCALES) if args.lm is not None else [0.0]
    recognizer = search_options.recognizer(args, args.checkpoint)
    context = recognizer.whole_context(args.chunk, args.left_context)
    options = SearchOptions()
    if args.beam:
        lm = search_options.language_model(args.lm, recognizer.tokenizer)
        options = SearchOptions(method="modified_beam", beam=args.beam, lm=lm)
    cuts = list(load_cuts([args.cuts]))
    if args.max_utterances is not None and args.max_utterances < len(cuts):
        cuts = [cuts[n * len(cuts) // args.max_utterances] for n in range(args.max_utterances)]
    with tqdm(total=len(cuts), desc="encoding", unit="utterance", disable=None) as bar:
        encoded = Encoded.of(recognizer.runtime(context), recognizer.tokenizer, read_valid(cuts), bar.update)
    path = Path(args.checkpoint)
    notes = args.notes or (path if path.is_dir() else path.parent) / "decode" / "tuning.jsonl"
    found = try_weights(encoded, options, scales, args.blank_penalty, notes)
    total = len(scales) * len(args.blank_penalty)
    points = list(tqdm(found, total=total, desc="searching", unit="pair", disable=None))
    print(f"word errors (characters, where the script writes no spaces) in %, {len(cuts)} utterances, {context}:\n")
    print(table(points))
    fewest = best(points)
    interval = "" if fewest.interval is None else f" [{fewest.interval[0]:.2%}, {fewest.interval[1]:.2%}]"
    counts = f"S {fewest.substitutions}  D {fewest.deletions}  I {fewest.insertions}"
    print(f"\nfewest errors: {fewest.rate:.2%}{interval}  {counts}")
    words = [f"--beam {args.beam}"] if args.beam else []
    words += [f"--lm {args.lm} --lm-scale {fewest.lm_scale:g}"] if args.lm is not None else []
    print(" ".join([*words, f"--blank-penalty {fewest.blank_penalty:g}"]))
    edges = {"--lm-scale": (fewest.lm_scale, scales), "--blank-penalty": (fewest.blank_penalty, args.blank_penalty)}
    for name, (value, tried) in edges.items():
        if len(set(tried)) > 1 and value == max(tried):
            print(f"the best {name} is the largest that was tried: try larger ones too")
    return 0


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"tune: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"tune: {missing(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
