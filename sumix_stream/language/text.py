"""Text for language models, in the spelling of the transcripts that a tokenizer was made from."""

import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sumix_stream.tokenizer import Tokenizer

_SENTENCE_END = re.compile(r"[.!?;:]+[\"')\]”’]*\s+|\n\s*\n")
_NOT_A_WORD = re.compile(r"[^\w' ]+|_")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'"})


class LanguageModelError(ValueError):
    """A language model that cannot be made; the message names the file or the setting, and the remedy."""


class Sentences(NamedTuple):
    """Token ids of sentences, and what was left out."""

    tokens: list[list[int]]
    num_words: int
    left_out: Counter  # unknown character -> sentences that have it


def read_sentences(paths: Iterable[Path], tokenizer: Tokenizer, case: str = "auto") -> Sentences:
    """The sentences of text files (UTF-8, plain or .gz) and the texts of Lhotse manifests (.jsonl), no punctuation.

    A line break within a paragraph is a space. Sentences end at . ! ? ; : and at empty lines, in a file without any of
    . ! ? at each line; one with a character that
    the tokenizer does not know, such as a digit, is left out, since how it would be said is not known.

    Args:
        case: keep, lower, upper; auto takes upper or lower where all of the tokenizer's pieces are.
    Raises:
        LanguageModelError: a file cannot be read, or nothing is left.
    """
    case = tokenizer_case(tokenizer) if case == "auto" else case
    tokens, words, left_out = [], 0, Counter()
    for path in paths:
        for sentence in split_sentences(_read(Path(path))):
            text = normalise(sentence, case)
            if not text:
                continue
            ids = tokenizer.encode(text)
            if tokenizer.unk_id in ids:
                left_out.update(tokenizer.unknown_characters(text))
                continue
            tokens.append(ids)
            words += text.count(" ") + 1
    if not tokens:
        common = ", ".join(repr(character) for character, _ in left_out.most_common(5)) or "there are no words"
        raise LanguageModelError(
            f"no sentence of the text can be written with the tokenizer's pieces ({common}): is it of the same "
            "language, and --case of the same spelling?"
        )
    return Sentences(tokens, words, left_out)


def tokenizer_case(tokenizer: Tokenizer) -> str:
    """upper, lower, or keep where the pieces have both."""
    letters = "".join(tokenizer.piece(i) for i in range(2, tokenizer.vocab_size) if "<" not in tokenizer.piece(i))
    if letters.upper() == letters != letters.lower():
        return "upper"
    return "lower" if letters.lower() == letters != letters.upper() else "keep"


def split_sentences(text: str) -> Iterator[str]:
    """Sentences of running text; of text without sentences' ends, such as transcripts, the lines."""
    if not re.search(r"[.!?]", text):
        yield from text.splitlines()
        return
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def normalise(text: str, case: str) -> str:
    """NFC, one space between words, no punctuation but the apostrophes within words, as transcripts have it."""
    text = _NOT_A_WORD.sub(" ", unicodedata.normalize("NFC", text).translate(_QUOTES).replace("_", " "))
    words = [stripped for word in text.split() if (stripped := word.strip("'"))]
    text = " ".join(words)
    return {"upper": text.upper, "lower": text.lower}.get(case, lambda: text)()


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise LanguageModelError(f"{path}: cannot be read as UTF-8 text, plain or gzip ({error})") from None
    return _transcripts(path, text) if path.name.endswith((".jsonl", ".jsonl.gz")) else text


def _transcripts(path: Path, text: str) -> str:
    """The texts of a Lhotse manifest of cuts or supervisions, one a line."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            item = json.loads(line)
            found = [entry["text"] for entry in item.get("supervisions", [item])]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LanguageModelError(f"{path}, line {number}: neither a cut nor a supervision with a text") from None
        lines += [re.sub(r"\s+", " ", found) for found in found if found]
    return "\n".join(lines)
