"""The compiled filter bank against the one filter bank."""

import numpy as np
import pytest
import torch
from conftest import needs_numba
from talkative import sound

from sumix_stream.features import FbankStream, fbank
from sumix_stream.runtime.compiled_fbank import compiled_log_mel, whole_fbank

pytestmark = needs_numba


@pytest.mark.parametrize("num_samples", [0, 1, 79, 80, 279, 280, 281, 1000, 16_000, 170_001])
def test_equal_to_the_filter_bank(num_samples):
    samples = sound(11.0)[:num_samples]
    samples[num_samples // 3 : num_samples // 2] = 0.0
    torch.testing.assert_close(whole_fbank(samples), fbank(samples), atol=4e-6, rtol=0)


@pytest.mark.parametrize("push", [1, 160, 777, 5000])
def test_streams_have_the_same_bits_whatever_their_packets(push):
    samples = sound(3.0, seed=push)[: 40 * push if push == 1 else None]
    samples = np.concatenate([samples, np.zeros(500, np.float32)])
    stream = FbankStream(compiled_log_mel())
    parts = [stream.accept(samples[i : i + push]) for i in range(0, len(samples), push)]
    assert torch.equal(torch.cat([*parts, stream.finish()]), whole_fbank(samples))
