"""What the server allows, in one place."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Raises ValueError for a limit that is not finite and above 0."""

    max_streams: int = 64  # connections that stream at a time; more are refused with 503
    max_seconds: float = 14_400.0  # of audio, and of time, a connection
    max_bytes: int = 1 << 31  # of audio a connection
    idle_seconds: float = 30.0  # without audio
    drain_seconds: float = 30.0  # from SIGTERM to the end of streams that are still open
    max_message_bytes: int = 1 << 20
    handshake_seconds: float = 10.0  # from connecting to the end of the HTTP request
    send_seconds: float = 10.0  # a message may wait for a slow reader
    max_unsent: int = 256  # final results that may wait for a slow reader
    pending_seconds: float = 5.0  # audio read beyond the next chunk, then the sender is paused
    least_rate: float = 0.02  # seconds of audio a second that keep a connection from being idle
    frames_per_second: int = 1_000  # frames that are read of a connection; tiny ones and pings count as four
    max_request_bytes: int = 16_384  # of an HTTP request's head
    max_waiting: int = 512  # connections that do not stream (yet); one more, and the oldest of them is closed
    streams_per_client: int | None = None  # at a time from one address (IPv6: one /64); None = max_streams
    unresponsive_seconds: float = 20.0  # after which a worker process that answers nothing is ended and begun again
    max_upload_bytes: int = 100 << 20  # of a recording
    max_upload_seconds: float = 7_200.0  # of audio in it
    upload_seconds: float = 600.0  # until the whole of it has come
    max_uploads: int = 8  # recordings at a time; they take a stream each
    keepalive_seconds: float = 600.0  # that keepalives may hold a stream without audio, which earns it at `least_rate`

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            whole = isinstance(field.default, int) or field.default is None
            if whole and not isinstance(value, int):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be finite and above 0, got {value}")

    @property
    def bridged_seconds(self) -> float:
        """That keepalives may hold a stream: not less than without them."""
        return max(self.keepalive_seconds, self.idle_seconds)
