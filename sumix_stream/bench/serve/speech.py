"""What is spoken under load, and a model that answers: without any corpus or training, the same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sumix_stream.audio import read_audio, resample
from sumix_stream.config import PRESETS
from sumix_stream.context import ChunkContext
from sumix_stream.data.babble import babble
from sumix_stream.data.manifests import load_cuts, read_valid
from sumix_stream.features import whole_fbank
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.checkpoint import CONFIG, save_model, write_checkpoint
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tasks.transducer.predictor import LstmPredictor
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import train_tokenizer

TOKENS_PER_SECOND = 4.0  # of English in 500 BPE pieces
MAX_SYMBOLS = 10  # tokens a frame in sherpa-onnx, so wherever texts are compared
_RATE = Timebase().sample_rate
_LENGTHS = (4.0, 10.0)  # seconds of synthetic utterances, from the first to the last
_CONTEXT = ChunkContext(16, 4)
_STEEP, _FAR = 4.0, 4.0  # of tanh; and further out than speech comes, in deviations
_MANIFEST = (".jsonl", ".jsonl.gz")


def utterances_of(paths: Sequence[Path], count: int, least_seconds: float) -> list[np.ndarray]:
    """Utterances (S,) int16 at 16 kHz, at most `count`: of audio files, of Lhotse cut manifests, or without paths
    synthetic speech.

    Raises ValueError naming the file for what cannot be read or is shorter than `least_seconds`.
    """
    if not paths:
        rng = np.random.default_rng(0)
        return [_int16(babble(rng, _RATE, seconds)) for seconds in np.linspace(*_LENGTHS, count)]
    found: list[np.ndarray] = []
    for path in paths:
        if path.name.endswith(_MANIFEST) or path.is_dir():
            for utterance in read_valid(load_cuts(path)):
                if utterance.duration >= least_seconds:
                    found.append(_int16(utterance.samples))
                if len(found) == count:
                    return found
        else:
            samples, rate = read_audio(path)
            found.append(_int16(resample(samples, rate)))
            if len(found[-1]) < least_seconds * _RATE:
                raise ValueError(
                    f"{path}: has {len(found[-1]) / _RATE:.2f} s, needed are {least_seconds:.2f} s or more"
                )
    if not found:
        raise ValueError(f"{paths[0]}: no utterance of {least_seconds:.2f} s or more in it")
    return found[:count]


def whole_chunks(utterances: Sequence[np.ndarray], chunk_samples: int) -> list[np.ndarray]:
    """Utterances with silence up to a whole number of chunks: a server that fills up the last chunk hears the same."""
    least = _RATE // 20  # the filter bank's windows at the end see nothing but silence
    return [np.pad(one, (0, least + -(len(one) + least) % chunk_samples)) for one in utterances]


def joined(utterances: Sequence[np.ndarray], seconds: float, count: int) -> list[np.ndarray]:
    """Long utterances of exactly so many seconds, each a different sequence of the given ones."""
    size, rng = round(seconds * _RATE), np.random.default_rng(0)
    found = []
    for _ in range(count):
        parts = [utterances[rng.integers(len(utterances))]]
        while sum(map(len, parts)) < size:
            parts.append(utterances[rng.integers(len(utterances))])
        found.append(np.concatenate(parts)[:size])
    return found


def _int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


def talking_checkpoint(directory: Path, preset: str = "small", vocab_size: int = 500, seed: int = 0) -> Path:
    """A checkpoint of an untrained model that emits tokens as often as speech has them; made once.

    A search over it works as hard as one over a trained model. Its words mean nothing.
    """
    if not (directory / CONFIG).is_file():
        write_checkpoint(directory, lambda folder: _save_talking(folder, preset, vocab_size, seed))
    return directory


def _save_talking(folder: Path, preset: str, vocab_size: int, seed: int) -> None:
    tokenizer = train_tokenizer(_invented_text(), folder / "tokenizer.model", vocab_size)
    model = build_model(PRESETS[preset], tokenizer.vocab_size, seed)
    make_it_talk(model, tokenizer.unk_id)
    save_model(folder, model, tokenizer, {"about": f"untrained {preset} that emits tokens, for measurements"})


@torch.no_grad()
def make_it_talk(model: Transducer, unk_id: int) -> None:
    """Make an untrained model emit tokens as a trained one does, in place: TOKENS_PER_SECOND, one at a time, all along.

    Speech gives a sign, that of one direction of the encoder's frames, which changes so often. Half of the tokens
    belong to either sign. Blank wins unless the last token's sign is not the speech's; then the best token of the
    speech's sign does. Three joiner channels see to that; the others say which token is best.
    """
    rng = np.random.default_rng(1)
    feats = torch.from_numpy(whole_fbank(np.concatenate([babble(rng, _RATE, 6.0) for _ in range(5)])))
    model.set_normalisation(feats.mean(0), feats.std(0))
    for layer in model.encoder.layers:  # a trained model leans on its layers, an untrained one hardly
        layer.scale_residual_outputs((4 * model.config.encoder.num_layers) ** 0.5)
    frames = model.encoder(feats[None], torch.tensor([len(feats)]), _CONTEXT)[0][0]  # (T, D)
    direction, middle = _changing_sign(frames, TOKENS_PER_SECOND * model.timebase.encoder_frame_seconds)
    _remember_last_token_only(model.predictor)
    pred = model.predictor(torch.arange(model.vocab_size)[:, None])[:, -1]  # (V, P)
    spoken = torch.tensor([i for i in range(model.vocab_size) if i not in (model.blank_id, unk_id)])
    spoken = spoken[: model.predictor.dim // 2]  # as many tokens as channels can tell apart
    signs = torch.zeros(model.vocab_size)
    signs[spoken] = 1.0 - 2.0 * (spoken % 2)
    signs[model.blank_id] = 1.0  # the start
    known = signs != 0
    last = torch.linalg.lstsq(pred[known], signs[known, None], driver="gelsd").solution[:, 0]  # (P,)

    joiner = model.joiner
    for projection, x, weight in ((joiner.project_encoder, frames, 1.0), (joiner.project_predictor, pred, 0.5)):
        projection.weight.mul_(weight / (x @ projection.weight.T).std(0).mean())
    joiner.project_encoder.bias.copy_(-joiner.project_encoder.weight @ frames.mean(0))
    joiner.project_encoder.bias.sub_(joiner.project_predictor.weight @ pred.mean(0))
    both_plus, both_minus, speech = 0, 1, 2
    for channel, own, others, least in ((both_plus, 1, 1, _FAR), (both_minus, -1, -1, _FAR), (speech, 1, 0, 0)):
        joiner.project_encoder.weight[channel] = _STEEP * own * direction
        joiner.project_encoder.bias[channel] = _STEEP * (-own * middle - least)
        joiner.project_predictor.weight[channel] = _STEEP * _FAR * others * last
    joiner.output.weight.mul_(10)
    joiner.output.weight[:, [both_plus, both_minus]] = 0.0
    joiner.output.weight[:, speech] = 10.0 * signs
    joiner.output.weight[model.blank_id] = 0.0
    joiner.output.weight[model.blank_id, [both_plus, both_minus]] = 25.0
    joiner.output.bias.fill_(-100.0)
    joiner.output.bias[spoken] = 0.0
    joiner.output.bias[model.blank_id] = 40.0


def _changing_sign(frames: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """A direction (D,) of frames (T, D), of unit deviation, and the middle of what they have there: of many random ones
    that which crosses its middle most nearly `rate` times a frame."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(frames.shape[1], 256, generator=generator)
    directions /= (frames @ directions).std(0)
    along = frames @ directions  # (T, N)
    middles = along.median(0).values
    above = along > middles
    best = ((above[1:] != above[:-1]).float().mean(0) - rate).abs().argmin()
    return directions[:, best], middles[best]


def _remember_last_token_only(predictor: LstmPredictor) -> None:
    """Trained or not, a step costs the same."""
    predictor.lstm.weight_ih_l0.mul_(4)
    for name, parameter in predictor.lstm.named_parameters():
        if name.startswith("weight_hh"):
            parameter.zero_()
        elif name.startswith("bias_hh"):
            parameter[predictor.dim : 2 * predictor.dim] = -100.0  # the forget gates'


def _invented_text() -> list[str]:
    """Enough different words for 500 pieces."""
    rng = np.random.default_rng(2)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(2000)]
    return [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
