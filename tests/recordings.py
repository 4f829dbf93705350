"""Recordings as phones and browsers make them, written by PyAV."""

from pathlib import Path

import numpy as np
import pytest


def write_media(
    path: Path, samples: np.ndarray, sample_rate: int, codec: str = "aac", form: str | None = None, begin: float = 0.0
) -> Path:
    """Float samples (S,) or (S, 2) to a file of another kind; `begin`: seconds after a picture, in what can hold one.

    Skips the test where PyAV is missing.
    """
    av = pytest.importorskip("av", reason="PyAV, of the extra `media`, makes this file")
    channels = np.atleast_2d(samples.T).astype(np.float32)
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(str(path), "w", format=form) as container:
        if begin:
            film = container.add_stream("mpeg4", rate=10)
            film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream(codec, rate=sample_rate, layout=layout)
        if begin:
            for n in range(10):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * n, np.uint8), "rgb24")
                picture.pts = n
                container.mux(film.encode(picture))
            container.mux(film.encode(None))
        size = sound.codec_context.frame_size or 960
        resampler = av.AudioResampler(sound.codec_context.format, layout, sample_rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), "fltp", layout)
        frame.rate, frame.pts = sample_rate, round(begin * sample_rate)
        for given in (frame, None):
            for part in resampler.resample(given):
                container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path
