"""Serve a model to browsers (the page at /) and programs (websocket at /stream; see sumix_stream/serve/PROTOCOL.md)."""

import argparse
import sys
from functools import partial
from pathlib import Path

from sumix_stream.cli import search_options
from sumix_stream.cli.search_options import left_context


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="experiment directory (its best, else its last), checkpoint or bundle directory")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all; default 127.0.0.1")
    add("--port", default=6006, type=int, help="default 6006; 0 = any free port, which the log names")
    add("--chunk", default="default", help="a duration (640ms) or encoder frames (16); default 640ms, or the bundle's")
    add(
        "--left-context",
        default="default",
        type=left_context,
        help="chunks, or unlimited; 4 or the bundle's",
    )
    ends = "seconds that end a segment: silence without text, silence after text, length; default 2.4 1.2 20"
    add("--endpoint", default=[2.4, 1.2, 20.0], type=float, nargs=3, metavar="SECONDS", help=ends)
    add("--reset-predictor", action="store_true", help="forget the text at the end of a segment: for hours of audio")
    again = "hear each segment again under full context when it ends; a stream may also ask for it, or not to have it"
    add("--second-pass", action="store_true", help=again)
    add("--workers", type=int, help="processes that recognise; default one a core, at most 8; 1 on a GPU")
    add("--max-streams", default=64, type=int, help="streams at a time, more are refused with 503; default 64")
    add("--max-seconds", default=14_400.0, type=float, help="seconds of audio and time a stream; default 14400")
    add("--max-bytes", default=1 << 31, type=int, help="bytes of audio a stream; default 2 GiB")
    add("--idle-seconds", default=30.0, type=float, help="seconds without audio that end a stream; default 30")
    held = "seconds without audio that a client's keepalives may bridge; default 600"
    add("--keepalive-seconds", default=600.0, type=float, help=held)
    add("--drain-seconds", default=30.0, type=float, help="seconds that open streams have after SIGTERM; default 30")
    add("--max-upload-bytes", default=100 << 20, type=int, help="bytes of an uploaded recording; default 100 MiB")
    add("--max-upload-seconds", default=7_200.0, type=float, help="seconds of audio in one; default 7200")
    add("--max-uploads", default=8, type=int, help="uploaded recordings at a time, each a stream; default 8")
    add("--streams-per-client", type=int, help="streams at a time from one address (IPv6: one /64); default all")
    add("--token", help="who streams must show it; better in the environment, as SUMIX_SERVE_TOKEN")
    add("--tokens", type=Path, metavar="FILE", help="YAML list of tokens: name, token, streams, seconds_a_day")
    sites = "sites whose pages may stream too: https://app.example, https://*.example, or * for all"
    add("--allow-origin", default=[], nargs="+", metavar="ORIGIN", help=sites)
    proxies = "addresses or networks whose X-Forwarded-For and X-Forwarded-Host are believed"
    add("--trusted-proxies", default=[], nargs="+", metavar="NETWORK", help=proxies)
    add("--base-path", default="", metavar="/PATH", help="below which the server's paths are, where a proxy keeps it")
    add("--tls-cert", type=Path, help="certificate chain (PEM); browsers give a microphone only to https or localhost")
    add("--tls-key", type=Path, help="its private key (PEM)")
    add("--log-text", action="store_true", help="put recognised text into the log")
    where = "[HOST:]PORT for clients of {}, beside the server's own; without HOST loopback, port 0 = any free one"
    add("--wyoming", metavar="ADDRESS", help=where.format("Wyoming, such as Home Assistant"))
    add("--vosk", metavar="ADDRESS", help=where.format("vosk-server"))
    add("--sherpa", metavar="ADDRESS", help=where.format("sherpa-onnx's streaming server"))
    no_token = "let those ports take clients though this server asks for a token: their protocols have none"
    add("--allow-unauthenticated", action="store_true", help=no_token)
    add("--language", action="append", default=[], help="that the model knows, for --wyoming; repeatable; default en")
    search_options.add_arguments(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    from sumix_stream.serve import commands
    from sumix_stream.serve.limits import Limits

    limits = Limits(
        args.max_streams,
        args.max_seconds,
        args.max_bytes,
        args.idle_seconds,
        args.drain_seconds,
        streams_per_client=args.streams_per_client,
        max_upload_bytes=args.max_upload_bytes,
        max_upload_seconds=args.max_upload_seconds,
        max_uploads=args.max_uploads,
        keepalive_seconds=args.keepalive_seconds,
    )
    access = commands.make_access(
        args.token,
        args.tokens,
        origins=args.allow_origin,
        streams_per_client=args.streams_per_client,
        trusted_proxies=args.trusted_proxies,
    )
    listeners = commands.make_listeners(
        access,
        args.wyoming,
        args.vosk,
        args.sherpa,
        allow_unauthenticated=args.allow_unauthenticated,
        model=Path(args.model).resolve().name,
        languages=args.language,
    )
    tls = commands.tls_context(args.tls_cert, args.tls_key)
    options = {"access": access, "base_path": args.base_path, "tls": tls, "log_text": args.log_text}
    options |= {"workers": args.workers, "listeners": listeners, "model": Path(args.model).resolve().name}
    return commands.run(partial(search_options.streaming_recognizer, args), args.host, args.port, limits, **options)


def run() -> None:
    """Do what the arguments in sys.argv say, and exit with the status."""
    try:
        sys.exit(main(arguments()))
    except (ValueError, OSError) as error:
        sys.exit(f"serve: {error}")
