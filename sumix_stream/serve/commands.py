"""What bin/serve does once its arguments are read."""

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

from sumix_stream.serve import pacing
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event, set_up
from sumix_stream.serve.server import Server
from sumix_stream.serve.workers import Spawn, default_workers
from sumix_stream.streaming.stream import StreamingRecognizer

TOKEN_VARIABLE = "SUMIX_SERVE_TOKEN"
_SWITCH_SECONDS = (
    0.0005  # that a thread may run Python while others wait: recognition comes back for each small product
)

_log = logging.getLogger(__name__)


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS with a certificate chain and its key (PEM files); None without both. Raises ValueError naming the files."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("TLS needs both: give --tls-cert and --tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{certificate}, {key}: no certificate and its key in PEM form ({error})") from None
    return context


def run(
    make: Callable[[], StreamingRecognizer],
    host: str,
    port: int,
    limits: Limits,
    *,
    workers: int | None = None,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    log_text: bool = False,
) -> int:
    """Serve until SIGTERM or SIGINT, then let open streams finish; a second signal ends at once. The exit code.

    make: makes the recogniser; with several workers each process calls it, so it must be picklable.
    workers: processes that recognise (of one: a thread); None = `workers.default_workers`.
    token: None = that of the environment variable SUMIX_SERVE_TOKEN, if it is set.
    """
    set_up()
    recognizer = make()
    sys.setswitchinterval(_SWITCH_SECONDS)
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    workers = default_workers(recognizer) if workers is None else workers
    spawn = None if workers == 1 else Spawn(make, workers)
    server = Server(recognizer, limits, spawn=spawn, token=token, log_text=log_text)
    return pacing.run(_serve(server, host, port, tls))


async def _serve(server: Server, host: str, port: int, tls: ssl.SSLContext | None) -> int:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(130)  # asked twice
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    port = await server.start(host, port, tls=tls)
    gc.collect()
    gc.freeze()  # a collection over all that is imported would hold up every stream
    recognizer = server.recognizer
    log_event(
        _log,
        "listening",
        url=f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}/",
        context=str(recognizer.context),
        latency_seconds=round(recognizer.timebase.chunk_latency_seconds(recognizer.context.chunk_size), 4),
        max_streams=server.limits.max_streams,
        runtime=recognizer.runtime.name,
        device=recognizer.runtime.device,
    )
    await stopping.wait()
    await server.stop()
    return 0
