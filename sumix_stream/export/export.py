"""Export of a model under one context: written aside, proved equal, described, and only then put in its place."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sumix_stream.context import ChunkContext
from sumix_stream.data.manifests import load_cuts, read_valid
from sumix_stream.export import card, how_to, plain, program, sherpa
from sumix_stream.export.card import Facts, Measured, Origin
from sumix_stream.export.parity import Search, check_parity, check_whole, read_utterances, synthetic_speech
from sumix_stream.export.quantise import Score, check_budget, quantise, word_errors
from sumix_stream.export.steps import EncoderStep, WholeEncoder
from sumix_stream.runtime import bundle
from sumix_stream.runtime.bundle import Bundle, OnnxBundle, SherpaBundle
from sumix_stream.tasks.checkpoint import TOKENIZER, write_directory_atomically
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer


class Format(NamedTuple):
    """How a format is written and opened, which of its files hold products, and how its card explains it."""

    save: Callable[[Path, Transducer, Tokenizer, ChunkContext], None]
    open: Callable[[Path], Bundle]
    quantised: Sequence[str]
    how_to: Callable[[float], str]  # of the chunk's seconds
    extra_frames: int  # feature frames that its runtime waits for beyond a chunk


FORMATS = {
    "sherpa-onnx": Format(
        sherpa.save, SherpaBundle, (bundle.ENCODER, bundle.JOINER), how_to.sherpa_onnx, extra_frames=1
    ),
    "onnx": Format(plain.save, OnnxBundle, (bundle.ENCODER, bundle.JOINER), lambda _: how_to.ONNX, extra_frames=0),
    "torch-export": Format(program.save, program.ProgramBundle, (), lambda _: how_to.PROGRAM, extra_frames=0),
}


@dataclass(frozen=True)
class ExportOptions:
    """What to make. `manifest`: cuts to measure the word error rate on; `max_wer_increase`: percent, absolute."""

    format: str = "sherpa-onnx"
    audio: Sequence[Path] = ()  # for the parity check; none = synthetic sound
    int8: bool = False
    second_pass: bool = False
    manifest: Path | None = None
    max_wer_increase: float = 0.3
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.int8 and not FORMATS[self.format].quantised:
            raise ValueError(f"int8 is for sherpa-onnx and onnx, got format {self.format!r}: leave --int8 out")
        if self.second_pass and not FORMATS[self.format].quantised:
            raise ValueError(
                f"second_pass is for sherpa-onnx and onnx, got format {self.format!r}: leave --second-pass out"
            )
        if self.int8 and self.manifest is None:
            raise ValueError(
                "int8 changes what is recognised, and is given away only when that has been measured: name a cut "
                "manifest with transcripts (--manifest cuts.jsonl.gz), or leave --int8 out"
            )
        if not 0 <= self.max_wer_increase <= 100:
            raise ValueError(f"max_wer_increase must be in 0..100 % absolute, got {self.max_wer_increase}")


def export_model(
    model: Transducer,
    tokenizer: Tokenizer,
    context: ChunkContext,
    out: Path,
    options: ExportOptions,
    *,
    search: Search,
    score: Score,
    tell: Callable[[str], None] = lambda line: None,
) -> Facts:
    """Write the bundle `out`, which appears whole or not at all.

    Args:
        search, score: the decoder's greedy search and word error rate, which the export is held to.
        tell: takes lines on what was found.
    Raises:
        ValueError: for a context that cannot be exported, an existing `out`, an export that is not equal to the model
            within 1e-4 and token by token, and int8 weights that cost more than allowed.
    """
    if not isinstance(model, Transducer):
        raise ValueError("this model is a bundle already: export the checkpoint that it came from")
    out, form = Path(out), FORMATS[options.format]
    model = deepcopy(model).cpu().eval()
    EncoderStep(model.encoder, context)  # refuses before anything is read
    if options.second_pass:
        WholeEncoder(model.encoder)  # the same
    if options.manifest is not None:
        load_cuts(options.manifest)  # the same
    utterances = read_utterances(options.audio) if options.audio else synthetic_speech()
    about = ", ".join(path.name for path in options.audio) or "synthetic sound"
    facts: list[Facts] = []

    def write(folder: Path) -> None:
        form.save(folder, model, tokenizer, context)
        if options.second_pass:
            plain.save_whole(folder, model)
        if isinstance(tokenizer, Tokenizer):  # what cuts hotwords into tokens
            (folder / TOKENIZER).write_bytes(tokenizer.to_bytes())
        parity = check_parity(form.open(folder), model, context, utterances, about, search)
        tell(str(parity))
        if options.second_pass:
            difference = check_whole(form.open(folder), model, utterances)
            tell(f"{about}, heard again under full context: largest difference {difference:.1e}")
        measured = []
        if options.manifest is not None:
            measured.append(_measure(form.open(folder), "fp32", tokenizer, options.manifest, score))
            tell(_line(measured[-1]))
        if options.int8:
            for name in (*form.quantised, *([bundle.WHOLE] if options.second_pass else [])):
                quantise(folder / name)
            measured.append(_measure(form.open(folder), "int8", tokenizer, options.manifest, score))
            tell(_line(measured[-1]))
            check_budget(measured[0].rate, measured[1].rate, options.max_wer_increase)
        timebase = model.timebase
        latency = timebase.chunk_latency_seconds(context.chunk_size)
        latency += timebase.seconds(form.extra_frames * timebase.frame_shift)
        weights = "int8" if options.int8 else "fp32"
        facts.append(
            Facts(options.format, options.origin, weights, model, context, form.open(folder), latency, parity, measured)
        )
        explained = form.how_to(timebase.encoder_frame_time(context.chunk_size))
        explained += how_to.SECOND_PASS if options.second_pass else ""
        card.write(folder, facts[0], explained + (how_to.INT8 if options.int8 else ""))

    out.parent.mkdir(parents=True, exist_ok=True)
    write_directory_atomically(out, write)
    return facts[0]


def _measure(bundle: Bundle, weights: str, tokenizer: Tokenizer, manifest: Path, score: Score) -> Measured:
    errors = word_errors(bundle, tokenizer, read_valid(load_cuts(manifest)), score)
    if not errors.num_words:
        raise ValueError(f"{manifest}: no utterance with a transcript could be read, so nothing can be measured on it")
    return Measured(weights, manifest.name, errors.num_words, errors.wer, errors.cer, errors.unit)


def _line(row: Measured) -> str:
    return (
        f"{row.manifest}, {row.weights}: word error rate {row.wer:.2%} of {row.num_words} words, "
        f"character error rate {row.cer:.2%}"
    )
