"""Manifests with their audio in tar files (Lhotse Shar): read in sequence, as object stores and many nodes like it."""

import json
import shutil
from functools import partial
from pathlib import Path

from lhotse import MonoCut
from lhotse.shar import SharWriter

from sumix_stream.corpora.preparation import empty_folder, read_lines
from sumix_stream.corpora.stages import parallel, replace_text, sha256

SHARD_SIZE = 1000  # utterances


def write_shar(manifest: Path, folder: Path, *, shard_size: int = SHARD_SIZE, jobs: int | None = None) -> bool:
    """Write the cuts of `manifest` and their audio (FLAC) as `folder/cuts.NNNNNN.jsonl.gz` and `recording.NNNNNN.tar`.

    Shards that are there from an interrupted run with the same manifest are kept. `load_cuts` and the recipes'
    `data.train_cuts` take `folder`. Beside it come a marker and `<folder's name>.SHA256SUMS` (inside, Lhotse would take
    them for data). True when anything was written.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 utterance, got {shard_size}")
    source = json.dumps({"manifest": sha256(manifest), "shard_size": shard_size})
    marker = folder.with_name(f".{folder.name}.source")
    if not marker.exists() or marker.read_text() != source or not folder.is_dir():
        empty_folder(folder)
        replace_text(marker, source)
    lines = list(read_lines(manifest))
    shards = [(i, lines[at : at + shard_size]) for i, at in enumerate(range(0, len(lines), shard_size))]
    missing = [shard for shard in shards if not (folder / _cuts_name(shard[0])).exists()]
    sums = folder.with_name(f"{folder.name}.SHA256SUMS")
    if not missing and sums.exists():
        print(f"{folder}: already done")
        return False
    write = partial(_write_shard, folder=folder)
    for _ in parallel(write, missing, jobs, f"{folder.name}: Shar", "shard"):
        pass
    files = sorted(folder.iterdir())
    checksums = parallel(sha256, files, jobs, f"{folder.name}: checksums", "file")
    sums_of = zip(checksums, files, strict=True)
    replace_text(sums, "".join(f"{checksum}  {folder.name}/{file.name}\n" for checksum, file in sums_of))
    print(f"{folder}: {len(lines)} utterances in {len(shards)} shards")
    return True


def _cuts_name(index: int) -> str:
    return f"cuts.{index:06d}.jsonl.gz"


def _write_shard(shard: tuple[int, list[str]], folder: Path) -> None:
    index, lines = shard
    aside = empty_folder(folder.with_name(f".{folder.name}.part.{index:06d}"))
    with SharWriter(aside, {"recording": "flac"}, shard_size=len(lines), shard_offset=index) as writer:
        for line in lines:
            writer.write(MonoCut.from_dict(json.loads(line)))
    audio = f"recording.{index:06d}.tar"
    (aside / audio).replace(folder / audio)
    (aside / _cuts_name(index)).replace(folder / _cuts_name(index))  # last: what is there is whole
    shutil.rmtree(aside)
