"""Recordings that clients upload: kept in a temporary file while they come, then decoded in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import numpy as np

from sumix_stream.serve import decoding
from sumix_stream.serve.within import within

_STALLED_SECONDS = 30.0  # that a decoder may take for its next samples
_CPU_SECONDS = 60  # that it may take, and what its audio takes beyond
_AUDIO_RATE = 50  # seconds of audio that are decoded a second at least
_WRITE_BYTES = 1 << 20  # that are written at a time
_DECODER = ("-m", decoding.__name__)
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")


class UploadError(ValueError):
    """A recording that cannot be decoded; the message says what it is and the remedy."""


class Spool:
    """Bytes of an upload, in a file without a name: it goes with its last handle, however the process ends."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="sumix-upload-")
        self._held = bytearray()
        self.num_bytes = 0

    async def write(self, data: bytes) -> None:
        """Append; a disk that is slow holds up nobody but this upload."""
        self._held += data
        self.num_bytes += len(data)
        if len(self._held) >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        held, self._held = self._held, bytearray()
        await asyncio.to_thread(self._file.write, held)

    async def rewound(self) -> IO[bytes]:
        """The file, at its beginning."""
        await self.flush()
        await asyncio.to_thread(self._file.flush)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return self._file

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


class Decoded:
    """An upload being decoded: `sample_rate` in Hz, and its samples."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process, self._name = process, name
        self.sample_rate = 0
        self.num_samples = 0

    @property
    def seconds(self) -> float:
        """Of audio, so far."""
        return self.num_samples / self.sample_rate

    async def begin(self) -> None:
        """Read the head."""
        kind, content = await self._part()
        if kind != decoding.HEAD:
            raise UploadError(self._broken())
        self.sample_rate = json.loads(content)["sample_rate"]

    async def blocks(self) -> AsyncIterator[np.ndarray]:
        """Float32 (n,), as they are decoded; who does not ask for the next lets the decoder wait."""
        while True:
            kind, content = await self._part()
            if kind == decoding.END:
                return
            if kind != decoding.AUDIO:
                raise UploadError(self._broken())
            samples = np.frombuffer(content, "<f4")
            self.num_samples += len(samples)
            yield samples

    async def _part(self) -> tuple[bytes, bytes]:
        try:
            kind, content = await within(_STALLED_SECONDS, self._read())
        except asyncio.TimeoutError:
            raise UploadError(f"{self._name}: takes too long to decode; convert it to WAV or FLAC") from None
        except asyncio.IncompleteReadError:
            raise UploadError(self._broken()) from None
        if kind == decoding.FAULT:
            raise UploadError(content.decode())
        return kind, content

    async def _read(self) -> tuple[bytes, bytes]:
        head = await self._process.stdout.readexactly(1 + decoding.SIZE_BYTES)
        return head[:1], await self._process.stdout.readexactly(int.from_bytes(head[1:], "little"))

    def _broken(self) -> str:
        return f"{self._name}: its decoder failed or took too much; convert it to WAV or FLAC"


@contextlib.asynccontextmanager
async def decode(spool: Spool, name: str, most_seconds: float) -> AsyncIterator[Decoded]:
    """Decode an upload, of one channel or the average of all.

    Args:
        name: for messages.
        most_seconds: of audio.
    Raises:
        UploadError: it is no audio, damaged, longer, or takes too long; also while blocks are asked for.
    """
    cpu_seconds = int(_CPU_SECONDS + most_seconds / _AUDIO_RATE)
    asked = json.dumps({"name": name, "seconds": most_seconds, "cpu_seconds": cpu_seconds})
    file = await spool.rewound()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *_DECODER,
        asked,
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(),
        close_fds=True,
    )
    try:
        found = Decoded(process, name)
        await found.begin()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.communicate())  # what is left in the pipe, and the end


def _environment() -> dict[str, str]:
    """Of a process that handles what strangers send: no secrets, one thread."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    above = str(Path(decoding.__file__).parents[2])
    path = os.pathsep.join([above, *filter(None, sys.path)])
    return kept | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
