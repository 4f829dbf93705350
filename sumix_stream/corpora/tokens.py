"""Which tokens suit a corpus, by its text and its hours."""

from pathlib import Path
from typing import Any, NamedTuple

from sumix_stream.corpora.preparation import cut_texts
from sumix_stream.tokenizer import MODEL_TYPES, TokenizerError, train_tokenizer

CLOSED_WORDS = 300  # so many different words, each said often, are better learnt whole
USES = 15  # of each word on average, for that
MANY_CHARACTERS = 400  # of scripts that write words or syllables
SIZES = ((2, 128), (20, 256), (80, 500), (2000, 1000), (float("inf"), 2000))  # (hours below, pieces)


class Tokens(NamedTuple):
    """Kind and number of tokens, and why."""

    kind: str
    size: int | None  # None: as many as the text has
    why: str


def choose_tokens(summary: dict[str, Any], kind: str = "auto", size: int | None = None) -> Tokens:
    """For the `summary` of `parts.write_parts`; `kind` and `size` where people chose them.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("auto", *MODEL_TYPES):
        raise ValueError(f"--tokenizer {kind}: must be one of auto, {', '.join(MODEL_TYPES)}")
    hours = sum(part.get("seconds", 0) for part in summary["parts"].values()) / 3600
    characters, words, uses = len(summary["characters"]), summary["words"], summary["word uses"]
    why = "as asked for"
    if kind == "auto":
        per_word = sum(n for c, n in summary["characters"] if not c.isspace()) / max(1, uses)
        if characters > MANY_CHARACTERS or per_word > 20:
            kind, why = "char", f"{characters} different characters: the script writes words or syllables with them"
        elif words <= CLOSED_WORDS and uses >= USES * words:
            kind, why = "word", f"only {words} different words, each {uses // words} times"
        else:
            kind, why = "bpe", f"pieces of words, so that new words can be written; sized for {hours:.1f} hours"
    if kind in ("char", "word"):
        return Tokens(kind, None, why)
    if size is None:
        size = max(next(pieces for below, pieces in SIZES if hours < below), characters + 32)
    else:
        why += ", of the size asked for"
    return Tokens(kind, size, why)


def write_tokens(manifest: Path, path: Path, tokens: Tokens) -> int:
    """Train a tokenizer on the transcripts of `manifest`; how many tokens it has.

    A text too small for so many pieces gets as many as it allows.
    """
    size = tokens.size
    while True:
        try:
            return train_tokenizer(cut_texts(manifest), path, size, tokens.kind).vocab_size
        except TokenizerError as error:
            largest = str(error).rpartition("the largest possible is ")[2]
            if not largest.isdecimal() or size is None or int(largest) >= size:
                raise
            size = int(largest)
