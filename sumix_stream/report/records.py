"""What a run has left on disk, read back for its page: nothing but files, so that it works for any run at any time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sumix_stream.timebase import Timebase

METRICS, RUNS, VALIDATION = "metrics.jsonl", "runs.jsonl", "valid.json"
PICTURES, PICTURE_LIST = "pictures", "pictures.json"


@dataclass(frozen=True)
class Decoded:
    """A report.json of bin/decode or bin/stream_decode."""

    name: str  # of its folder
    path: Path
    content: dict[str, Any]

    @property
    def cuts(self) -> str:
        return str(self.content.get("cuts") or "")


@dataclass(frozen=True)
class RunRecords:
    """Everything about a run; what is not there (yet) is empty."""

    exp_dir: Path
    steps: list[dict[str, Any]] = field(default_factory=list)  # a line of metrics.jsonl for each step
    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (step, measures by name)
    valid_losses: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (step, losses by name)
    starts: list[dict[str, Any]] = field(default_factory=list)  # lines of runs.jsonl
    validation: dict[str, Any] = field(default_factory=dict)  # the last one, utterance by utterance
    decoded: list[Decoded] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measured(self) -> list[tuple[int, float]]:
        """(step, the measure that the best checkpoint goes by) of each validation that has it."""
        return [(step, found[self.best_by]) for step, found in self.validations if self.best_by in found]

    @property
    def best_by(self) -> str | None:
        """The measure that the best checkpoint goes by: the first of the last validation."""
        return next(iter(self.validations[-1][1])) if self.validations else None

    @property
    def recipe(self) -> dict[str, Any]:
        return self.starts[-1].get("recipe", {}) if self.starts else {}

    @property
    def timebase(self) -> Timebase:
        """The clock of the run's model; runs before there was a choice have 40 ms."""
        encoder = (self.recipe.get("model") or {}).get("encoder") or {}
        return Timebase(subsampling=encoder.get("subsampling", 4))

    def valid_cuts(self, name: str = "") -> list[str]:
        """The manifests of a validation set; the name of a plain list is empty."""
        found = (self.recipe.get("data") or {}).get("valid_cuts") or []
        if isinstance(found, dict):
            return [found[name]] if name in found else []
        return list(found)

    @classmethod
    def read(cls, exp_dir: Path | str) -> "RunRecords":
        """Raises ValueError when the directory is none or holds no run."""
        exp_dir = Path(exp_dir)
        if not (exp_dir / METRICS).is_file():
            raise ValueError(f"{exp_dir} has no {METRICS}: no run has begun there; train one with bin/train")
        lines = list(_json_lines(exp_dir / METRICS))
        return cls(
            exp_dir,
            steps=[_with_parts(line) for line in lines if "learning_rate" in line],
            validations=[(line["step"], measures) for line in lines if (measures := _measures(line))],
            valid_losses=[(line["step"], line["valid_losses"]) for line in lines if line.get("valid_losses")],
            starts=list(_json_lines(exp_dir / RUNS)),
            validation=_json(exp_dir / VALIDATION),
            decoded=_decoded(exp_dir),
            pictures=list(_json(exp_dir / PICTURES / PICTURE_LIST).get("pictures", [])),
        )


def _with_parts(line: dict[str, Any]) -> dict[str, Any]:
    """A step with the parts of its loss by name; version 0.1 wrote them beside the other keys."""
    if "parts" in line:
        return line
    old = {name: line[name] for name in ("simple", "pruned", "ctc", "consistency") if line.get(name)}
    return line | {"parts": old}


def _measures(line: dict[str, Any]) -> dict[str, float]:
    """Of a validation; version 0.1 wrote the word error rate alone."""
    return line.get("valid") or ({"wer": line["valid_wer"]} if "valid_wer" in line else {})


def _decoded(exp_dir: Path) -> list[Decoded]:
    """Reports beside the experiment and beside each of its checkpoints, by name."""
    found = []
    for path in sorted([*exp_dir.glob("decode/*/report.json"), *exp_dir.glob("checkpoints/*/decode/*/report.json")]):
        content = _json(path)
        if isinstance(content.get("utterances"), list):
            of_step = "" if path.parts[-5:-4] != ("checkpoints",) else f"{path.parts[-4]} "
            found.append(Decoded(of_step + path.parent.name, path, content))
    return found


def _json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty when it is missing or being written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line a killed run was writing
            if isinstance(line, dict) and "step" in line:
                yield line
