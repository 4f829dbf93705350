"""What comes in kinds, by name: encoders, mixers, tasks. A new kind is one file and one line here.

Names are known without importing what they stand for, so that a recipe is checked before torch is loaded.
"""

import difflib
from importlib import import_module
from typing import Any


class Registry:
    """Classes by the names that configurations give them.

    Args:
        key: of the recipe, for errors, such as model.encoder.kind.
        homes: name -> `module.Class`.
    """

    def __init__(self, key: str, homes: dict[str, str]) -> None:
        self.key = key
        self._homes: dict[str, str | type] = dict(homes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._homes)

    def register(self, name: str, kind: type) -> type:
        """Make a class of one's own known under a name. Raises ValueError where the name is taken by another."""
        if self._homes.get(name, kind) is not kind:
            raise ValueError(f"{self.key} {name!r} is taken by {self._homes[name]}: choose another name")
        self._homes[name] = kind
        return kind

    def get(self, name: str) -> Any:
        """The class of that name. Raises ValueError with the names that there are."""
        if name not in self._homes:
            near = difflib.get_close_matches(str(name), self.names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{self.key} must be one of {', '.join(self.names)}{hint}, got {name!r}")
        home = self._homes[name]
        if isinstance(home, str):
            module, _, attribute = home.rpartition(".")
            home = self._homes[name] = getattr(import_module(module), attribute)
        return home


ENCODERS = Registry(
    "model.encoder.kind",
    {
        "conformer": "sumix_stream.encoders.conformer.ConformerEncoder",
        "branchformer": "sumix_stream.encoders.branchformer.BranchformerEncoder",
    },
)
MIXERS = Registry(
    "model.encoder.mixer",
    {
        "summary": "sumix_stream.encoders.mixers.summary.SummaryMixing",
        "attention": "sumix_stream.encoders.mixers.attention.ChunkedAttention",
        "hypermixer": "sumix_stream.encoders.mixers.hyper.HyperMixer",
        "none": "sumix_stream.encoders.mixers.none.NoMixer",
    },
)
TASKS = Registry(
    "task",
    {
        "transducer": "sumix_stream.tasks.transducer.task.TransducerTask",
        "classification": "sumix_stream.tasks.classification.task.ClassificationTask",
    },
)
