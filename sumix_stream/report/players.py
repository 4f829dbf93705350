"""Audio of single utterances for a page that needs no other file: FLAC as data URIs."""

import base64
import io
import logging
from collections.abc import Collection, Sequence

import numpy as np
import soundfile

from sumix_stream.data.manifests import SAMPLE_RATE, ManifestError, UtteranceError, load_cuts, load_samples

LONGEST = 20.0  # seconds of an utterance that are given
log = logging.getLogger(__name__)


def audio_of(manifests: Sequence[str], ids: Collection[str]) -> dict[str, str]:
    """FLAC (16 kHz, 16 bit) of the utterances `ids` as data URIs, by id, at most LONGEST seconds of each.

    Those that cannot be found or read are left out, with a line in the log: a page without its players is still one.
    """
    found: dict[str, str] = {}
    wanted = set(ids)
    if not wanted or not manifests:
        return found
    try:
        for cut in load_cuts(list(manifests)):
            if cut.id in wanted:
                wanted.remove(cut.id)
                try:
                    found[cut.id] = data_uri(load_samples(cut))
                except UtteranceError as error:
                    log.info("the page of the run lacks some audio: %s", error)
                if not wanted:
                    break
    except ManifestError as error:
        log.info("the page of the run lacks some audio: %s", error)
    return found


def data_uri(samples: np.ndarray) -> str:
    """Samples (S,) at 16 kHz as FLAC, at most LONGEST seconds of them."""
    with io.BytesIO() as file:
        soundfile.write(file, samples[: round(LONGEST * SAMPLE_RATE)], SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode("ascii")
