"""The model card: README.md for people, card.json for programs, of the same facts."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sumix_kernels.machine import instruction_set, processor
from sumix_stream.config.reader import to_dict
from sumix_stream.context import ChunkContext
from sumix_stream.export.parity import Parity
from sumix_stream.runtime.bundle import CARD, Bundle
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.timebase import format_duration

README = "README.md"
CARD_FORMAT = 1
UNKNOWN = "unknown"
INT8_PRODUCTS = "uint8 activations x uint8 weights"


@dataclass(frozen=True)
class Origin:
    """What only people know of a model."""

    name: str = UNKNOWN
    languages: Sequence[str] = ()
    data: str = UNKNOWN
    license: str = UNKNOWN  # of the model


@dataclass(frozen=True)
class Measured:
    """Error rates by words and by characters, fractions, of the bundle itself."""

    weights: str  # fp32 or int8
    manifest: str
    num_words: int
    wer: float
    cer: float
    unit: str = "words"  # or characters, where the script writes no spaces: the rate to go by

    @property
    def rate(self) -> float:
        """The rate to go by."""
        return self.cer if self.unit == "characters" else self.wer


@dataclass(frozen=True)
class Facts:
    """All that a card tells; sums and sizes of files are added when it is written."""

    format: str
    origin: Origin
    weights: str
    model: Transducer
    context: ChunkContext
    bundle: Bundle
    latency: float  # seconds
    parity: Parity
    measured: Sequence[Measured] = field(default=())

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain values for JSON, with the files of `folder`."""
        config, context = self.model.config, self.context
        parts = (self.model.encoder, self.model.predictor, self.model.joiner)
        packages = ("sumix-stream", "torch", "onnx", "onnxruntime", "onnxscript")
        return {
            "card_format": CARD_FORMAT,
            "format": self.format,
            "name": self.origin.name,
            "languages": list(self.origin.languages) or [UNKNOWN],
            "data": self.origin.data,
            "license": self.origin.license,
            "weights": self.weights,
            **({"int8_products": INT8_PRODUCTS} if self.weights == "int8" else {}),
            "checked_on": f"{platform.machine()}, {processor()}, {instruction_set()}",
            "parameters": sum(parameter.numel() for part in parts for parameter in part.parameters()),
            "vocab_size": self.model.vocab_size,
            "sample_rate": self.model.timebase.sample_rate,
            "chunk_size_frames": context.chunk_size,
            "chunk_seconds": self.model.timebase.encoder_frame_time(context.chunk_size),
            "left_context_chunks": context.left_context,
            "algorithmic_latency_seconds": self.latency,
            "state_bytes": sum(
                part.nbytes for part in (*self.bundle.encoder_state(1), *self.bundle.predictor_state(1))
            ),
            "parity": vars(self.parity),
            "word_error_rates": [vars(row) for row in self.measured],
            "config": to_dict(config),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in sorted(folder.iterdir())
                if path.name not in (README, CARD)
            },
        }


def write(folder: Path, facts: Facts, how_to: str) -> None:
    """Write both cards beside the files they describe. `how_to`: Markdown on running this format."""
    card = facts.to_dict(folder)
    (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(card, facts, how_to), encoding="utf-8")


def _readme(card: Mapping[str, Any], facts: Facts, how_to: str) -> str:
    encoder, left = facts.model.config.encoder, card["left_context_chunks"]
    mixer = facts.model.encoder.layers[0].mixer.describe()
    rows = [
        ("format", card["format"]),
        ("languages", ", ".join(card["languages"])),
        ("training data", card["data"]),
        ("licence", card["license"]),
        ("model", f"{encoder.kind} transducer, {mixer}, {encoder.num_layers} layers of {encoder.dim} channels"),
        ("parameters", f"{card['parameters']:,}, {card['weights']}"),
        ("vocabulary", f"{card['vocab_size']} tokens with blank"),
        ("audio", f"{card['sample_rate']} Hz, one channel"),
        ("chunk", f"{format_duration(card['chunk_seconds'])}, {card['chunk_size_frames']} encoder frames"),
        ("left context", "unlimited" if left is None else f"{left} chunks"),
        ("algorithmic latency", format_duration(card["algorithmic_latency_seconds"])),
        ("state of a stream", f"{card['state_bytes']:,} bytes, however long it runs"),
    ]
    lines = [f"# {card['name']}", "", *_table(("", ""), rows), "", "## Accuracy", ""]
    if card["word_error_rates"]:
        errors = [
            (row["manifest"], row["weights"], str(row["num_words"]), f"{row['wer']:.2%}", f"{row['cer']:.2%}")
            for row in card["word_error_rates"]
        ]
        rates = "word error rate of these files, streamed", "character error rate"
        lines += _table(("test set", "weights", "words", *rates), errors)
    else:
        lines += ["Not measured with these files."]
    checked = f"Before they were written, the fp32 files ran beside the PyTorch model: {facts.parity}. "
    checked += f"Checked and measured on one machine: {card['checked_on']}."
    lines += ["", checked, "", "## Use", "", how_to.strip(), "", "## Files", ""]
    files = [(name, f"{about['bytes']:,}", f"`{about['sha256']}`") for name, about in card["files"].items()]
    lines += [*_table(("file", "bytes", "SHA-256"), files), ""]
    lines += ["Made with " + ", ".join(f"{name} {number}" for name, number in card["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
