"""Pictures of a few utterances as training goes on: what the model hears and where it puts the tokens.

T0 feature frames (10 ms), T encoder frames, U tokens. The lattice picture is the posterior of the transducer's simple
loss (arXiv 2206.13236, 3.2), from which training takes its pruning ranges: for each encoder frame, the probability that
the path leaves it after u tokens. Its columns sum to 1.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sumix_kernels import rnnt_loss_smoothed
from sumix_stream.config import LossConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data.manifests import Utterance, load_cuts, read_valid
from sumix_stream.features import whole_fbank
from sumix_stream.report.records import PICTURE_LIST, PICTURES
from sumix_stream.tasks.checkpoint import write_text_atomically
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer

LONGEST = 20.0  # seconds of an utterance that is drawn
BIN_PIXELS = 2  # height of a filter bank's bin
LEAST_ROW, MOST_ROW, LATTICE_PIXELS = 4, 12, 240  # height of a token's row, and of all where that leaves a choice
# Dark to bright, about evenly in lightness (anchors of the colour map viridis, CC0).
_ANCHORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=float)
_PATH = np.array([255, 80, 80], dtype=np.uint8)


class Alignment(NamedTuple):
    """Of one utterance: occupation (U+1, T), whose columns sum to 1, and the row that the best path leaves each frame
    at (T,): tokens emitted by then."""

    occupation: Tensor
    path: Tensor


def first_utterances(manifests: Sequence[str], count: int = 2) -> list[Utterance]:
    """The first utterances with a transcript of at most LONGEST seconds; none without manifests."""
    if not manifests:
        return []
    cuts = (cut for cut in load_cuts(manifests) if cut.duration <= LONGEST)
    return list(islice((utterance for utterance in read_valid(cuts) if utterance.text), count))


@torch.no_grad()
def align(
    model: Transducer, feats: Tensor, tokens: Sequence[int], context: ChunkContext, loss: LossConfig
) -> Alignment:
    """The alignment of feats (T0, 80) with tokens (U,) under a context. The model is in evaluation mode.

    Raises ValueError when there is no path: no token, or more of them than the frames allow.
    """
    feats = feats.to(model.device)
    symbols = torch.tensor([list(tokens)], device=model.device)
    lengths = torch.tensor([feats.shape[0]], device=model.device)
    enc, enc_lengths = model.encoder(feats[None], lengths, context)
    num_frames, num_tokens = int(enc_lengths), len(tokens)
    if num_tokens == 0 or (loss.rnnt_type != "regular" and num_tokens > num_frames):
        raise ValueError(f"{num_tokens} tokens in {num_frames} frames have no alignment to draw")
    _, (_, blank) = rnnt_loss_smoothed(
        model.simple_lm(model.predictor(symbols)).float(),
        model.simple_am(enc).float(),
        symbols,
        model.blank_id,
        loss.lm_only_scale,
        loss.am_only_scale,
        torch.tensor([[0, 0, num_tokens, num_frames]], device=model.device),
        loss.rnnt_type,
        loss.delay_penalty,
        "none",
        return_grad=True,
    )
    occupation = blank[0, :, :num_frames].float().cpu()
    return Alignment(occupation, best_path(occupation))


def best_path(occupation: Tensor) -> Tensor:
    """Of the paths that never go down and end on top, the one with most occupation in all: (U+1, T) -> rows (T,)."""
    rows, frames = occupation.shape
    score = torch.full((rows,), -torch.inf, dtype=torch.float64)
    score[0] = 0.0
    origins = []
    for t in range(frames):
        score, origin = torch.cummax(score, dim=0)
        origins.append(origin)
        score = score + occupation[:, t].double()
    path, row = torch.zeros(frames, dtype=torch.long), rows - 1
    for t in range(frames - 1, -1, -1):
        path[t] = row
        row = int(origins[t][row])
    return path


def spectrogram_pixels(feats: Tensor) -> np.ndarray:
    """(80 * BIN_PIXELS, T0, 3): low frequencies below, contrast from the quietest to the loudest per cent."""
    values = feats.T.flip(0).numpy()
    low, high = np.quantile(values, [0.01, 0.99])
    return _colours((values - low) / max(high - low, 1e-9)).repeat(BIN_PIXELS, axis=0)


def lattice_pixels(alignment: Alignment, columns_per_frame: int) -> np.ndarray:
    """(H, T * columns_per_frame, 3): no token yet below, the last on top, the best path as a line."""
    rows = alignment.occupation.shape[0]
    height = min(MOST_ROW, max(LEAST_ROW, LATTICE_PIXELS // rows))
    pixels = _colours(alignment.occupation.flip(0).numpy()).repeat(height, axis=0)
    for t, row in enumerate(alignment.path.tolist()):
        middle = (rows - 1 - row) * height + height // 2
        pixels[middle : middle + 2, t] = _PATH
    return pixels.repeat(columns_per_frame, axis=1)


class Pictures:
    """Draws the same utterances again and again.

    Args:
        manifests: cut manifests of the validation set.
    """

    def __init__(
        self, exp_dir: Path, manifests: Sequence[str], tokenizer: Tokenizer, context: ChunkContext, loss: LossConfig
    ) -> None:
        self._folder = Path(exp_dir) / PICTURES
        self._tokenizer, self._context, self._loss = tokenizer, context, loss
        self._utterances = first_utterances(manifests)

    def draw(self, model: Transducer, step: int) -> dict[str, np.ndarray]:
        """Write PNG files and their list into the experiment's folder `pictures`; the pixels (H, W, 3) by name."""
        drawn, entries = {}, []
        for number, utterance in enumerate(self._utterances, 1):
            feats = torch.from_numpy(whole_fbank(utterance.samples))
            tokens = self._tokenizer.encode(utterance.text)
            try:
                alignment = align(model, feats, tokens, self._context, self._loss)
            except ValueError:
                continue
            lattice = lattice_pixels(alignment, model.timebase.subsampling)
            images = {"spectrogram": spectrogram_pixels(feats), "lattice": lattice}
            self._folder.mkdir(parents=True, exist_ok=True)
            for kind, pixels in images.items():
                Image.fromarray(pixels).save(self._folder / f"utterance-{number}-{kind}.png", optimize=True)
                drawn[f"utterance-{number}/{kind}"] = pixels
            entries.append(
                {
                    "id": utterance.id,
                    "text": utterance.text,
                    "step": step,
                    "context": str(self._context),
                    "frame_seconds": model.timebase.seconds(model.timebase.frame_shift),
                    "pieces": [self._tokenizer.piece(token) for token in tokens],
                    "path": alignment.path.tolist(),
                    **{kind: f"utterance-{number}-{kind}.png" for kind in images},
                }
            )
        if entries:
            text = json.dumps({"step": step, "pictures": entries}, ensure_ascii=False)
            write_text_atomically(self._folder / PICTURE_LIST, text + "\n")
        return drawn


def _colours(values: np.ndarray) -> np.ndarray:
    """Numbers, 0 dark to 1 bright, as uint8 (..., 3)."""
    values = np.clip(values, 0, 1)
    position = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, position, _ANCHORS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)
