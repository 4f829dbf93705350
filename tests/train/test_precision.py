"""What is said of bf16 where it is computed."""

import logging

from sumix_stream.train import precision


def test_a_cpu_says_how_it_computes_in_bf16(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: True)
    level, text = precision.how_bf16_is_computed("cpu")
    assert level == logging.INFO and "products" in text
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    level, text = precision.how_bf16_is_computed("cpu")
    assert level == logging.WARNING and "AVX512_BF16" in text and "32-true" in text
    assert precision.how_bf16_is_computed("cuda") is None
