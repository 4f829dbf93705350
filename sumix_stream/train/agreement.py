"""What one process wants, all do, after the same step."""

from lightning_fabric import Fabric
from torch import Tensor, distributed, tensor


class Agreement:
    """A vote of all processes in every step that none of them waits for: its result is read a step later.

    It goes through the CPU, beside training, so that neither the device nor the averaging of gradients is held up.
    With one process the result is there at once.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._group = distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
        self._earlier: tuple[distributed.Work, Tensor] | None = None

    def vote(self, *wishes: int) -> list[int]:
        """The largest of each wish, over all processes. Called by every process after every step."""
        if self._group is None:
            return list(wishes)
        votes, result = tensor(wishes), [0] * len(wishes)
        if self._earlier is not None:
            work, earlier = self._earlier
            work.wait()
            result = earlier.tolist()
        work = distributed.all_reduce(votes, op=distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._earlier = (work, votes)
        return result
