"""N-gram models as ARPA files, whole or not at all."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sumix_stream.language.kneser_ney import Ngrams

_NEVER = -99.0  # log10, what toolkits write for <s>


def write_arpa(path: Path, models: Sequence[Ngrams], pieces: Sequence[str]) -> None:
    """Write `models`, of orders 1, 2, ...; `pieces` by token, <s> and </s> at the end. Gzip where it ends in .gz."""
    aside = path.with_name(f".{path.name}.partial")
    opened = gzip.open(aside, "wt", encoding="utf-8") if path.suffix == ".gz" else aside.open("w", encoding="utf-8")
    with opened as file:
        file.write("\\data\\\n")
        for order, model in enumerate(models, 1):
            file.write(f"ngram {order}={len(model.tokens)}\n")
        for order, model in enumerate(models, 1):
            file.write(f"\n\\{order}-grams:\n")
            log_probs = np.maximum(model.log_probs / math.log(10), _NEVER)
            backoffs = model.backoffs / math.log(10)
            for row, log_prob, backoff in zip(
                model.tokens.tolist(), log_probs.tolist(), backoffs.tolist(), strict=True
            ):
                words = " ".join(pieces[token] for token in row)
                more = f"\t{backoff:.6f}" if order < len(models) and backoff else ""
                file.write(f"{log_prob:.6f}\t{words}{more}\n")
        file.write("\n\\end\\\n")
    aside.replace(path)
