"""LibriSpeech (Panayotov and others, ICASSP 2015, CC BY 4.0); this version prepares Mini LibriSpeech (OpenSLR 31)."""

from pathlib import Path

from sumix_stream.data.corpus import Stages, read_librispeech_part, shuffled, write_cuts, write_stats, write_tokenizer

TRAIN_PART = "train-clean-5"
VALID_PARTS = ("dev-clean-2", "test-clean")  # the first that is there


def _find_corpus(corpus: Path) -> Path:
    """The folder that holds the parts: `corpus` or `corpus/LibriSpeech`."""
    for folder in (corpus / "LibriSpeech", corpus):
        if (folder / TRAIN_PART).is_dir():
            return folder
    raise ValueError(
        f"--corpus {corpus}: neither it nor its folder LibriSpeech holds {TRAIN_PART}; "
        "leave --corpus out to download Mini LibriSpeech"
    )


def prepare_librispeech(
    out_dir: str | Path,
    *,
    parts: str = "mini",
    corpus: str | Path | None = None,
    vocab_size: int = 500,
    seed: int = 0,
) -> None:
    """Prepare the recipe `egs/librispeech` under `out_dir`: manifests, BPE tokenizer, feature statistics.

    Training is train-clean-5 (5.3 hours). Validation is dev-clean-2 where the corpus has it, else the readers of
    test-clean that are there; the test manifest is test-clean where it is there, else the validation part.

    Args:
        parts: only `mini` in this version.
        corpus: folder that holds `LibriSpeech/train-clean-5/...`; None downloads it into `out_dir/corpus`.
        vocab_size: BPE tokens, blank included.
    """
    if parts != "mini":
        raise ValueError(f"--parts {parts}: this version prepares only mini (Mini LibriSpeech, 5 hours)")
    out_dir = Path(out_dir).resolve()
    root = _find_corpus(Path(corpus).resolve()) if corpus is not None else _download(out_dir / "corpus")
    present = [part for part in VALID_PARTS if (root / part).is_dir()]
    if not present:
        raise ValueError(f"{root}: validation needs dev-clean-2 or test-clean there")
    stages = Stages(out_dir)

    def write_manifests() -> None:
        write_cuts(shuffled(read_librispeech_part(root / TRAIN_PART), seed), out_dir / "cuts_train.jsonl.gz")
        write_cuts(read_librispeech_part(root / present[0]), out_dir / "cuts_valid.jsonl.gz")
        write_cuts(read_librispeech_part(root / present[-1]), out_dir / "cuts_test.jsonl.gz")

    stages.run("manifests", {"corpus": root, "valid": present, "seed": seed}, write_manifests)
    stages.run("tokenizer", {"type": "bpe", "size": vocab_size}, lambda: write_tokenizer(out_dir, vocab_size, "bpe"))
    stages.run("stats", {}, lambda: write_stats(out_dir))


def _download(folder: Path) -> Path:
    from lhotse.recipes import download_librispeech

    try:
        return Path(download_librispeech(folder, dataset_parts="mini_librispeech"))
    except OSError as error:
        raise ValueError(
            f"Mini LibriSpeech could not be downloaded to {folder} ({error}); give a copy with --corpus"
        ) from error
