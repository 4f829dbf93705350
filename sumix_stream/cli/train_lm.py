"""Make an n-gram language model (ARPA) over a model's own pieces from text files, for --lm of the decoders."""

import argparse
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "text",
        nargs="+",
        type=Path,
        help="text files in UTF-8, plain or .gz: books, or transcripts with one a line",
    )
    add("--tokenizer", required=True, type=Path, help="tokenizer.model, or an experiment or checkpoint that has one")
    add("--out", required=True, type=Path, help="file to write: .arpa, or .arpa.gz")
    add("--order", default=4, type=int, help="tokens of the longest n-grams; default 4")
    about = "leave out n-grams of orders 1, 2, ... that occur up to so often; the last number holds on; default 0 0 0 1"
    add("--prune", default=[0, 0, 0, 1], type=int, nargs="+", metavar="COUNT", help=about)
    add("--case", default="auto", choices=("auto", "keep", "lower", "upper"), help="default: that of the pieces")
    add("--valid", nargs="+", default=[], type=Path, help="text files whose perplexity is printed")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    from sumix_stream.checkpoint.layout import TOKENIZER, resolve_checkpoint
    from sumix_stream.language.arpa import write_arpa
    from sumix_stream.language.kneser_ney import estimate
    from sumix_stream.language.perplexity import perplexity
    from sumix_stream.language.text import LanguageModelError, read_sentences
    from sumix_stream.search.ngram import END, START, read_arpa
    from sumix_stream.tokenizer import Tokenizer

    if args.order < 1:
        raise LanguageModelError(f"--order must be at least 1, got {args.order}")
    folder = args.tokenizer.is_dir()
    tokenizer = Tokenizer.load(resolve_checkpoint(args.tokenizer) / TOKENIZER if folder else args.tokenizer)
    found = read_sentences(args.text, tokenizer, args.case)
    tokens = sum(map(len, found.tokens))
    print(f"{len(found.tokens):,} sentences, {found.num_words:,} words, {tokens:,} tokens")
    if found.left_out:
        common = ", ".join(f"{c!r} {number:,}" for c, number in found.left_out.most_common(5))
        print(f"sentences with unknown characters were left out: {common}")
    pieces = [*(tokenizer.piece(i) for i in range(1, tokenizer.vocab_size)), START, END]  # blank is no word
    numbers = ([token - 1 for token in sentence] for sentence in found.tokens)
    models = estimate(numbers, tokenizer.vocab_size - 1, args.order, args.prune, tell=print)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_arpa(args.out, models, pieces)
    counts = ", ".join(f"{len(model.tokens):,}" for model in models)
    print(f"{args.out}: {counts} n-grams of orders 1 to {args.order}, {args.out.stat().st_size / 1e6:.1f} MB")
    if args.valid:
        held_out = read_sentences(args.valid, tokenizer, args.case)
        sentences = [[pieces[token - 1] for token in ids] for ids in held_out.tokens]
        value, number = perplexity(read_arpa(args.out), sentences)
        of_words = value ** (number / (held_out.num_words + len(sentences)))
        print(f"perplexity {value:.2f} a token, {of_words:.1f} a word ({held_out.num_words:,} words, ends counted)")
    return 0


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"train_lm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
