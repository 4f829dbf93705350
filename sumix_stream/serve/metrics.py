"""Figures for Prometheus; each server has its own registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """What the server counts. Names begin with `sumix_`; times are in seconds."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.streams = Gauge("sumix_streams", "Streams open now", registry=registry)
        self.max_streams = Gauge("sumix_max_streams", "Streams allowed at a time", registry=registry)
        self.connections = Gauge("sumix_connections", "Connections open now, streaming or not", registry=registry)
        self.workers = Gauge("sumix_workers_responsive", "Workers that recognise and answer", registry=registry)
        of = ["protocol"]
        self.open = Gauge("sumix_protocol_streams", "Streams open now, by their protocol", of, registry=registry)
        self.opened = Counter("sumix_streams_opened", "Streams accepted, by their protocol", of, registry=registry)
        self.refused = Counter("sumix_refused", "Streams refused before the upgrade", ["reason"], registry=registry)
        self.errors = Counter("sumix_errors", "Streams ended with an error", ["code"], registry=registry)
        self.audio = Counter("sumix_audio_seconds", "Audio taken in", registry=registry)
        self.latency = Histogram(
            "sumix_chunk_latency_seconds",
            "From the arrival of the audio that completed a chunk to its result",
            buckets=_SECONDS,
            registry=registry,
        )
        self.second_pass = Histogram(
            "sumix_second_pass_seconds",
            "From the end of a segment to its result by the second pass",
            buckets=_SECONDS,
            registry=registry,
        )
        self.step = Histogram("sumix_step_seconds", "Recognition of one batch", buckets=_SECONDS, registry=registry)
        self.batch = Histogram("sumix_batch_streams", "Streams in a batch", buckets=_STREAMS, registry=registry)

    def text(self) -> str:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, 0 if there is none yet."""
        samples = (sample for metric in self._registry.collect() for sample in metric.samples)
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())
