"""Decodes an uploaded recording in a process of its own, which may fail, hang or be ended without harm to any stream.

    python -m sumix_stream.serve.decoding LIMITS < RECORDING

LIMITS is JSON. What comes out are parts, each a kind (a byte), a length (4 bytes, little endian) and so many bytes:
HEAD is JSON with sample_rate, AUDIO float32 samples of one channel, FAULT a sentence, END nothing.
"""

import json
import os
import sys
from typing import BinaryIO

try:
    import resource
except ImportError:  # no such limits here
    resource = None  # type: ignore[assignment]

from sumix_stream.audio import AudioError, Limits, open_audio

HEAD, AUDIO, FAULT, END = b"h", b"a", b"f", b"e"
SIZE_BYTES = 4
_MOST_MEMORY = 4 << 30  # bytes of addresses
_NICENESS = 5  # recognition goes first
_PIECE = 1 << 14  # samples


def main() -> None:
    asked = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no part
    _limit(asked["cpu_seconds"])
    try:
        limits = Limits(None, asked["seconds"])
        with open_audio("-", limits=limits, name=asked["name"]) as file:
            _put(out, HEAD, json.dumps({"sample_rate": file.sample_rate}).encode())
            for block in file.mono():
                for start in range(0, len(block), _PIECE):
                    _put(out, AUDIO, block[start : start + _PIECE].astype("<f4").tobytes())
        _put(out, END, b"")
    except BrokenPipeError:  # nobody wants it any more
        os._exit(1)
    except AudioError as error:
        _put(out, FAULT, str(error).encode())
    except MemoryError:
        _put(out, FAULT, f"{asked['name']}: takes more memory than it may have".encode())
    out.flush()


def _limit(cpu_seconds: int) -> None:
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    if resource is not None:
        for what, most in (
            (resource.RLIMIT_AS, _MOST_MEMORY),
            (resource.RLIMIT_CPU, cpu_seconds),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),  # it writes no files
        ):
            resource.setrlimit(what, (most, most))


def _put(out: BinaryIO, kind: bytes, content: bytes) -> None:
    out.write(kind + len(content).to_bytes(SIZE_BYTES, "little") + content)


if __name__ == "__main__":
    main()
