"""A stream as bytes: safetensors with a JSON header. Nothing is pickled, and no byte is believed unchecked."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from sumix_stream.runtime.weights import digest
from sumix_stream.search.greedy import Emissions
from sumix_stream.streaming.endpointing import OWN, Endpointing, EndpointRule
from sumix_stream.streaming.feature_queue import FeatureQueue
from sumix_stream.streaming.second_pass import Heard, SecondPass, Sent

if TYPE_CHECKING:
    from sumix_stream.streaming.stream import Stream, StreamingRecognizer

FORMAT = "sumix-stream snapshot"
VERSION = 2
_KEY = "sumix_stream"
_PARTS = ("features", "encoder", "search")


def dump(stream: Stream) -> bytes:
    """All of a stream, for `load`."""
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
    return safetensors.numpy.save(arrays, {_KEY: json.dumps(header)})  # one key: their order is not kept


def load(data: bytes, recognizer: StreamingRecognizer) -> Stream:
    """The stream that `dump` wrote. Raises ValueError saying what is wrong with the bytes, or whose they are."""
    header, arrays = _read(data)
    if header.get("format") != FORMAT:
        raise ValueError("this is no snapshot of a stream; give the bytes that Stream.snapshot returned")
    if header.get("version") != VERSION:
        raise ValueError(
            f"a snapshot of version {header.get('version')} cannot be read by this release, which reads {VERSION}; "
            "restore it with the release that took it"
        )
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
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
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
    stream.features = FeatureQueue.restore(recognizer.timebase.sample_rate, part("features"), values["features"])
    stream.encoder = recognizer.runtime.load(part("encoder"))
    stream.search = recognizer.search.restore(part("search"), values["search"])
    stream.carried = Emissions(*map(list, values.get("carried", ((), (), ()))))
    for name in ("num_encoded", "segment_start", "num_segments", "committed"):
        setattr(stream, name, int(values[name]))
    number, before, newest = values["sent"]
    stream.sent = Sent(int(number), Emissions(*map(list, before)), Emissions(*map(list, newest)))
    if stream.heard is not None:
        first, begin = map(int, values["heard"])
        like = stream.heard
        stream.heard = Heard.restored(like.most, like.overlap, like.step, part("heard")["frames"], first, begin)
    return stream


def _rules(stream: Stream) -> dict | str | None:
    """Those of a stream that it does not have of its recogniser."""
    rules = stream.endpointing
    if rules == stream.recognizer.endpointing:
        return OWN.value
    return None if rules is None else asdict(rules)


def _settings(recognizer: StreamingRecognizer) -> str:
    context = recognizer.context
    values = {"chunk_size": context.chunk_size, "left_context": context.left_context}
    return json.dumps(values | recognizer.search.describe(), sort_keys=True)


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
