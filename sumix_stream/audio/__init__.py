"""Recordings and samples: read, check, resample, for whole utterances and for streams."""

from sumix_stream.audio.channels import MIX, parse_channel
from sumix_stream.audio.files import Limits, open_audio, read_audio
from sumix_stream.audio.pcm import RawFormat
from sumix_stream.audio.resampling import StreamResampler, resample
from sumix_stream.audio.samples import MAX_RATE, MIN_RATE, MODEL_RATE, AudioError, check_rate, check_samples

__all__ = [
    "MAX_RATE",
    "MIN_RATE",
    "MIX",
    "MODEL_RATE",
    "AudioError",
    "Limits",
    "RawFormat",
    "StreamResampler",
    "check_rate",
    "check_samples",
    "open_audio",
    "parse_channel",
    "read_audio",
    "resample",
]
