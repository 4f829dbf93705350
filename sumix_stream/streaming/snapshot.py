"""A stream as bytes: safetensors with a JSON header. Nothing is pickled, and no byte is believed unchecked."""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from sumix_stream.runtime.weights import digest
from sumix_stream.search.greedy import Emissions, check_emissions
from sumix_stream.streaming.endpointing import OWN, Endpointing, EndpointRule
from sumix_stream.streaming.feature_queue import FeatureQueue
from sumix_stream.streaming.second_pass import Heard, SecondPass, Sent
from sumix_stream.trees import check_count

if TYPE_CHECKING:
    from sumix_stream.streaming.stream import Stream, StreamingRecognizer

FORMAT = "sumix-stream snapshot"
VERSION = 2
_KEY = "sumix_stream"
_LEAST_KEY = 16  # bytes
_PARTS = ("features", "encoder", "search")


def dump(stream: Stream, key: bytes | None = None) -> bytes:
    """All of a stream, for `load`; signed with a key, if there is one. Raises ValueError for a short key."""
    recognizer = stream.recognizer
    features, feature_values = stream.features.save()
    search, search_values = recognizer.search.save(stream.search)
    encoder = recognizer.runtime.save(stream.encoder)
    arrays = {
        f"{part}/{name}": np.ascontiguousarray(array)
        for part, group in zip(_PARTS, (features, encoder, search), strict=True)
        for name, array in group.items()
    }
    if stream.heard is not None:
        arrays["heard/frames"] = np.ascontiguousarray(stream.heard.frames())
    body = json.dumps(
        {
            "features": feature_values,
            "search": search_values,
            "num_encoded": stream.num_encoded,
            "segment_start": stream.segment_start,
            "num_segments": stream.num_segments,
            "carried": list(stream.carried),
            "committed": stream.committed,
            "sent": [stream.sent.number, *map(list, (stream.sent.before, stream.sent.newest))],
            "heard": None if stream.heard is None else [stream.heard.first, stream.heard.begin],
            "second_pass": None if stream.second_pass is None else vars(stream.second_pass),
            "endpointing": _rules(stream),
        }
    )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": recognizer.runtime.fingerprint,
        "settings": _settings(recognizer),
        "stream": body,
        "sha256": _checksum(arrays, body),
    }
    if key is not None:
        header["hmac"] = _signature(header, key)
    return safetensors.numpy.save(arrays, {_KEY: json.dumps(header)})  # one key: their order is not kept


def load(data: bytes, recognizer: StreamingRecognizer, key: bytes | None = None) -> Stream:
    """The stream that `dump` wrote. Raises ValueError saying what is wrong with the bytes, or whose they are."""
    header, arrays = _read(data)
    if header.get("format") != FORMAT:
        raise ValueError("this is no snapshot of a stream; give the bytes that Stream.snapshot returned")
    if header.get("version") != VERSION:
        raise ValueError(
            f"a snapshot of version {header.get('version')} cannot be read by this release, which reads {VERSION}; "
            "restore it with the release that took it"
        )
    if key is not None and not hmac.compare_digest(str(header.get("hmac")).encode(), _signature(header, key).encode()):
        raise ValueError("this snapshot is not signed with this key: restore it with the key it was taken with")
    if header.get("sha256") != _checksum(arrays, header.get("stream", "")):
        raise ValueError("this snapshot is damaged: its checksum is wrong; take it again or copy it again")
    if header.get("model") != recognizer.runtime.fingerprint:
        raise ValueError("this snapshot is of another model's stream; restore it with the model it was taken with")
    if header.get("settings") != _settings(recognizer):
        raise ValueError(
            f"this snapshot was taken under {header.get('settings')}, but this recogniser is set to "
            f"{_settings(recognizer)}; make one of equal context and search"
        )
    try:
        return _rebuild(recognizer, json.loads(header["stream"]), arrays)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, IndexError, RuntimeError) as error:
        raise ValueError(f"this snapshot's content does not fit its header ({error}); take it again") from None


