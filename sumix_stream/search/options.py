"""How to search: one frozen set of options for greedy and beam search, streaming and offline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sumix_stream.search.fusion import LanguageModel
    from sumix_stream.search.hotwords import Hotwords

METHODS = ("greedy", "modified_beam")


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search; what they leave at its default costs nothing.

    Raises ValueError naming the option, its value and what is allowed.
    """

    method: str = "greedy"  # greedy | modified_beam
    blank_penalty: float = 0.0  # subtracted from blank's logit before anything else; above 0 = fewer deletions
    temperature: float = 1.0  # logits are divided by it: of greedy search it changes confidences only
    max_symbols: int = 5  # tokens a frame, of greedy: no real speech has more in 40 ms; modified_beam has one
    beam: int = 4  # hypotheses a stream, of modified_beam
    nbest: int = 1  # results a stream, at most `beam`
    lm: LanguageModel | None = None  # fused into modified_beam (ngram.NgramLm, neural_lm.NeuralLm)
    lm_scale: float = 0.3  # weight of the language model's log-probabilities; 0 = as without it
    hotwords: Hotwords | None = None  # of streams without their own

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("max_symbols", "beam", "nbest"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        for name in ("blank_penalty", "temperature", "lm_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature:g}")
        if self.lm_scale < 0:
            raise ValueError(f"lm_scale must be at least 0, got {self.lm_scale:g}")
        if self.method == "greedy":
            wants_beam = {
                "nbest": self.nbest > 1,
                "lm": self.lm is not None,
                "hotwords": self.hotwords is not None,
            }
            for name in (name for name, wanted in wants_beam.items() if wanted):
                raise ValueError(f"{name} needs a beam, and greedy search has none: set method to modified_beam")
        elif self.nbest > self.beam:
            raise ValueError(f"nbest must be at most beam ({self.beam}), got {self.nbest}: set a larger beam")

    def describe(self) -> dict:
        """Plain values (JSON) that tell one search from another."""
        greedy = self.method == "greedy"
        names = ("max_symbols",) if greedy else ("beam", "nbest")
        described = {"search": self.method}
        described |= {name: getattr(self, name) for name in (*names, "blank_penalty", "temperature")}
        if self.lm is not None:
            described |= {"lm": self.lm.fingerprint, "lm_scale": self.lm_scale}
        if self.hotwords is not None:
            described["hotwords"] = self.hotwords.sequences
        return described


GREEDY = SearchOptions()
