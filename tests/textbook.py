"""What recognition is held to: greedy search as the equations say, and the masked forward of whole utterances."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sumix_stream.context import ChunkContext
from sumix_stream.evaluate.exactness import encode_masked
from sumix_stream.runtime.registry import make_runtime
from sumix_stream.search.greedy import Emissions, greedy_decode
from sumix_stream.search.hypothesis import Hypothesis
from sumix_stream.search.options import GREEDY, SearchOptions
from sumix_stream.streaming.offline import to_hypothesis
from sumix_stream.tasks.transducer.model import Transducer
from sumix_stream.tokenizer import Tokenizer


@torch.inference_mode()
def textbook(model: Transducer, enc: Tensor, max_symbols: int = 5) -> Emissions:
    """enc (T, D) of one utterance: one frame, one token at a time."""
    result = Emissions([], [], [])
    pred = model.predictor(torch.zeros(1, 0, dtype=torch.int64))[:, -1]
    for frame, x in enumerate(enc):
        for _ in range(max_symbols):
            probabilities = model.joiner(x[None], pred)[0].softmax(-1)
            token = int(probabilities.argmax())
            if token == model.blank_id:
                break
            result.tokens.append(token)
            result.frames.append(frame)
            result.confidence.append(float(probabilities[token]))
            pred = model.predictor(torch.tensor([result.tokens]))[:, -1]
    return result


def transcribe_masked(
    model: Transducer,
    tokenizer: Tokenizer,
    waveforms: Sequence[np.ndarray],
    context: ChunkContext,
    options: SearchOptions = GREEDY,
) -> list[Hypothesis]:
    """What streams are held to: `Encoder.forward` of the whole batch, then PyTorch's greedy search over all of it."""
    runtime = make_runtime(model, context, "torch")
    found, _ = greedy_decode(runtime, *encode_masked(model, waveforms, context), options=options)
    return [to_hypothesis(model.timebase, tokenizer, emitted) for emitted in found]
