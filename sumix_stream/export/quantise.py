"""int8 weights, and what they cost in words.

Activations and weights are both unsigned. On x86-64 without VNNI, ONNX Runtime multiplies unsigned activations by
signed weights with VPMADDUBSW, which adds two products in 16 bits and saturates: 2 x 255 x 127 > 32767. Unsigned
weights are widened first, so that sums are exact on every processor, and keep all 8 bits.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from sumix_stream.export.bundle import encode_streams, greedy
from sumix_stream.export.graph import annotate
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.bundle import Bundle
from sumix_stream.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sumix_stream.data.manifests import Utterance

PRODUCTS = ["MatMul", "Gemm"]  # convolutions, norms, the LSTM and the embedding stay in fp32
_BATCH = 16  # utterances decoded together


class WordErrors(Protocol):
    """What the decoder's scoring returns."""

    wer: float
    cer: float
    num_words: int
    unit: str  # words, or characters where the script writes no spaces: which rate to go by


Score = Callable[[Iterable[tuple[str, str, str]]], WordErrors]  # of (id, reference, hypothesis)


class BudgetError(ValueError):
    """int8 costs more words than allowed."""


def quantise(path: Path) -> None:
    """Replace an ONNX file by one whose products have uint8 weights, a scale and a zero point for each output channel;
    activations are quantised while it runs. Metadata are kept."""
    metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    root, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        aside = Path(folder) / path.name
        try:
            root.setLevel(logging.ERROR)  # it recommends a pre-processing that these graphs have had
            quantize_dynamic(path, aside, PRODUCTS, per_channel=True, weight_type=QuantType.QUInt8)
        finally:
            root.setLevel(level)
        annotate(aside, metadata)
        os.replace(aside, path)


def word_errors(bundle: Bundle, tokenizer: Tokenizer, utterances: Iterable["Utterance"], score: Score) -> WordErrors:
    """Word errors of a bundle on utterances, streamed; score is the decoder's."""

    def results() -> Iterator[tuple[str, str, str]]:
        remaining = iter(utterances)
        while batch := list(islice(remaining, _BATCH)):
            feats = [whole_fbank(utterance.samples) for utterance in batch]
            for utterance, tokens in zip(batch, greedy(bundle, encode_streams(bundle, feats))):
                yield utterance.id, utterance.text, tokenizer.decode(tokens)

    return score(results())


def check_budget(before: float, after: float, max_increase: float) -> None:
    """Raises BudgetError where the error rate (a fraction) rises by more than `max_increase` percent, absolute."""
    increase = 100 * (after - before)
    if not increase <= max_increase:
        raise BudgetError(
            f"int8 raises the error rate from {before:.2%} to {after:.2%}, by {increase:.2f} % absolute, more "
            f"than --max-wer-increase {max_increase:g}; nothing was written. Export without --int8, or allow more"
        )
