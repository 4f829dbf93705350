"""Processes (threads here) meet under a name that those of an earlier start did not have."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from sumix_stream.train.rendezvous import agree_on_start

MINUTE = timedelta(minutes=1)


def agree(store, order):
    """Processes start in this order, each when the one before has had the time to go wrong."""
    with ThreadPoolExecutor(len(order)) as pool:
        waiting = []
        for rank in order:
            waiting.append(pool.submit(agree_on_start, store, rank, len(order), MINUTE))
            with pytest.raises(TimeoutError):
                if len(waiting) < len(order):
                    waiting[-1].result(timeout=0.1)
                else:
                    raise TimeoutError
        return [future.result(timeout=30) for future in waiting]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_start_has_a_name_of_its_own(order):
    store, seen = HashStore(), set()
    for _ in range(3):
        names = agree(store, order)
        assert len(set(names)) == 1
        assert names[0] not in seen
        seen.add(names[0])


def test_the_first_process_of_an_earlier_start_is_not_waited_for():
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        store.set("sumix-start", "sumix-start/of-the-dead")  # published, then killed before anyone came
        second = pool.submit(agree_on_start, store, 1, 2, MINUTE)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        first = pool.submit(agree_on_start, store, 0, 2, MINUTE)
        assert first.result(timeout=30) == second.result(timeout=30) != "sumix-start/of-the-dead"


def test_waiting_ends():
    store = HashStore()
    store.set("sumix-start", "sumix-start/of-the-dead")
    with pytest.raises(RuntimeError, match="process 1 waited .* for process 0, in vain"):
        agree_on_start(store, 1, 2, timedelta(seconds=0.2))
