"""A step as one CUDA graph is the step."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from talkative import CONTEXT, LetterTokenizer, runtime_of, sound, talkative_model

from sumix_stream.runtime.cuda_graph import GRAPH_SIZES
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.runtime.torch import TensorRows
from sumix_stream.runtime.weights import Weights
from sumix_stream.streaming.stream import StreamingRecognizer


@pytest.mark.parametrize("mixer", ["fast", "expdecay", "attention"])
@torch.inference_mode()
def test_a_stream_that_waits_in_a_batch_disturbs_nobody(mixer):
    """What fills a graph's batch up: streams without a frame."""
    encoder = talkative_model(mixer).encoder
    rows = TensorRows(encoder.init_state(1, CONTEXT))
    step, feats = rows.of_step(encoder.step), torch.randn(5, 32, 80)
    table = torch.zeros(5, rows.size, dtype=torch.uint8)
    frames, after = step(feats[:3], torch.full((3,), 32), table[:3])
    among, rest = step(feats, torch.tensor([32, 32, 32, 0, 0]), table)
    torch.testing.assert_close(among[:3], frames, atol=1e-5, rtol=0)
    for mine, theirs in zip(rows.save(rest[0].numpy()).values(), rows.save(after[0].numpy()).values(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_cpu_s_tokens():
    """Streams of several ages, in batches of sizes that are filled up, one of them larger than the largest graph."""
    samples = sound(3.0)
    weights = Weights.of(deepcopy(talkative_model()).cuda())
    recognizer = StreamingRecognizer(make_runtime(weights, CONTEXT, "torch"), LetterTokenizer(), CONTEXT)
    assert recognizer.runtime.batch_sizes == GRAPH_SIZES
    streams = [recognizer.create_stream() for _ in range(GRAPH_SIZES[-1] + 6)]
    for n, stream in enumerate(streams):
        recognizer.accept_waveform(stream, 16_000, samples[: 48_000 - 600 * n])
        recognizer.input_finished(stream)
    recognizer.decode(streams[:1])
    recognizer.decode(streams[:11])
    while recognizer.decode(streams):
        pass
    for n, stream in list(enumerate(streams))[::7]:
        alone = StreamingRecognizer(runtime_of(), LetterTokenizer(), CONTEXT).create_stream()
        alone.feed(16_000, samples[: 48_000 - 600 * n])
        assert stream.result().tokens == alone.finish().tokens
