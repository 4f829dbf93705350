"""Readers of what people have, one file a kind; `READERS` is the registry.

A reader is a module with `ABOUT`, `recognise(path)` and `read(path, options)`: see `base.Reader`.
"""

from pathlib import Path

from sumix_stream.corpora.readers import folder, kaldi, lhotse_manifests, subtitles, table, transcripts
from sumix_stream.corpora.readers.base import Reader

# In the order of asking: a folder may look like several.
READERS: dict[str, Reader] = {
    "kaldi": kaldi,
    "lhotse": lhotse_manifests,
    "table": table,
    "librispeech": transcripts,
    "subtitles": subtitles,
    "folder": folder,
}


def reader_of(path: Path, kind: str | None = None) -> str:
    """The kind of a source: the one named, or the first whose reader recognises it.

    Raises:
        ValueError: there is nothing at `path`, or no reader recognises it.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if kind is not None:
        if kind not in READERS:
            raise ValueError(f"--from {kind}: must be one of {', '.join(READERS)}")
        return kind
    for name, reader in READERS.items():
        if reader.recognise(path):
            return name
    kinds = "\n".join(f"  {name}: {reader.ABOUT}" for name, reader in READERS.items())
    raise ValueError(f"{path}: none of the kinds that can be read; name one with --from to see what it lacks:\n{kinds}")
