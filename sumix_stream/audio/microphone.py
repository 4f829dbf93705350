"""Microphones, through sounddevice and PortAudio: blocks of samples as they are spoken."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from sumix_stream.audio.samples import MODEL_RATE, AudioError

BLOCK_SECONDS = 0.1
_MAX_WAITING = 300  # blocks: what is said half a minute before it is recognised is no longer live

_log = logging.getLogger(__name__)


def library() -> ModuleType:
    """sounddevice. Raises AudioError with the command that installs what is missing."""
    try:
        import sounddevice
    except ImportError:
        raise AudioError(
            "microphones are read by sounddevice, which is not installed: pip install 'sumix-stream[microphone]'"
        ) from None
    except OSError as error:
        raise AudioError(
            f"sounddevice finds no PortAudio ({error}): install it (Debian, Ubuntu: apt install libportaudio2; "
            "Fedora: dnf install portaudio)"
        ) from None
    return sounddevice


def _inputs(sounddevice: ModuleType) -> list[tuple[int, dict[str, Any]]]:
    """Devices that have input channels, with their numbers."""
    try:
        found = sounddevice.query_devices()
    except sounddevice.PortAudioError as error:
        raise AudioError(f"PortAudio cannot list its devices ({error})") from None
    return [(n, device) for n, device in enumerate(found) if device["max_input_channels"] > 0]


def list_devices() -> str:
    """A line for each microphone: its number, name, channels and sample rate; * marks the default.

    Raises AudioError where there is none, or no library for them.
    """
    sounddevice = library()
    found = _inputs(sounddevice)
    if not found:
        raise AudioError(_none())
    default = sounddevice.default.device[0]
    return "\n".join(
        f"{'*' if n == default else ' '} {n:3d}  {device['name']}, {device['max_input_channels']} channel(s), "
        f"{device['default_samplerate']:.0f} Hz"
        for n, device in found
    )


def _none() -> str:
    return (
        "there is no microphone: plug one in, and see `arecord -l`; over ssh or in a container the computer in front "
        "of you has one: open bin/serve's page there, or pipe (arecord -f S16_LE -r 16000 -t wav | ssh HOST ... -)"
    )


class Microphone:
    """A microphone that is open. `sample_rate` in Hz is its own; `blocks` are (n, channels) float32."""

    def __init__(self, name: str, sample_rate: int, num_channels: int, stopped: threading.Event) -> None:
        self.name, self.sample_rate, self.num_channels = name, sample_rate, num_channels
        self._waiting: queue.Queue[np.ndarray] = queue.Queue(_MAX_WAITING)
        self._lost, self._stopped = 0, stopped

    def accept(self, samples: np.ndarray, _frames: int, _time: Any, status: Any) -> None:
        """What sounddevice calls in a thread of its own: it must not wait."""
        if self._stopped.is_set():
            return
        if status:
            self._lost += 1
        try:
            self._waiting.put_nowait(samples.copy())
        except queue.Full:
            self._lost += 1

    def blocks(self) -> Iterator[np.ndarray]:
        """Until `stopped` and what has been heard until then; what was lost on the way is said."""
        lost = 0
        while True:
            try:
                block = self._waiting.get(timeout=BLOCK_SECONDS)
            except queue.Empty:
                if self._stopped.is_set():
                    return
                block = None
            if self._lost > lost:
                lost = self._lost
                _log.warning("%s: samples were lost, this computer is too busy to listen and recognise", self.name)
            if block is not None:
                yield block


@contextmanager
def open_microphone(device: str = "", stopped: threading.Event | None = None) -> Iterator[Microphone]:
    """A microphone that listens.

    Args:
        device: number or part of a name, as sounddevice takes it; "" is the default one.
        stopped: set by whoever has heard enough.

    Raises AudioError where there is none of that name, or it cannot be opened.
    """
    stopped = threading.Event() if stopped is None else stopped
    sounddevice = library()
    if not _inputs(sounddevice):
        raise AudioError(_none())
    chosen = int(device) if device.isdigit() else device or None
    try:
        about = sounddevice.query_devices(chosen, "input")
        rate, num_channels = round(about["default_samplerate"]) or MODEL_RATE, min(2, about["max_input_channels"])
        microphone = Microphone(about["name"], rate, num_channels, stopped)
        stream = sounddevice.InputStream(
            device=chosen,
            samplerate=rate,
            channels=num_channels,
            dtype="float32",
            blocksize=round(BLOCK_SECONDS * rate),
            callback=microphone.accept,
        )
    except (ValueError, sounddevice.PortAudioError) as error:
        shown = f"microphone {device}" if device else "the default microphone"
        raise AudioError(f"{shown} cannot be opened ({error}); --devices lists them") from None
    with stream:
        yield microphone
