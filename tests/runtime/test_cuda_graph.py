"""A step as one CUDA graph is the step."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from talkative import CONTEXT, LetterTokenizer, runtime_of, sound, talkative_model

from sumix_stream.runtime.cuda_graph import GRAPH_SIZES, StepGraphs
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.runtime.torch import TensorRows
from sumix_stream.runtime.weights import Weights
from sumix_stream.streaming.stream import StreamingRecognizer


@pytest.mark.parametrize("mixer", ["fast", "expdecay", "attention"])
@torch.inference_mode()
def test_what_fills_a_batch_up_disturbs_nobody(mixer):
    """On the CPU, where the same buffers are stepped without a graph; batch after batch, the last chunks short."""
    encoder = talkative_model(mixer).encoder
    rows = TensorRows(encoder.init_state(1, CONTEXT))
    step = rows.of_step(encoder.step)
    graphs = StepGraphs(step, 32, rows.size, torch.device("cpu"))
    for count in (3, 11, 70, 8):
        tables = [torch.zeros(count, rows.size, dtype=torch.uint8)] * 2
        for num_frames in (32, 32, 19):
            feats, lengths = torch.randn(count, num_frames, 80), torch.full((count,), num_frames)
            lengths[-1] -= (num_frames < 32) * 9
            (expected, tables[0]), (frames, tables[1]) = (
                run(feats, lengths, table) for run, table in zip((step, graphs.step), tables, strict=True)
            )
            torch.testing.assert_close(frames[:, : expected.shape[1]], expected, atol=1e-5, rtol=0)
            for row in (0, count - 1) if num_frames == 32 else ():  # of streams that have not ended
                mine, theirs = (rows.save(table[row].numpy()) for table in tables)
                for name, part in mine.items():
                    np.testing.assert_allclose(part, theirs[name], atol=1e-4, err_msg=name)
    assert sorted(graphs._graphs) == [8, 16, 128]


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
