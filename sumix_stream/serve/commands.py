"""What bin/serve does once its arguments are read."""

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sumix_stream.serve import pacing
from sumix_stream.serve.access import ANYBODY, Access, Account, Origins, read_networks, read_tokens
from sumix_stream.serve.limits import Limits
from sumix_stream.serve.logs import log_event, set_up
from sumix_stream.serve.protocols.listener import Listener, is_loopback, read_address
from sumix_stream.serve.protocols.sherpa import Sherpa
from sumix_stream.serve.protocols.vosk import Vosk
from sumix_stream.serve.protocols.wyoming import PROGRAM, Wyoming
from sumix_stream.serve.server import Server
from sumix_stream.serve.workers import Spawn, default_workers
from sumix_stream.streaming.stream import StreamingRecognizer

TOKEN_VARIABLE = "SUMIX_SERVE_TOKEN"
_SWITCH_SECONDS = (
    0.0005  # that a thread may run Python while others wait: recognition comes back for each small product
)
_LOOK_SECONDS = 0.5  # between two looks whether anything still recognises

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


def make_access(
    token: str | None,
    tokens: Path | None = None,
    *,
    origins: Sequence[str] = (),
    streams_per_client: int | None = None,
    trusted_proxies: Sequence[str] = (),
) -> Access:
    """Who may stream, of the command's options. Raises ValueError naming the option and what is wrong with it.

    Args:
        token: None = that of the environment variable SUMIX_SERVE_TOKEN, if it is set. An empty one is refused: it
            would open the server to everybody.
        tokens: a file as `access.read_tokens` reads it; with `token`, both are taken.
    """
    named = "--token" if token is not None else TOKEN_VARIABLE
    token = os.environ.get(TOKEN_VARIABLE) if token is None else token
    if token is not None and not token.strip():
        raise ValueError(f"{named} is empty: give a token, or leave it out to let everybody stream")
    accounts = [] if token is None else [Account(ANYBODY, token)]
    if tokens is not None:
        accounts += read_tokens(tokens)
    return Access(accounts, Origins(origins), streams_per_client, read_networks(trusted_proxies))


def make_listeners(
    access: Access,
    wyoming: str | None = None,
    vosk: str | None = None,
    sherpa: str | None = None,
    *,
    allow_unauthenticated: bool = False,
    model: str = "",
    languages: Sequence[str] = (),
) -> list[Listener]:
    """Ports of other protocols, each [HOST:]PORT. Raises ValueError naming the option and what is wrong with it.

    Args:
        allow_unauthenticated: these protocols have no token: of a server that asks for one they are refused without
            this.
        model, languages: what clients are told of the model; no languages = en.
    """
    given = {"wyoming": wyoming, "vosk": vosk, "sherpa": sherpa}
    listeners: list[Listener] = []
    for name, text in given.items():
        if text is None:
            continue
        try:
            address = read_address(text)
        except ValueError as error:
            raise ValueError(f"--{name} {error}") from None
        if access.accounts and not allow_unauthenticated:
            raise ValueError(
                f"--{name}: this protocol has no token, and the server asks for one: everybody who reaches {address} "
                "could stream; leave it out, or add --allow-unauthenticated"
            )
        if name == "wyoming":
            listeners.append(Wyoming(address, model or PROGRAM, languages or ("en",)))
        else:
            listeners.append(Vosk(address) if name == "vosk" else Sherpa(address))
    return listeners


def run(
    make: Callable[[], StreamingRecognizer],
    host: str,
    port: int,
    limits: Limits,
    *,
    workers: int | None = None,
    access: Access | None = None,
    model: str = "sumix",
    base_path: str = "",
    tls: ssl.SSLContext | None = None,
    log_text: bool = False,
    listeners: Sequence[Listener] = (),
) -> int:
    """Serve until SIGTERM or SIGINT, then let open streams finish; a second signal ends at once. The exit code.

    make: makes the recogniser; with several workers each process calls it, so it must be picklable.
    workers: processes that recognise (of one: a thread); None = `workers.default_workers`.
    access: who may stream; None = everybody.
    listeners: ports of other protocols.
    model: the name that the model has for clients of OpenAI's API.
    """
    set_up()
    access = access or Access()
    unprotected = [] if access.accounts else [host]
    for reachable in unprotected + [listener.address.host for listener in listeners]:
        if not is_loopback(reachable):
            log_event(_log, "no token: everybody who reaches this address may stream", logging.WARNING, host=reachable)
    recognizer = make()
    sys.setswitchinterval(_SWITCH_SECONDS)
    workers = default_workers(recognizer) if workers is None else workers
    spawn = None if workers == 1 else Spawn(make, workers)
    options = {"access": access, "model": model, "base_path": base_path, "log_text": log_text}
    server = Server(recognizer, limits, spawn=spawn, listeners=listeners, **options)
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
        workers=server.num_workers,
        runtime=recognizer.runtime.name,
        device=recognizer.runtime.device,
        **{listener.name: str(listener.address) for listener in server.listeners},
    )
    waits = [asyncio.create_task(stopping.wait()), asyncio.create_task(_until_failed(server))]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if stopping.is_set():
        await server.stop()
        return 0
    log_event(_log, "nothing recognises any more; ending, so that the supervisor begins again", logging.ERROR)
    await server.stop(drain_seconds=0.0)
    return 1


async def _until_failed(server: Server) -> None:
    while not server.has_failed:
        await asyncio.sleep(_LOOK_SECONDS)
