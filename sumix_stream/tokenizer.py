"""Text to token ids and back: a sentencepiece model whose id 0 is the transducer's blank."""

import codecs
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece as spm

BLANK_PIECE = "<blk>"
UNKNOWN_PIECE, UNKNOWN_TEXT = "<unk>", " \u2047 "  # sentencepiece's own
MODEL_TYPES = ("bpe", "unigram", "char", "word")
# Soft hyphens, zero-width spaces, byte order marks, marks of writing direction: no letter among them.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
# Persian and Indic scripts spell with joiners; between Latin letters or beside a space they are remnants of web pages.
_STRAY_JOINER = re.compile(r"(?<![^\x00-\x7f\s])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\s])")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # sentencepiece's, of a character that is no piece of its own
codecs.register_error("sumix_each_byte", lambda error: ("\ufffd" * (error.end - error.start), error.end))


def clean_text(text: str) -> str:
    """A text as it is compared: composed letters (NFC), one space between words, no invisible characters.

    Any white space is a space: tabs, no-break and ideographic spaces. Case and punctuation stay.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
        text = _STRAY_JOINER.sub("", text)
    return " ".join(text.split())


def name_characters(characters: Iterable[str]) -> str:
    """Characters or words for a message, sorted: those that nobody could see or tell apart by their code and name."""
    return " ".join(_named(character) for character in sorted(characters))


def _named(text: str) -> str:
    if len(text) == 1 and (not text.isprintable() or unicodedata.combining(text)):
        return f"U+{ord(text):04X} ({unicodedata.name(text, 'unnamed').lower()})"
    return text


class TokenizerError(ValueError):
    """A tokenizer that cannot be read or trained; the message names the file or the setting, and the remedy."""


class Tokenizer:
    """A sentencepiece model with blank = 0. Make one with `load`, `from_bytes` or `train_tokenizer`."""

    blank_id = 0

    def __init__(self, processor: spm.SentencePieceProcessor, source: str) -> None:
        if processor.vocab_size() < 2 or processor.id_to_piece(self.blank_id) != BLANK_PIECE:
            raise TokenizerError(f"{source}: piece 0 is not {BLANK_PIECE}; train the tokenizer with train_tokenizer")
        self._processor = processor
        self._pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]  # asked for thousands a second
        self._bytes = _byte_pieces(self._pieces)
        # A word model holds whole words only; every other kind ends in single characters.
        self._spells = any(len(piece) == 1 and piece != "▁" for piece in self._pieces[2:])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Raises TokenizerError naming the file when it is missing or no sentencepiece model."""
        path = Path(path)
        try:
            proto = path.read_bytes()
        except FileNotFoundError:
            raise TokenizerError(
                f"{path}: no such tokenizer; run the recipe's prepare script, or set tokenizer.path"
            ) from None
        except OSError as error:
            raise TokenizerError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
        return cls._from_proto(proto, str(path))

    @classmethod
    def from_bytes(cls, proto: bytes) -> "Tokenizer":
        """The inverse of `to_bytes`."""
        return cls._from_proto(proto, "tokenizer")

    @classmethod
    def _from_proto(cls, proto: bytes, source: str) -> "Tokenizer":
        processor = spm.SentencePieceProcessor()
        try:
            loaded = bool(proto) and processor.LoadFromSerializedProto(proto)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise TokenizerError(
                f"{source}: not a sentencepiece model, or truncated ({len(proto)} bytes); make it anew"
            )
        return cls(processor, source)

    def to_bytes(self) -> bytes:
        """The whole model, as its file holds it."""
        return self._processor.serialized_model_proto()

    def difference(self, other: "Tokenizer") -> str | None:
        """In words, what would give a text other ids than `other` does; None = nothing."""
        if self.vocab_size != other.vocab_size:
            return f"it has {self.vocab_size} pieces, not {other.vocab_size}"
        moved = [i for i, pair in enumerate(zip(self._pieces, other._pieces, strict=True)) if pair[0] != pair[1]]
        if moved:
            first = moved[0]
            was, now = other._pieces[first], self._pieces[first]
            return (
                f"{len(moved)} of {self.vocab_size} ids stand for other pieces, the first {first}: {was!r}, now {now!r}"
            )
        scores = [[t._processor.get_score(i) for i in range(t.vocab_size)] for t in (self, other)]
        return None if scores[0] == scores[1] else "its pieces have other scores, so that words are cut differently"

    @property
    def vocab_size(self) -> int:
        """Number of ids, blank and unknown included."""
        return len(self._pieces)

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()

    def encode(self, text: str) -> list[int]:
        """Ids of a text (see `clean_text`), never blank; what the model has no piece for becomes `unk_id`."""
        ids = self._encode(clean_text(text))
        if self.unk_id in ids and not text.isascii():
            apart = self._encode(unicodedata.normalize("NFD", clean_text(text)))
            if self.unk_id not in apart:  # a tokenizer of texts that were decomposed
                return apart
        return ids

    def _encode(self, text: str) -> list[int]:
        # A user-defined symbol `<blk>` would be found in a text that spells it.
        return [self.unk_id if i == self.blank_id else i for i in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; blank reads as nothing, and so do bytes at the end that make no whole character yet.

        Raises ValueError for an id outside 0..vocab_size - 1.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            self._check_id(i)
        text = self._processor.decode(_without_open_bytes(ids, self._bytes))
        return text if text.isascii() else unicodedata.normalize("NFC", text)

    def piece(self, token_id: int) -> str:
        """The piece of an id; a leading `▁` marks the start of a word."""
        self._check_id(token_id)
        return self._pieces[token_id]

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < len(self._pieces):
            raise ValueError(f"token id must be in 0..{self.vocab_size - 1}, got {token_id}")

    def unknown_characters(self, text: str) -> set[str]:
        """What a text holds that this tokenizer cannot write: characters, or for a word model whole words."""
        text = clean_text(text)
        ids, pieces = self._processor.encode(text), self._processor.encode(text, out_type=str)
        # As strings, unknown pieces are what the text has there; neighbours are joined, white space (▁) included.
        surfaces = (
            piece.replace("▁", " ") for i, piece in zip(ids, pieces, strict=True) if i in (self.unk_id, self.blank_id)
        )
        unknown = {part for surface in surfaces for part in surface.split()}
        return {character for part in unknown for character in part} if self._spells else unknown


def _byte_pieces(pieces: Sequence[str]) -> dict[int, int]:
    """Id -> byte of the pieces that stand for one."""
    return {i: int(found[1], 16) for i, piece in enumerate(pieces) if (found := _BYTE_PIECE.fullmatch(piece))}


def _without_open_bytes(ids: Sequence[int], byte_of: dict[int, int]) -> Sequence[int]:
    """The ids without those bytes at their end that are the beginning of a character."""
    if not ids or ids[-1] not in byte_of:
        return ids
    begin = len(ids)
    while begin and ids[begin - 1] in byte_of:
        begin -= 1
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(byte_of[i] for i in ids[begin:]))
    return ids[: len(ids) - len(decoder.getstate()[0])]