def _rebuild(recognizer: StreamingRecognizer, values: dict, arrays: dict[str, np.ndarray]) -> Stream:
    def part(name: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}

    again, rules = values["second_pass"], values["endpointing"]
    endpointing = OWN if rules == OWN.value else None
    if isinstance(rules, dict):
        endpointing = Endpointing(tuple(EndpointRule(**rule) for rule in rules["rules"]), rules["reset_predictor"])
    stream = recognizer.create_stream(
        endpointing=endpointing, second_pass=None if again is None else SecondPass(**again)
    )
    for name in ("num_encoded", "segment_start", "num_segments", "committed"):
        setattr(stream, name, check_count(name, values[name]))
    stream.features = FeatureQueue.restore(recognizer.timebase.sample_rate, part("features"), values["features"])
    _check_counts(stream)
    encoder = part("encoder")
    _check_encoder(encoder, stream.num_encoded)
    stream.encoder = recognizer.runtime.load(encoder)
    stream.search = recognizer.search.restore(part("search"), values["search"])
    recognizer.search.check(stream.search, stream.num_encoded)
    stream.carried = Emissions(*map(list, values.get("carried", ((), (), ()))))
    number, *sent = values["sent"]
    stream.sent = Sent(check_count("sent", number), *(Emissions(*map(list, found)) for found in sent))
    for found in (stream.carried, stream.sent.before, stream.sent.newest):
        check_emissions(found, recognizer.runtime.vocab_size, max(stream.num_encoded, stream.committed))
    if stream.heard is not None:
        _restore_heard(stream, part("heard")["frames"], *values["heard"])
    return stream


def _restore_heard(stream: Stream, frames: np.ndarray, first: int, begin: int) -> None:
    """What a second pass keeps ends with the feature frames that have been taken."""
    like, taken = stream.heard, stream.features.fbank.num_frames - stream.features.num_frames
    check_count("heard", first), check_count("heard", begin)
    if first + len(frames) != taken or not np.isfinite(frames).all():
        raise ValueError(f"features heard must be finite and end at frame {taken}, got {first} + {len(frames)}")
    stream.heard = Heard.restored(like.most, like.overlap, like.step, frames, first, begin)


def _rules(stream: Stream) -> dict | str | None:
    """Those of a stream that it does not have of its recogniser."""
    rules = stream.endpointing
    if rules == stream.recognizer.endpointing:
        return OWN.value
    return None if rules is None else asdict(rules)


def _check_counts(stream: Stream) -> None:
    """Encoder frames follow from the feature frames that have been taken."""
    recognizer, features = stream.recognizer, stream.features
    chunks, rest = divmod(features.fbank.num_frames - features.num_frames, recognizer.window)
    num_encoded = chunks * recognizer.context.chunk_size + recognizer.timebase.num_encoder_frames(rest)
    if stream.num_encoded != num_encoded or stream.segment_start > num_encoded or (rest and not stream.is_finished):
        raise ValueError(
            f"a stream never has {stream.num_encoded} encoder frames, a segment from {stream.segment_start} on and "
            f"{features.num_frames} feature frames of {features.fbank.num_frames} waiting"
        )


def _check_encoder(arrays: dict[str, np.ndarray], num_encoded: int) -> None:
    """What a runtime computes with: finite numbers, and counts of frames that there were."""
    for name, part in arrays.items():
        counts = part.dtype.kind in "iu" or name.endswith("counts")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise ValueError(f"{name} is not finite")
        if counts and part.size and not (0 <= part.min() and part.max() <= num_encoded):
            raise ValueError(f"{name} must be in 0..{num_encoded}, the encoder frames so far")


def _settings(recognizer: StreamingRecognizer) -> str:
    context = recognizer.context
    values = {"chunk_size": context.chunk_size, "left_context": context.left_context}
    return json.dumps(values | recognizer.search.describe(), sort_keys=True)


def _signature(header: dict, key: bytes) -> str:
    """HMAC-SHA256 of all that the header says; the checksum in it covers the rest."""
    if not isinstance(key, bytes) or len(key) < _LEAST_KEY:
        raise ValueError(f"a key must be at least {_LEAST_KEY} bytes, such as secrets.token_bytes(32)")
    signed = json.dumps({name: value for name, value in header.items() if name != "hmac"}, sort_keys=True)
    return hmac.new(key, signed.encode(), "sha256").hexdigest()


def _checksum(arrays: dict[str, np.ndarray], body: str) -> str:
    return digest(sorted(arrays.items()), body.encode())


def _read(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays. A file of safetensors begins with the length of its JSON, 8 bytes, little endian."""
    try:
        arrays = safetensors.numpy.load(bytes(data))
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        return dict(json.loads(metadata.get(_KEY, "{}"))), arrays
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"these {len(data)} bytes are no snapshot of a stream, or it was truncated ({error}); "
            "give what Stream.snapshot returned"
        ) from None
