"""What bin/decode and bin/stream_decode do once their arguments are read: print, write reports, return an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sumix_stream.audio.channels import Channel
from sumix_stream.audio.files import AudioFile
from sumix_stream.cli.recordings import Wanted, each_recording
from sumix_stream.context import ChunkContext
from sumix_stream.search.hypothesis import Hypothesis, Word
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.live import CUTS, Gathered, play_words
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.recordings import LONGEST_PART, recognise
from sumix_stream.streaming.second_pass import LONGEST, SecondPass
from sumix_stream.streaming.transcripts import Transcript

if TYPE_CHECKING:
    from lhotse import CutSet

    from sumix_stream.data.manifests import Utterance
    from sumix_stream.evaluate.error_rates import Evaluation, OnUtterance

WORST = 3  # utterances shown on a terminal
_log = logging.getLogger(__name__)


def report_directory(
    checkpoint: str, manifest: Path, context: ChunkContext, options: SearchOptions, suffix: str = ""
) -> Path:
    """Where a report goes unless told otherwise: beside the checkpoint, named after manifest, context and beam."""
    beside = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    chunk = "full" if context.chunk_size is None else f"chunk{context.chunk_size}"
    left = "" if context.left_context is None else f"-left{context.left_context}"
    beam = "" if options.method == "greedy" else f"-beam{options.beam}"
    return beside / "decode" / f"{manifest.name.split('.')[0]}-{chunk}{left}{suffix}{beam}"


def score_streaming(
    recognizer: Recognizer,
    manifest: Path,
    context: ChunkContext,
    out: Path,
    num_streams: int,
    push_seconds: float,
    options: SearchOptions = GREEDY,
    second_pass: bool = False,
    errors: int | None = None,
) -> int:
    """Decode a manifest as live streams; print figures and the `errors` worst utterances, and write the report."""
    with _progress(manifest) as (cuts, advance):
        from sumix_stream.evaluate.error_rates import streaming_wer

        evaluation = streaming_wer(
            recognizer.source,
            recognizer.tokenizer,
            _utterances(cuts),
            context,
            num_streams=num_streams,
            push_seconds=push_seconds,
            options=options,
            on_utterance=advance,
            runtime=recognizer.runtime_name,
            second_pass=second_pass,
        )
    return _report(evaluation, manifest, out, options, errors)


def score_masked(
    recognizer: Recognizer,
    manifest: Path,
    context: ChunkContext,
    out: Path,
    batch_size: int,
    options: SearchOptions = GREEDY,
    errors: int | None = None,
) -> int:
    """Decode a manifest in whole utterances; print figures and the `errors` worst utterances, and write the report."""
    with _progress(manifest) as (cuts, advance):
        from sumix_stream.evaluate.error_rates import masked_wer

        evaluation = masked_wer(
            recognizer.source,
            recognizer.tokenizer,
            _utterances(cuts),
            context,
            batch_size=batch_size,
            options=options,
            on_utterance=advance,
            runtime=recognizer.runtime_name,
        )
    return _report(evaluation, manifest, out, options, errors)


def print_text(
    recognizer: Recognizer,
    wanted: Wanted,
    context: ChunkContext,
    times: bool,
    options: SearchOptions = GREEDY,
    longest: float = LONGEST_PART,
) -> int:
    """Recognise recordings, each as a whole, and write their transcripts; without a format print the text of each, with
    `times` one word a line at its time, and what else the n-best list holds."""

    def one(file: AudioFile, channel: Channel, number: int | None) -> Transcript | bool:
        found = recognise(recognizer, file.mono(channel), file.sample_rate, context, options, longest)
        if found.num_parts > 1:
            about = f"{found.num_parts} parts of at most {longest:g} s, cut at quiet places"
            _log.warning(
                "%s: full context of %.0f s is that of %s (--longest, --chunk)", file.name, found.seconds, about
            )
        hypothesis, words = found.hypothesis, recognizer.words(found.hypothesis)
        if wanted.format is not None:
            return _transcript(file, hypothesis, words, found.seconds, number, wanted, context)
        print(f"{_titled(file, number)}: {hypothesis.text}")
        for word in words if times else []:
            print(f"  {word.start:8.2f} s  {word.text}")
        for rank, other in enumerate(found.alternatives[1:], 2):
            print(f"  {rank}. {other.score - found.alternatives[0].score:+.2f}  {other.hypothesis.text}")
        return True

    return each_recording(wanted, one)


def print_live(
    recognizer: Recognizer,
    wanted: Wanted,
    context: ChunkContext,
    push_seconds: float,
    realtime: bool,
    options: SearchOptions = GREEDY,
    second_pass: bool = False,
) -> int:
    """Recognise recordings as they would come live and write their transcripts; without a format print words as they
    come: how much has been heard, then each new word after its own time. At last the text, by the second pass where
    there is one."""
    again = SecondPass(max_seconds=LONGEST) if second_pass else None
    streaming = recognizer.streaming(context, search=options, endpointing=CUTS, second_pass=again)

    def one(file: AudioFile, channel: Channel, number: int | None) -> Transcript | bool:
        name, quiet, gathered, seconds = _titled(file, number), wanted.format is not None, Gathered(), 0.0
        if not quiet:
            model_rate = recognizer.timebase.sample_rate
            resampled = "" if file.sample_rate == model_rate else f", resampled to {model_rate} Hz"
            length = "" if file.num_samples is None else f"{file.num_samples / file.sample_rate:.2f} s "
            print(f"{name}: {length}at {file.sample_rate} Hz{resampled}; heard | time and word", flush=True)

        def counted() -> Iterator[np.ndarray]:
            nonlocal seconds
            for block in file.mono(channel):
                seconds += len(block) / file.sample_rate
                yield block

        for heard, words in play_words(streaming, counted(), file.sample_rate, push_seconds, realtime, gathered):
            if not quiet:
                print(f"{heard:8.2f} s | " + "   ".join(f"{word.start:.2f} {word.text}" for word in words), flush=True)
        hypothesis = gathered.hypothesis(recognizer.tokenizer)
        if quiet:
            words = recognizer.words(hypothesis)
            return _transcript(file, hypothesis, words, seconds, number, wanted, context)
        print(f"{name}: {hypothesis.text}")
        return True

    return each_recording(wanted, one)


def _titled(file: AudioFile, number: int | None) -> str:
    return file.name if number is None else f"{file.name} channel {number}"


def _transcript(
    file: AudioFile,
    hypothesis: Hypothesis,
    words: list[Word],
    seconds: float,
    number: int | None,
    wanted: Wanted,
    context: ChunkContext,
) -> Transcript:
    about = {"chunk_size": context.chunk_size, "left_context": context.left_context}
    return Transcript(file.name, hypothesis, words, seconds, file.sample_rate, number, wanted.style, about)


def play_long(
    recognizer: Recognizer, manifest: Path, context: ChunkContext, minutes: float, options: SearchOptions = GREEDY
) -> int:
    """Play a manifest into one stream, cut by endpoints at which the predictor starts afresh; print what it did."""
    from sumix_stream.evaluate.long_form import long_form

    endpointing = Endpointing.sherpa(reset_predictor=True)
    streaming = recognizer.streaming(context, search=options, endpointing=endpointing)
    print(long_form(recognizer, streaming, _utterances(_cuts(manifest)), minutes).summary())
    return 0


def score_commits(
    recognizer: Recognizer,
    manifest: Path,
    context: ChunkContext,
    every: float,
    options: SearchOptions = GREEDY,
    second_pass: bool = False,
) -> int:
    """Print the errors of utterances that are committed at random times, beside those of the same in one piece."""
    from sumix_stream.evaluate.seams import committed_at_random

    again = SecondPass(max_seconds=LONGEST) if second_pass else None
    streaming = recognizer.streaming(context, search=options, second_pass=again)
    print(committed_at_random(streaming, _utterances(_cuts(manifest)), every).summary())
    return 0


def check_exactness(recognizer: Recognizer, wanted: Wanted) -> int:
    """Print the grid of differences between streaming and masked forward; exit code 1 if one is too large."""
    from sumix_stream.evaluate.exactness import exactness_grid

    def one(file: AudioFile, channel: Channel, number: int | None) -> bool:
        samples, rate = np.concatenate(list(file.mono(channel))), file.sample_rate
        print(f"{file.name}: {len(samples) / rate:.2f} s; C encoder frames of a chunk, L chunks of left context")
        grid = exactness_grid(recognizer.source, recognizer.tokenizer, samples, rate, runtime=recognizer.runtime_name)
        print("\n".join(map(str, grid)))
        holds = all(cell.holds for cell in grid)
        print(
            f"largest difference {max(cell.max_difference for cell in grid):.2e}: {'exact' if holds else 'NOT EXACT'}"
        )
        return holds

    return each_recording(wanted, one)


def _report(evaluation: Evaluation, manifest: Path, out: Path, options: SearchOptions, errors: int | None) -> int:
    from sumix_stream.evaluate.marks import marks_for
    from sumix_stream.evaluate.scoring import write_report

    if not evaluation.word_errors.utterances:
        raise ValueError(f"{manifest}: none of its utterances could be read; see the reasons above")
    extra = {"cuts": str(manifest), **options.describe(), **evaluation.to_dict()}
    report = write_report(out, evaluation.word_errors, extra)
    print(evaluation.summary())
    shown = (WORST if sys.stdout.isatty() else 0) if errors is None else errors
    for worst in evaluation.word_errors.first.worst(shown):
        print(worst.format(marks_for(sys.stdout)))
    print(f"report {report}")
    return 0


def _cuts(manifest: Path) -> CutSet:
    try:
        from sumix_stream.data.manifests import load_cuts
    except ImportError as error:
        raise ValueError(
            f"manifests are read by Lhotse, and {error.name} is not installed: pip install 'sumix-stream[train]'"
        ) from None
    return load_cuts(manifest)


def _utterances(cuts: CutSet) -> Iterator[Utterance]:
    from sumix_stream.data.manifests import read_valid

    return read_valid(cuts)


@contextmanager
def _progress(manifest: Path) -> Iterator[tuple[CutSet, OnUtterance]]:
    """A manifest's cuts, and a progress bar over their audio, on a terminal only."""
    from tqdm import tqdm

    cuts = _cuts(manifest)
    total = sum(cut.duration for cut in cuts)
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}, {rate_fmt}]"
    with tqdm(total=total, unit=" s", bar_format=form, disable=None) as bar:
        yield cuts, lambda utterance, _: bar.update(utterance.duration)
