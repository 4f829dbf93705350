"""How the processes that torchrun started find each other, the first time and after each of its restarts.

torchrun keeps one key-value store through its restarts, in which those killed have left the addresses they listened at.
Whoever comes up first then reads them, tries to reach the dead, and waits for ever (torch 2.11 says that the store is a
new one every time; it has not been since the store is shared with torchrun). So every start agrees on a name that was
never used, and meets under it.
"""

import atexit
import os
import time
import uuid
from datetime import timedelta

from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.constants import default_pg_timeout

_POLL = 0.02  # seconds
_START = "sumix-start"


def join_torchrun(backend: str, timeout: timedelta = default_pg_timeout) -> None:
    """Make the default process group, if torchrun started this process together with others; else do nothing.

    Raises:
        RuntimeError: the others do not come within `timeout`.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
    start = agree_on_start(store, rank, world_size, timeout)
    distributed.init_process_group(
        backend, store=PrefixStore(start, store), rank=rank, world_size=world_size, timeout=timeout
    )
    atexit.register(_leave)


def agree_on_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that processes started together have in common, and none of those started before.

    The first process makes it up; the others answer under it with a secret of their own, which it repeats to them. A
    name or a repetition that is left from earlier is recognised: nobody repeats the new secret.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        start = f"{_START}/{uuid.uuid4().hex}"
        store.set(_START, start)
        store.wait([f"{start}/from-{other}" for other in range(1, world_size)], timeout)
        for other in range(1, world_size):
            store.set(f"{start}/to-{other}", store.get(f"{start}/from-{other}"))
        return start
    secret = uuid.uuid4().hex.encode()
    store.wait([_START], timeout)
    start = ""
    while time.monotonic() < deadline:
        newest = store.get(_START).decode()
        if newest != start:
            start = newest
            store.set(f"{start}/from-{rank}", secret)
        if store.check([f"{start}/to-{rank}"]) and store.get(f"{start}/to-{rank}") == secret:
            return start
        time.sleep(_POLL)
    raise RuntimeError(f"process {rank} waited {timeout} for process 0, in vain: it may have failed; see its log")


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
