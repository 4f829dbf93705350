"""When an utterance within a stream is over: the three rules of sherpa-onnx.

Silence is time without tokens, counted in encoder frames. An endpoint cuts the text into segments; no token depends on
it unless the recogniser is told to reset the predictor there.
"""

import math
from dataclasses import dataclass
from enum import Enum


class Own(Enum):
    """Stands for what a stream has of its recogniser."""

    OWN = "own"


OWN = Own.OWN


@dataclass(frozen=True)
class EndpointRule:
    """Fires when all three hold: tokens were found (if it needs them), and both durations have been reached.

    min_trailing_silence, min_utterance: seconds, since the last token or the segment's start, and since its start.
    """

    needs_tokens: bool
    min_trailing_silence: float
    min_utterance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_trailing_silence", "min_utterance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0 seconds, got {value}")
        if not (self.min_trailing_silence or self.min_utterance):
            raise ValueError("a rule that always fires: give min_trailing_silence or min_utterance above 0 seconds")

    def fires(self, has_tokens: bool, trailing_silence: float, utterance: float) -> bool:
        return (
            (has_tokens or not self.needs_tokens)
            and trailing_silence >= self.min_trailing_silence
            and utterance >= self.min_utterance
        )


@dataclass(frozen=True)
class Endpointing:
    """The rules, of which any ends a segment; the defaults are those of sherpa-onnx.

    reset_predictor: forget the text at an endpoint. The encoder's state is kept in any case. An LSTM that has read an
        hour of text is further from what it was trained on than one that starts afresh; but tokens then depend on where
        the endpoints lie. Not within a word: an endpoint by length (rule 3) forgets where no word is open.
    """

    rules: tuple[EndpointRule, ...] = (
        EndpointRule(False, 2.4),
        EndpointRule(True, 1.2),
        EndpointRule(False, 0.0, 20.0),
    )
    reset_predictor: bool = False

    @classmethod
    def sherpa(
        cls, rule1: float = 2.4, rule2: float = 1.2, rule3: float = 20.0, reset_predictor: bool = False
    ) -> "Endpointing":
        """Seconds: rule1 silence without text, rule2 silence after text, rule3 length of the utterance."""
        rules = EndpointRule(False, rule1), EndpointRule(True, rule2), EndpointRule(False, 0.0, rule3)
        return cls(rules, reset_predictor)

    def is_endpoint(self, has_tokens: bool, trailing_silence: float, utterance: float) -> bool:
        """Seconds as for `EndpointRule`."""
        return any(rule.fires(has_tokens, trailing_silence, utterance) for rule in self.rules)

    def by_length(self, has_tokens: bool, trailing_silence: float, utterance: float) -> bool:
        """Whether no rule that waits for silence fires: somebody may be in the middle of a word."""
        waiting = (rule for rule in self.rules if rule.min_trailing_silence > 0)
        return not any(rule.fires(has_tokens, trailing_silence, utterance) for rule in waiting)
