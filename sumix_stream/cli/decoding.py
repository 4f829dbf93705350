"""What bin/decode and bin/stream_decode do once their arguments are read: print, write reports, return an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sumix_stream.audio import read_audio, resample
from sumix_stream.context import ChunkContext
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.search.words import words_of
from sumix_stream.streaming.endpointing import Endpointing
from sumix_stream.streaming.live import play_words
from sumix_stream.streaming.offline import transcribe_batch, transcribe_nbest
from sumix_stream.streaming.recognizer import Recognizer
from sumix_stream.streaming.second_pass import LONGEST, SecondPass

if TYPE_CHECKING:
    from lhotse import CutSet

    from sumix_stream.data.manifests import Utterance
    from sumix_stream.evaluate.error_rates import Evaluation, OnUtterance

BAD_INPUT = 2  # exit code


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
) -> int:
    """Decode a manifest as live streams; print figures and write the report."""
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
    return _report(evaluation, manifest, out, options)


def score_masked(
    recognizer: Recognizer,
    manifest: Path,
    context: ChunkContext,
    out: Path,
    batch_size: int,
    options: SearchOptions = GREEDY,
) -> int:
    """Decode a manifest in whole utterances; print figures and write the report."""
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
    return _report(evaluation, manifest, out, options)


def print_text(
    recognizer: Recognizer,
    paths: Sequence[Path],
    context: ChunkContext,
    times: bool,
    options: SearchOptions = GREEDY,
) -> int:
    """Print the text of each file, with `times` one word a line at its time, and what else the n-best list holds."""
    runtime, tokenizer = recognizer.runtime(context), recognizer.tokenizer
    timebase = runtime.timebase

    def one(path: Path, samples: np.ndarray, sample_rate: int) -> bool:
        samples = resample(samples, sample_rate, timebase.sample_rate)
        if options.method == "greedy":
            (hypothesis,), others = transcribe_batch(runtime, tokenizer, [samples], options), []
        else:
            (((hypothesis, best), *others),) = transcribe_nbest(runtime, tokenizer, [samples], options)
        print(f"{path}: {hypothesis.text}")
        for word in words_of(hypothesis, tokenizer, timebase.encoder_frame_seconds) if times else []:
            print(f"  {word.start:8.2f} s  {word.text}")
        for rank, (other, score) in enumerate(others, 2):
            print(f"  {rank}. {score - best:+.2f}  {other.text}")
        return True

    return _each_file(paths, one)


def print_live(
    recognizer: Recognizer,
    paths: Sequence[Path],
    context: ChunkContext,
    push_seconds: float,
    realtime: bool,
    options: SearchOptions = GREEDY,
    second_pass: bool = False,
) -> int:
    """Print words as they come: how much has been heard, then each new word after its own time. At last the text, by
    the second pass where there is one."""
    again = SecondPass(max_seconds=LONGEST) if second_pass else None
    streaming = recognizer.streaming(context, search=options, second_pass=again)

    def one(path: Path, samples: np.ndarray, sample_rate: int) -> bool:
        model_rate = recognizer.timebase.sample_rate
        resampled = "" if sample_rate == model_rate else f", resampled to {model_rate} Hz"
        print(f"{path}: {len(samples) / sample_rate:.2f} s at {sample_rate} Hz{resampled}; heard | time and word")
        stream = streaming.create_stream()
        for heard, words in play_words(recognizer, stream, samples, sample_rate, push_seconds, realtime):
            print(f"{heard:8.2f} s | " + "   ".join(f"{word.start:.2f} {word.text}" for word in words), flush=True)
        final = streaming.final(stream)
        if second_pass and not final.heard_again:
            print(f"{path}: longer than {LONGEST:g} s, and so not heard again", file=sys.stderr)
        print(f"{path}: {final.hypothesis.text}")
        return True

    return _each_file(paths, one)


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


def check_exactness(recognizer: Recognizer, paths: Sequence[Path]) -> int:
    """Print the grid of differences between streaming and masked forward; exit code 1 if one is too large."""
    from sumix_stream.evaluate.exactness import exactness_grid

    def one(path: Path, samples: np.ndarray, sample_rate: int) -> bool:
        print(f"{path}: {len(samples) / sample_rate:.2f} s; C encoder frames of a chunk, L chunks of left context")
        grid = exactness_grid(
            recognizer.source, recognizer.tokenizer, samples, sample_rate, runtime=recognizer.runtime_name
        )
        print("\n".join(map(str, grid)))
        holds = all(cell.holds for cell in grid)
        print(
            f"largest difference {max(cell.max_difference for cell in grid):.2e}: {'exact' if holds else 'NOT EXACT'}"
        )
        return holds

    return _each_file(paths, one)


def _each_file(paths: Sequence[Path], one: Callable[[Path, np.ndarray, int], bool]) -> int:
    """Call `one` with every file; an error in one is named and stops no other. Exit code: 0, 1 if any call said no,
    2 if a file failed."""
    code, failed = 0, 0
    command = Path(sys.argv[0]).name
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text in any encoding
    for path in paths:
        try:
            if not one(path, *read_audio(path)):
                code = max(code, 1)
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except Exception as error:
            known = isinstance(error, ValueError | OSError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            named = reason if reason.startswith(f"{path}: ") else f"{path}: {reason}"
            print(f"{command}: {named}", file=sys.stderr)
            failed += 1
    if failed and len(paths) > 1:
        print(f"{command}: {failed} of {len(paths)} files could not be recognised", file=sys.stderr)
    return BAD_INPUT if failed else code


def _report(evaluation: Evaluation, manifest: Path, out: Path, options: SearchOptions) -> int:
    from sumix_stream.evaluate.scoring import write_report

    if not evaluation.word_errors.utterances:
        raise ValueError(f"{manifest}: none of its utterances could be read; see the reasons above")
    extra = {"cuts": str(manifest), **options.describe(), **evaluation.to_dict()}
    report = write_report(out, evaluation.word_errors, extra)
    print(evaluation.summary())
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
