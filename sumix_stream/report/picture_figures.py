"""The pictures of pictures.py on the run's page: with seconds below and tokens at their rows."""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sumix_stream.report.records import PICTURES, RunRecords

LABELS = 64  # width left of the pictures, for the tokens
LEAST_BETWEEN = 9  # rows' labels closer than this are left out


def picture_figures(run: RunRecords) -> Iterator[str]:
    """A figure for each utterance whose pictures are there."""
    for entry in run.pictures:
        try:
            yield _figure(run.exp_dir / PICTURES, entry)
        except (OSError, KeyError, ZeroDivisionError):
            continue  # drawn again at the next validation


def _figure(folder: Path, entry: dict[str, Any]) -> str:
    spectrogram, lattice = (_picture(folder / Path(entry[kind]).name) for kind in ("spectrogram", "lattice"))
    width, pieces = spectrogram[1], entry["pieces"]
    top, rows = spectrogram[2] + 8, len(pieces) + 1
    height = top + lattice[2] + 18
    parts = [
        f'<svg viewBox="0 0 {LABELS + width} {height}" style="max-width:{1.5 * (LABELS + width):.0f}px" role="img" '
        'aria-label="spectrogram and token lattice">',
        f'<image href="{spectrogram[0]}" x="{LABELS}" y="0" width="{spectrogram[1]}" height="{spectrogram[2]}"/>',
        f'<image href="{lattice[0]}" x="{LABELS}" y="{top}" width="{lattice[1]}" height="{lattice[2]}"/>',
    ]
    row_height, below = lattice[2] / rows, 1e9
    for number, piece in enumerate(pieces, 1):
        y = top + lattice[2] - (number + 0.5) * row_height + 3.5
        if below - y >= LEAST_BETWEEN:
            below = y
            parts.append(f'<text x="{LABELS - 5}" y="{y:.1f}" text-anchor="end">{escape(piece)}</text>')
    seconds = width * entry["frame_seconds"]
    for tenth in range(0, int(seconds * 2) + 1):
        x = LABELS + tenth / 2 / entry["frame_seconds"]
        parts.append(f'<text x="{x:.0f}" y="{height - 5}" text-anchor="middle">{tenth / 2:g}</text>')
    caption = (
        f"<figcaption>{escape(str(entry['id']))} <small>step {entry['step']}, {escape(entry['context'])}; "
        "log-mel features above; below, for each frame, the probability of having passed each token, and the best "
        "path; seconds</small></figcaption>"
    )
    text = f'<p class="soft">{escape(entry["text"])}</p>'
    return f'<figure class="picture">{caption}{text}{"".join(parts)}</svg></figure>'


def _picture(path: Path) -> tuple[str, int, int]:
    """Data URI, width and height."""
    with Image.open(path) as image:
        width, height = image.size
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), width, height