class PieceTokenizer:
    """The pieces of a vocabulary without the model that chose them: it writes text, but cannot read any.

    Args:
        pieces: by id, blank first.
    """

    blank_id = 0

    def __init__(self, pieces: Sequence[str]) -> None:
        if not pieces or pieces[self.blank_id] != BLANK_PIECE:
            raise TokenizerError(
                f"piece 0 is {pieces[:1]}, not {BLANK_PIECE}: these are no pieces of a tokenizer of ours"
            )
        self._pieces = list(pieces)
        self._bytes = _byte_pieces(self._pieces)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def piece(self, token_id: int) -> str:
        """The piece of an id; a leading `▁` marks the start of a word."""
        return self._pieces[token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, as `Tokenizer.decode` writes it."""
        shown = {BLANK_PIECE: "", UNKNOWN_PIECE: UNKNOWN_TEXT}
        parts = (
            bytes([self._bytes[i]]) if i in self._bytes else shown.get(self._pieces[i], self._pieces[i]).encode()
            for i in _without_open_bytes(ids, self._bytes)
        )
        text = b"".join(parts).decode("utf-8", "sumix_each_byte").replace("▁", " ").removeprefix(" ")
        return text if text.isascii() else unicodedata.normalize("NFC", text)

    def encode(self, text: str) -> list[int]:
        """Raises TokenizerError."""
        raise TokenizerError(
            "this bundle holds no tokenizer.model, without which text cannot be cut into tokens: "
            "export it again, or copy the checkpoint's tokenizer.model into it"
        )


def train_tokenizer(
    texts: Iterable[str],
    path: str | os.PathLike,
    vocab_size: int | None = None,
    model_type: str = "bpe",
) -> Tokenizer:
    """Trains a sentencepiece model on transcripts and writes it to `path` (whole or not at all).

    `vocab_size` counts blank (id 0) and unknown (id 1); "char" and "word" take every character or word of the texts and
    ignore it. Texts are taken as `clean_text` leaves them. Raises TokenizerError when there is no text, or
    when a vocabulary of this size cannot be made of it: the message tells the largest or smallest possible.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}")
    closed = model_type in ("char", "word")
    if not closed and (vocab_size is None or vocab_size < 3):
        raise ValueError(f"vocab_size must be at least 3 for model_type {model_type!r}, got {vocab_size}")
    lines = [line for text in texts if (line := clean_text(text))]
    if not lines:
        raise TokenizerError(f"{path}: no text to train a tokenizer on; check the transcripts of the training set")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=model_type,
            vocab_size=2 + sum(map(len, lines)) if closed else vocab_size,
            use_all_vocab=closed,
            hard_vocab_limit=not closed,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            pad_id=0,
            pad_piece=BLANK_PIECE,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"{path}: {_explain(str(error), vocab_size)}") from None
    tokenizer = Tokenizer.from_bytes(model.getvalue())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(model.getvalue())
    aside.replace(path)
    return tokenizer


def _explain(message: str, vocab_size: int | None) -> str:
    if largest := re.search(r"value <= (\d+)", message):
        return f"vocab_size {vocab_size} is too large for this text; the largest possible is {largest[1]}"
    if smallest := re.search(r"smaller than required_chars\D+\d+ vs (\d+)", message):
        return (
            f"vocab_size {vocab_size} is too small for this text's characters; the smallest possible is {smallest[1]}"
        )
    return f"sentencepiece cannot train on this text: {message}"
