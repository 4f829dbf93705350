"""Exported bundles and their files: what is in them, and how they are opened. `sumix_stream.export` writes them.

A bundle is a model under one context as three functions of numpy arrays: a chunk of the encoder, a token of the
predictor, the joiner. B streams, W feature frames of a window, C encoder frames of a chunk, D encoder and P predictor
channels, V tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sumix_kernels.machine import flags
from sumix_stream.checkpoint.layout import TOKENIZER
from sumix_stream.context import ChunkContext
from sumix_stream.runtime.threads import get_num_threads
from sumix_stream.timebase import Timebase
from sumix_stream.tokenizer import PieceTokenizer, Tokenizer

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger(__name__)
State = list[np.ndarray]  # streams on the first axis

ENCODER, JOINER, TOKENS, CARD = "encoder.onnx", "joiner.onnx", "tokens.txt", "card.json"
DECODER = "decoder.onnx"  # the predictor, in sherpa-onnx's words
PREDICTOR = "predictor.onnx"  # the same under plain names
WHOLE = "whole.onnx"  # the encoder under full context, for a second pass; a bundle need not have it
PROGRAM = "encoder.pt2"  # of torch.export
NEXT = "next."  # plain names: before the name of a state, that of the state after the step
CACHES = ("cache_last_channel", "cache_last_time", "cache_last_channel_len")  # sherpa-onnx: the encoder's state
# sherpa-onnx's metadata do not hold these two, and it does not mind more.
SAMPLE_RATE, LEFT_CONTEXT = "sumix_sample_rate", "sumix_left_context"
UNLIMITED = "unlimited"  # left context, in metadata


class BundleError(ValueError):
    """A bundle that is missing a file or is damaged; names the file and the remedy."""


class Bundle(ABC):
    """An exported model opened from its files by what will run them.

    blank_id: in the bundle's numbering of tokens. window: feature frames. offset: added to the bundle's ids, modulo V,
    gives the model's. frame_dim: D.
    """

    blank_id: int
    window: int
    vocab_size: int
    frame_dim: int
    context: ChunkContext
    timebase: Timebase
    offset: int = 0

    @abstractmethod
    def encode(self, feats: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        """feats (B, W, 80), lengths (B,) -> (B, C, D), (B,), next state."""

    @abstractmethod
    def predict(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """tokens (B,) -> (B, P), next state."""

    @abstractmethod
    def join(self, frames: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """(B, D), (B, P) -> logits (B, V)."""

    @abstractmethod
    def encoder_state(self, batch_size: int) -> State:
        """Of streams that have not begun."""

    @abstractmethod
    def predictor_state(self, batch_size: int) -> State:
        """Before the first blank, (B, layers, P) each."""


class OnnxFiles(Bundle):
    """Three ONNX files of a folder in onnxruntime.

    Raises BundleError for a file that is missing or damaged, or was written by something else.
    """

    files: tuple[str, str, str]  # encoder, predictor, joiner

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        _refuse_what_overflows(self.folder / CARD)
        self._encoder, self._predictor, self._joiner = (open_session(self.folder / name) for name in self.files)
        try:
            self._read(self._encoder.get_modelmeta().custom_metadata_map)
        except (KeyError, ValueError) as error:
            raise BundleError(
                f"{self.folder / ENCODER} lacks metadata of a bundle ({error}): export the checkpoint again"
            ) from None

    @property
    def has_second_pass(self) -> bool:
        """Whether it can hear whole segments."""
        return (self.folder / WHOLE).is_file()

    @cached_property
    def _whole(self) -> onnxruntime.InferenceSession:
        return open_session(self.folder / WHOLE)

    def encode_whole(self, feats: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole segments under full context: feats (B, F, 80), lengths (B,) -> (B, ceil(F / 4), D), (B,)."""
        more = -feats.shape[1] % self.timebase.subsampling
        given = {"feats": np.pad(feats, ((0, 0), (0, more), (0, 0))), "lengths": lengths}
        return tuple(self._whole.run(None, given))

    def _read(self, meta: dict[str, str]) -> None:
        raise NotImplementedError

    def _set_clock(self, sample_rate: str, subsampling: str, window: str, left_context: str) -> None:
        self.window = int(window)
        self.timebase = Timebase(sample_rate=int(sample_rate), subsampling=int(subsampling))
        left = None if left_context == UNLIMITED else int(left_context)
        self.context = ChunkContext(self.window // self.timebase.subsampling, left)

    def __getstate__(self) -> dict:
        """For pickle and copy: where the files are and what they hold; they are opened anew there."""
        return {"folder": self.folder.absolute(), "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict) -> None:
        """Raises BundleError where the files are gone, or are no longer those."""
        self.__init__(state["folder"])
        if self.fingerprint != state["fingerprint"]:
            raise BundleError(f"{self.folder} holds another model than when this was copied: load it again")

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the three files."""
        digest = hashlib.sha256()
        for name in self.files:
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()

    def predictor_state(self, batch_size: int) -> State:
        return [np.zeros((batch_size, *self._lstm), np.float32) for _ in range(2)]


class SherpaBundle(OnnxFiles):
    """Under sherpa-onnx's names; blank is the last token."""

    files = (ENCODER, DECODER, JOINER)
    offset = 1

    def _read(self, meta: dict[str, str]) -> None:
        self._set_clock(meta[SAMPLE_RATE], meta["subsampling_factor"], meta["window_size"], meta[LEFT_CONTEXT])
        self.blank_id = int(meta["vocab_size"])  # NeMo does not count blank
        self.vocab_size = self.blank_id + 1
        self._caches = [tuple(int(meta[f"{name}_dim{i}"]) for i in (1, 2, 3)) for name in CACHES[:2]]
        self._lstm = int(meta["pred_rnn_layers"]), int(meta["pred_hidden"])
        self.frame_dim = self._encoder.get_outputs()[0].shape[1]

    def encoder_state(self, batch_size: int) -> State:
        caches = [np.zeros((batch_size, *dims), np.float32) for dims in self._caches]
        return [*caches, np.zeros(batch_size, np.int64)]

    def encode(self, feats: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        given = dict(zip(("audio_signal", "length", *CACHES), (feats.transpose(0, 2, 1), lengths, *state)))
        frames, frame_lengths, *after = self._encoder.run(None, given)
        return frames.transpose(0, 2, 1), frame_lengths, after

    def predict(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        targets = tokens.astype(np.int32)[:, None]
        hidden, cell = (part.transpose(1, 0, 2) for part in state)
        given = {"targets": targets, "target_length": np.ones(len(tokens), np.int32)}
        out, _, *after = self._predictor.run(None, {**given, "states.1": hidden, "states.2": cell})
        return out[:, :, 0].copy(), [part.transpose(1, 0, 2).copy() for part in after]

    def join(self, frames: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        given = {"encoder_outputs": frames[:, :, None], "decoder_outputs": predicted[:, :, None]}
        return self._joiner.run(None, given)[0][:, 0, 0]


class OnnxBundle(OnnxFiles):
    """Under plain names; the model's own functions, token numbers and state."""

    files = (ENCODER, PREDICTOR, JOINER)

    def _read(self, meta: dict[str, str]) -> None:
        self._set_clock(meta["sample_rate"], meta["subsampling"], meta["window"], meta["left_context"])
        self.blank_id, self.vocab_size = int(meta["blank_id"]), int(meta["vocab_size"])
        self._lstm = int(meta["predictor_layers"]), int(meta["predictor_dim"])
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self._fresh = {i.name: (i.shape[1:], types[i.type]) for i in self._encoder.get_inputs()[2:]}
        self.frame_dim = self._encoder.get_outputs()[0].shape[2]

    def encoder_state(self, batch_size: int) -> State:
        return [np.zeros((batch_size, *shape), dtype) for shape, dtype in self._fresh.values()]

    def encode(self, feats: np.ndarray, lengths: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
        given = dict(zip(self._fresh, state))
        frames, frame_lengths, *after = self._encoder.run(None, {"feats": feats, "lengths": lengths, **given})
        return frames, frame_lengths, after

    def predict(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        out, *after = self._predictor.run(None, {"tokens": tokens, "hidden": state[0], "cell": state[1]})
        return out, after

    def join(self, frames: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return self._joiner.run(None, {"frames": frames, "predicted": predicted})[0]


def _refuse_what_overflows(card: Path) -> None:
    """Raises BundleError on x86-64 without VNNI for signed int8 weights, whose sums overflow there: cards of those name
    no `int8_products`. Elsewhere the log says that the bundle is for such processors alone."""
    try:
        told = json.loads(card.read_text(encoding="utf-8"))
        overflows = told["weights"] == "int8" and "int8_products" not in told
    except (OSError, ValueError, KeyError, TypeError):
        return  # a bundle runs without its card
    if not overflows:
        return
    told = f"{card.parent} has int8 weights in a layout that gives wrong words on x86-64 processors without VNNI"
    if platform.machine() in ("x86_64", "AMD64") and not flags() & {"avx512_vnni", "avx_vnni"}:
        raise BundleError(f"{told}, such as this one: export the checkpoint again")
    _log.warning("%s: export the checkpoint again before it goes to another machine", told)


def is_bundle(path: str | os.PathLike) -> bool:
    """Whether a path is the folder of an export, of whatever format and state."""
    return any((Path(path) / name).is_file() for name in (ENCODER, DECODER, PREDICTOR, PROGRAM))


def open_bundle(folder: str | os.PathLike) -> OnnxFiles:
    """A bundle of bin/export, in onnxruntime on the CPU. Raises BundleError for one that cannot be run."""
    folder = Path(folder)
    if (folder / PROGRAM).is_file():
        raise BundleError(
            f"{folder} holds torch.export programs, which are for PyTorch without this package: "
            "give the checkpoint they came from, or export it with --format sherpa-onnx or onnx"
        )
    return (OnnxBundle if (folder / PREDICTOR).is_file() else SherpaBundle)(folder)


def load_tokenizer(bundle: OnnxFiles) -> Tokenizer | PieceTokenizer:
    """The bundle's own tokenizer, or where there is none the pieces of tokens.txt, which write text and read none."""
    if (path := bundle.folder / TOKENIZER).is_file():
        return Tokenizer.load(path)
    path = bundle.folder / TOKENS
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ids = {int(number): piece for piece, number in (line.rsplit(" ", 1) for line in lines)}
        size = bundle.vocab_size
        return PieceTokenizer([ids[(i - bundle.offset) % size] for i in range(size)])
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is missing or damaged ({error}): copy or export the bundle again") from None


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """On the CPU, with as many threads as runtimes have. Raises BundleError naming a file that cannot be run."""
    try:
        import onnxruntime
    except ImportError:
        raise BundleError(
            f"{path} needs onnxruntime, which is not installed: pip install 'sumix-stream[onnx]'"
        ) from None
    if not path.is_file():
        raise BundleError(f"{path} is missing: copy or export the bundle again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    options.log_severity_level = 3  # errors: quantised graphs bring remarks on what was not fused
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise BundleError(
            f"{path} is damaged ({str(error).splitlines()[0]}): copy or export the bundle again"
        ) from None
