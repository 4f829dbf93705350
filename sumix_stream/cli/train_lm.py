"""Make a language model over a model's own pieces from text, for --lm of the decoders: n-grams (ARPA) or an LSTM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sumix_stream.cli import missing

if TYPE_CHECKING:
    from sumix_stream.language.text import Sentences
    from sumix_stream.tokenizer import Tokenizer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    text = "text files in UTF-8, plain or .gz: books, transcripts with one a line, or Lhotse manifests (.jsonl.gz)"
    add("text", nargs="+", type=Path, help=text)
    add("--tokenizer", required=True, type=Path, help="tokenizer.model, or an experiment or checkpoint that has one")
    add("--out", required=True, type=Path, help="file to write, .arpa or .arpa.gz; with --lstm a folder")
    add("--case", default="auto", choices=("auto", "keep", "lower", "upper"), help="default: that of the pieces")
    add("--valid", nargs="+", default=[], type=Path, help="text files whose perplexity is printed")
    add = parser.add_argument_group("n-grams").add_argument
    add("--order", type=int, help="tokens of the longest n-grams; default 4")
    about = "leave out n-grams of orders 1, 2, ... that occur up to so often; the last number holds on; default 0 0 0 1"
    add("--prune", type=int, nargs="+", metavar="COUNT", help=about)
    add = parser.add_argument_group("LSTM").add_argument
    add("--lstm", action="store_true", help="train an LSTM instead; run again, it goes on where it stopped")
    add("--epochs", type=int, help="passes over the text; default 5")
    add("--hidden", type=int, help="channels of the LSTM; default 256")
    add("--layers", type=int, help="of the LSTM; default 1")
    add("--learning-rate", type=float, help="peak; default 0.003")
    add("--dropout", type=float, help="share of channels; default 0.1")
    return parser.parse_args()


_NGRAM, _LSTM = ("order", "prune"), ("epochs", "hidden", "layers", "learning_rate", "dropout")


def main(args: argparse.Namespace) -> int:
    from sumix_stream.checkpoint.layout import TOKENIZER, resolve_checkpoint
    from sumix_stream.language.text import LanguageModelError, read_sentences
    from sumix_stream.tokenizer import Tokenizer

    for name in _NGRAM if args.lstm else _LSTM:
        if getattr(args, name) is not None:
            kind = "n-grams: leave it out, or --lstm" if args.lstm else "an LSTM: give --lstm, or leave it out"
            raise LanguageModelError(f"--{name.replace('_', '-')} is for {kind}")
    if args.lstm and args.out.name.endswith((".arpa", ".gz")):
        raise LanguageModelError(f"--out of an LSTM is a folder, got {args.out}")
    folder = args.tokenizer.is_dir()
    tokenizer = Tokenizer.load(resolve_checkpoint(args.tokenizer) / TOKENIZER if folder else args.tokenizer)
    found = read_sentences(args.text, tokenizer, args.case)
    print(f"{len(found.tokens):,} sentences, {found.num_words:,} words, {sum(map(len, found.tokens)):,} tokens")
    if found.left_out:
        common = ", ".join(f"{c!r} {number:,}" for c, number in found.left_out.most_common(5))
        print(f"sentences with unknown characters were left out: {common}")
    held_out = read_sentences(args.valid, tokenizer, args.case) if args.valid else None
    return (_lstm if args.lstm else _ngrams)(args, tokenizer, found, held_out)


def _ngrams(args: argparse.Namespace, tokenizer: Tokenizer, found: Sentences, held_out: Sentences | None) -> int:
    from sumix_stream.language.arpa import write_arpa
    from sumix_stream.language.kneser_ney import estimate
    from sumix_stream.language.perplexity import perplexity
    from sumix_stream.language.text import LanguageModelError
    from sumix_stream.search.ngram import END, START, read_arpa

    order = 4 if args.order is None else args.order
    if order < 1:
        raise LanguageModelError(f"--order must be at least 1, got {order}")
    pieces = [*(tokenizer.piece(i) for i in range(1, tokenizer.vocab_size)), START, END]  # blank is no word
    numbers = ([token - 1 for token in sentence] for sentence in found.tokens)
    models = estimate(numbers, tokenizer.vocab_size - 1, order, args.prune or [0, 0, 0, 1], tell=print)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_arpa(args.out, models, pieces)
    counts = ", ".join(f"{len(model.tokens):,}" for model in models)
    print(f"{args.out}: {counts} n-grams of orders 1 to {order}, {args.out.stat().st_size / 1e6:.1f} MB")
    if held_out is not None:
        sentences = [[pieces[token - 1] for token in ids] for ids in held_out.tokens]
        value, number = perplexity(read_arpa(args.out), sentences)
        of_words = value ** (number / (held_out.num_words + len(sentences)))
        print(f"perplexity {value:.2f} a token, {of_words:.1f} a word ({held_out.num_words:,} words, ends counted)")
    return 0


def _lstm(args: argparse.Namespace, tokenizer: Tokenizer, found: Sentences, held_out: Sentences | None) -> int:
    from tqdm import tqdm

    from sumix_stream.config import PredictorConfig
    from sumix_stream.tasks.language_model import LstmLm
    from sumix_stream.train.language_model import LmTraining, fit, perplexity

    given = {name: value for name in _LSTM if (value := getattr(args, name)) is not None}
    training = LmTraining(**{name: given[name] for name in ("epochs", "learning_rate") if name in given})
    hidden = given.get("hidden", 256)
    sizes = PredictorConfig(hidden, hidden, given.get("layers", 1), given.get("dropout", 0.1))
    model = LstmLm(sizes, tokenizer.vocab_size, training.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"LSTM of {parameters / 1e6:.2f} M parameters; output: {args.out}")
    with tqdm(total=None, desc="training", unit="batch", disable=None) as bar:

        def on_batch(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(done - bar.n)

        loss = fit(model, found.tokens, training, args.out, on_batch)
    print(f"{args.out}: loss of the last pass {loss:.3f} nats a token")
    if held_out is not None:
        value, number = perplexity(model, held_out.tokens)
        of_words = value ** (number / held_out.num_words)
        print(f"perplexity {value:.2f} a token, {of_words:.1f} a word ({held_out.num_words:,} words, ends not counted)")
    return 0


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        print(f"train_lm: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"train_lm: {missing(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
