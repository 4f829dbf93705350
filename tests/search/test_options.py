"""Search options: what they refuse, and what greedy search makes of them."""

import math

import numpy as np
import pytest
import torch
from talkative import runtime_of, talkative_model

from sumix_stream.search.greedy import greedy_decode
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "beam"}, "method must be one of greedy, modified_beam, got 'beam'"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"beam": 2.0}, "beam must be at least 1, got 2.0"),
        ({"max_symbols": True}, "max_symbols must be at least 1, got True"),
        ({"nbest": 0}, "nbest must be at least 1, got 0"),
        ({"blank_penalty": math.nan}, "blank_penalty must be a finite number, got nan"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"lm_scale": -0.1}, "lm_scale must be at least 0, got -0.1"),
        ({"nbest": 2}, "nbest needs a beam"),
        ({"hotwords": Hotwords((), 4)}, "hotwords needs a beam"),
        ({"method": "modified_beam", "beam": 2, "nbest": 3}, r"nbest must be at most beam \(2\), got 3"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SearchOptions(**options)


def test_greedy_blank_penalty_and_temperature():
    model = talkative_model()
    enc, lengths = torch.randn(2, 40, 32).numpy(), np.array([40, 25])

    def decode(**options):
        return greedy_decode(runtime_of(model), enc, lengths, options=SearchOptions(**options))[0]

    plain = decode()
    counts = [sum(len(x.tokens) for x in decode(blank_penalty=p)) for p in (-4.0, 0.0, 4.0)]
    assert counts[0] < counts[1] < counts[2]
    hot = decode(temperature=2.0)
    assert [x.tokens for x in hot] == [x.tokens for x in plain]
    assert sum(hot[0].confidence) < sum(plain[0].confidence)
    with torch.no_grad():
        before = model.joiner.output.bias[0].item()
        model.joiner.output.bias[0] -= 1.25
        expected = decode()
        model.joiner.output.bias[0] = before
    found = decode(blank_penalty=1.25)
    assert [x.tokens for x in found] == [x.tokens for x in expected] != [x.tokens for x in plain]
    assert found[0].confidence == pytest.approx(expected[0].confidence, abs=1e-5)
