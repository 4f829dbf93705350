"""Our bundle in unmodified sherpa-onnx: its Python recogniser, and its websocket server over real connections."""

from collections.abc import Iterator

import pytest
import stock_sherpa
from stock_sherpa import NEEDED, PROGRAM, padded, stock_server
from talkative import talkative_model

from sumix_stream.context import ChunkContext

pytest.importorskip("sherpa_onnx")

CONTEXTS = [ChunkContext(8, 2), ChunkContext(4, None)]


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_the_stock_recogniser_gives_the_same_tokens(context, bundle, expected, sounds):
    audio = [padded(samples, context) for samples in sounds]
    found, largest = stock_sherpa.recognise(bundle("sherpa-onnx", "fast", context), audio, least=3)
    assert largest > 2
    for tokens, samples in zip(found, audio, strict=True):
        assert tokens == expected("fast", context, samples)
        assert tokens


@pytest.mark.parametrize("kind", ["by eight", "branchformer"])
def test_other_encoders_give_the_same_tokens(kind, bundle, expected, sounds):
    context, timebase = CONTEXTS[0], talkative_model(kind).timebase
    audio = [padded(samples, context, timebase) for samples in sounds[:3]]
    found, _ = stock_sherpa.recognise(bundle("sherpa-onnx", kind, context), audio, least=3)
    for tokens, samples in zip(found, audio, strict=True):
        assert tokens == expected(kind, context, samples)
        assert tokens


@pytest.fixture(scope="module", params=CONTEXTS, ids=str)
def server(request, bundle) -> Iterator[tuple[ChunkContext, int]]:
    if PROGRAM is None:
        pytest.skip(NEEDED)
    with stock_server(bundle("sherpa-onnx", "fast", request.param)) as port:
        yield request.param, port


def test_the_stock_server_gives_the_same_tokens(server, expected, sounds):
    context, port = server
    audio = [padded(samples, context) for samples in sounds]
    for tokens, samples in zip(stock_sherpa.ask(port, audio), audio, strict=True):
        assert tokens == expected("fast", context, samples)
        assert tokens
