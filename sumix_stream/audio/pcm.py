"""Samples as bytes: what files without a header hold, and WAV that comes through a pipe and cannot be sought in."""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from sumix_stream.audio.samples import AudioError, check_rate

MAX_CHANNELS = 256
READ_BYTES = 1 << 16  # at most, at a time: what has arrived is handed on
UNKNOWN_BYTES = 0x7FFF_0000  # from here on a WAV header means that its length is not known; 0 means it too


def _telephone(magnitude: Callable[[np.ndarray], np.ndarray], positive: int) -> np.ndarray:
    """The 256 values of a code whose top bit is the sign, in [-1, 1]."""
    codes = np.arange(256)
    signs = np.where(codes & 0x80 == positive, 1, -1)
    return (signs * magnitude(codes) / 32768).astype(np.float32)


def _mu_law(code: np.ndarray) -> np.ndarray:  # ITU-T G.711; its bits are sent inverted
    code = ~code & 0x7F
    return ((((code & 0x0F) << 3) + 0x84) << (code >> 4)) - 0x84


def _a_law(code: np.ndarray) -> np.ndarray:  # ITU-T G.711; every other bit is sent inverted
    code = (code ^ 0x55) & 0x7F
    exponent, value = code >> 4, (code & 0x0F) << 4
    return np.where(exponent == 0, value + 8, (value + 0x108) << np.maximum(exponent - 1, 0))


class _Encoding(NamedTuple):
    num_bytes: int  # of a sample
    decode: Callable[[np.ndarray], np.ndarray]  # uint8 (n * num_bytes,) -> float32 (n,)


def _integer(dtype: str, bits: int) -> _Encoding:
    return _Encoding(np.dtype(dtype).itemsize, lambda data: data.view(dtype).astype(np.float32) / np.float32(2**bits))


def _float(dtype: str) -> _Encoding:
    return _Encoding(np.dtype(dtype).itemsize, lambda data: data.view(dtype).astype(np.float32))


def _three_bytes(data: np.ndarray) -> np.ndarray:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = data.reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def _table(values: np.ndarray) -> _Encoding:
    return _Encoding(1, values.__getitem__)


ENCODINGS = {
    "s16le": _integer("<i2", 15),
    "s16be": _integer(">i2", 15),
    "s24le": _Encoding(3, _three_bytes),
    "s32le": _integer("<i4", 31),
    "f32le": _float("<f4"),
    "f64le": _float("<f8"),
    "u8": _Encoding(1, lambda data: (data.astype(np.float32) - 128) / 128),
    "mulaw": _table(_telephone(_mu_law, 0x80)),
    "alaw": _table(_telephone(_a_law, 0x80)),
}
_WAV = {  # (format tag, bits) of a WAV header
    (1, 8): "u8",
    (1, 16): "s16le",
    (1, 24): "s24le",
    (1, 32): "s32le",
    (3, 32): "f32le",
    (3, 64): "f64le",
    (6, 8): "alaw",
    (7, 8): "mulaw",
}


class RawFormat(NamedTuple):
    """What samples without a header are: `encoding` of ENCODINGS, `sample_rate` in Hz, channels interleaved."""

    encoding: str = "s16le"
    sample_rate: int = 16_000
    num_channels: int = 1

    @classmethod
    def parse(cls, text: str) -> "RawFormat":
        """Of `s16le`, `mulaw,8000` or `s16le,48000,2`. Raises AudioError for anything else."""
        encoding, *numbers = text.split(",")
        if (
            encoding not in ENCODINGS
            or len(numbers) > 2
            or not all(n.strip().isascii() and n.strip().isdigit() for n in numbers)
        ):
            raise AudioError(
                f"samples without a header are described as ENCODING,RATE,CHANNELS (s16le,16000,1), got {text!r}; "
                f"encodings: {', '.join(ENCODINGS)}"
            )
        return cls(encoding, *map(int, numbers)).checked()

    def checked(self) -> "RawFormat":
        """Itself. Raises AudioError for an unknown encoding, an impossible rate or number of channels."""
        if self.encoding not in ENCODINGS:
            raise AudioError(f"encoding must be one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        if not 1 <= self.num_channels <= MAX_CHANNELS:
            raise AudioError(f"there must be 1 to {MAX_CHANNELS} channels, got {self.num_channels}")
        return self._replace(sample_rate=check_rate(self.sample_rate))


def decode(data: bytes, form: RawFormat) -> np.ndarray:
    """Float32 samples (n, channels) of whole frames."""
    encoding = ENCODINGS[form.encoding]
    return encoding.decode(np.frombuffer(data, np.uint8)).reshape(-1, form.num_channels)


class PcmStream:
    """Samples in the order of their arrival.

    Args:
        read: at most so many bytes, none at the end.
        num_bytes: of the samples; None: all that come.
    """

    def __init__(self, read: Callable[[int], bytes], form: RawFormat, num_bytes: int | None = None) -> None:
        self._read, self._form, self._left = read, form, num_bytes
        self._frame = ENCODINGS[form.encoding].num_bytes * form.num_channels
        self.sample_rate, self.num_channels = form.sample_rate, form.num_channels
        self.num_samples = None if num_bytes is None else num_bytes // self._frame

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks (n, channels) as they arrive. Raises AudioError where raw samples end within one."""
        held = b""
        while self._left is None or self._left > 0:
            data = self._read(READ_BYTES if self._left is None else min(READ_BYTES, self._left))
            if not data:
                break
            if self._left is not None:
                self._left -= len(data)
            held += data
            whole = len(held) // self._frame * self._frame
            if whole:
                yield decode(held[:whole], self._form)
                held = held[whole:]
        if held and self.num_samples is None and self._left is None:
            raise AudioError(
                f"ends {len(held)} bytes into a sample of {self._frame}: it is no {self._form.encoding} of "
                f"{self._form.num_channels} channel(s), or was cut off"
            )


def wav_stream(read: Callable[[int], bytes], begun: bytearray) -> PcmStream | None:
    """The samples of a WAV file that is read once, from its first byte; None where it is none, or compressed.

    Args:
        read: at most so many bytes, none at the end.
        begun: gets all bytes that were read, so that somebody else can begin anew.
    """

    def exactly(count: int) -> bytes:
        start = len(begun)
        while len(begun) < start + count and (data := read(start + count - len(begun))):
            begun.extend(data)
        return bytes(begun[start:])

    head = exactly(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    form = None
    for _ in range(64):  # chunks before the samples
        name_and_size = exactly(8)
        if len(name_and_size) < 8:
            return None
        name, (size,) = name_and_size[:4], struct.unpack("<I", name_and_size[4:])
        if name == b"data":
            unknown = size == 0 or size >= UNKNOWN_BYTES
            return form and PcmStream(read, form, None if unknown else size)
        if size > 1 << 20:
            return None
        content = exactly(size + size % 2)
        if name == b"fmt ":
            form = _wav_format(content)
    return None


def _wav_format(content: bytes) -> RawFormat | None:
    if len(content) < 16:
        return None
    tag, num_channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == 0xFFFE and len(content) >= 26:  # extensible: the tag is the first part of a GUID
        (tag,) = struct.unpack("<H", content[24:26])
    encoding = _WAV.get((tag, bits))
    return encoding and RawFormat(encoding, rate, num_channels).checked()
