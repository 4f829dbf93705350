"""Audio of one stream on its way to the encoder: samples of any rate in, whole windows of feature frames out."""

from collections import deque

import numpy as np

from sumix_stream.audio import StreamResampler, check_samples
from sumix_stream.features import NUM_BINS, FbankStream


class FeatureQueue:
    """Resampler, filter bank, and the feature frames that wait.

    Args:
        model_rate: the filter bank's sample rate in Hz.
    """

    def __init__(self, model_rate: int) -> None:
        self.model_rate = model_rate
        self.sample_rate: int | None = None  # Hz, of the samples that come in
        self.finished = False
        self.num_frames = 0  # that wait
        self.resampler: StreamResampler | None = None
        self.fbank = FbankStream()
        self._frames: deque[np.ndarray] = deque()  # (n, 80) each

    def accept(self, sample_rate: int, samples: np.ndarray) -> None:
        """Take samples (S,). Raises ValueError as `Stream.feed` says, keeping nothing of them."""
        if self.finished:
            raise ValueError("samples after finish: this stream is complete, open a new one for the next utterance")
        if self.sample_rate is not None and sample_rate != self.sample_rate:
            raise ValueError(
                f"sample_rate changed from {self.sample_rate} to {sample_rate} Hz within a stream; "
                "open a new stream, or resample before feeding"
            )
        samples = check_samples(samples, sample_rate)
        if self.resampler is None:
            self.resampler = StreamResampler(sample_rate, self.model_rate)
            self.sample_rate = self.resampler.rate
        self._push(self.fbank.accept(self.resampler.accept(samples)))

    def finish(self) -> None:
        """Flush resampler and filter bank. Raises ValueError the second time."""
        if self.finished:
            raise ValueError("finish was called twice: this stream is complete")
        self.finished = True
        if self.resampler is not None:
            self._push(self.fbank.accept(self.resampler.finish()))
        self._push(self.fbank.finish())

    def peek(self, num_frames: int) -> np.ndarray:
        """The first frames (n, 80) that wait, n = num_frames or all there are."""
        parts, missing = [], num_frames
        for part in self._frames:
            if not missing:
                break
            parts.append(part[:missing])
            missing -= len(parts[-1])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, NUM_BINS), np.float32)

    def drop(self, num_frames: int) -> None:
        """Forget the first frames, no more than there are."""
        self.num_frames -= num_frames
        while num_frames:
            head = self._frames.popleft()
            if len(head) > num_frames:
                self._frames.appendleft(head[num_frames:])
            num_frames -= min(num_frames, len(head))

    @property
    def remainder_nbytes(self) -> int:
        """Bytes of the samples that resampler and filter bank hold back."""
        return (0 if self.resampler is None else self.resampler.nbytes) + self.fbank.nbytes

    def save(self) -> tuple[dict[str, np.ndarray], dict]:
        """Everything as arrays and plain values; `restore` is the inverse."""
        arrays = {"frames": self.peek(self.num_frames)}
        values = {"sample_rate": self.sample_rate, "finished": self.finished}
        fbank, values["fbank"] = self.fbank.save()
        arrays["fbank"] = fbank
        if self.resampler is not None:
            resampler, values["resampler"] = self.resampler.save()
            arrays["resampler"] = resampler
        return arrays, values

    @classmethod
    def restore(cls, model_rate: int, arrays: dict[str, np.ndarray], values: dict) -> "FeatureQueue":
        """Raises ValueError or KeyError for what `save` does not write."""
        queue = cls(model_rate)
        queue.sample_rate, queue.finished = values["sample_rate"], values["finished"]
        if type(queue.finished) is not bool or queue.finished != bool(values["fbank"]["finished"]):
            raise ValueError(f"finished must be true or false throughout, got {queue.finished!r}")
        queue.fbank = FbankStream.restore(arrays["fbank"], values["fbank"])
        if queue.sample_rate is not None:
            queue.resampler = StreamResampler(queue.sample_rate, model_rate)
            queue.resampler.restore(arrays["resampler"], values["resampler"])
            if queue.finished != bool(values["resampler"]["finished"]):
                raise ValueError("a resampler and its filter bank finish together")
        frames = arrays["frames"]
        if frames.ndim != 2 or frames.shape[1] != NUM_BINS or frames.dtype != np.float32:
            raise ValueError(f"feature frames must be (n, {NUM_BINS}) float32, got {frames.shape} {frames.dtype}")
        if len(frames) > queue.fbank.num_frames or not np.isfinite(frames).all():
            raise ValueError(f"{len(frames)} feature frames wait of {queue.fbank.num_frames}, or some are not finite")
        queue._push(frames)
        return queue

    def _push(self, feats: np.ndarray) -> None:
        if len(feats):
            self._frames.append(feats)
            self.num_frames += len(feats)
