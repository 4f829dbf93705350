"""One function, many ways to it: the tokens are the same whichever way the audio takes."""

import numpy as np
import pytest
from every_client import browser_with_microphone
from every_way import compare, table
from talkative import LetterTokenizer, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.streaming.recognizer import Recognizer

pytest.importorskip("sherpa_onnx")

SECONDS = (0.3, 0.32, 1.7, 8.0)


@pytest.fixture(scope="module")
def browser():
    with browser_with_microphone() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("context", [ChunkContext(8, 2), ChunkContext(4, None)], ids=str)
def test_every_way_gives_the_same_tokens(context, bundle, browser):
    """Under contexts whose bundles other tests have too."""
    recognizer = Recognizer(talkative_model(), LetterTokenizer())
    folder = bundle("sherpa-onnx", "fast", context)
    audio = [(32767 * sound(seconds, seed=i)).astype(np.int16) for i, seconds in enumerate(SECONDS)]
    rows = compare(recognizer, context, audio, browser, longest=2.0, bundle=folder)
    assert not [row for row in rows if False in row.same.values()], table(rows, recognizer)
    assert (
        all(rows[0].same.values())
        and len(rows[0].same) >= 12
        and min(row.num_tokens for row in rows) > 0
        and rows[-1].num_tokens > 50
    )
