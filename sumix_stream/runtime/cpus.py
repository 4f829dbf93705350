"""How many processors this process may use: those it may run on, and no more than its container's quota."""

import functools
import os
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """At least 1. A quota of a part of a processor is rounded down: threads beyond it are all held up for the rest of
    each period.

    Args:
        root: below which proc/ and sys/ lie.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


@functools.cache
def _quota(root: Path) -> float | None:
    """Processors that the control group and those above it allow, the least; None without a quota."""
    found = []
    for group in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2
            for folder in _upwards(root / "sys/fs/cgroup", path):
                quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
                found.append(_ratio(quota, period))
        elif "cpu" in controllers.split(","):  # version 1
            mounts = [root / "sys/fs/cgroup" / name for name in (controllers, "cpu")]
            for mount in [mount for mount in mounts if mount.is_dir()][:1]:
                for folder in _upwards(mount, path):
                    found.append(_ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """The group's folder and those above it; in a container the path may be the host's, and then only `mount` is."""
    inside = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*inside[:count]) for count in range(len(inside), -1, -1)]


def _ratio(quota: str, period: str) -> float | None:
    """None for no quota: `max` in version 2, -1 in version 1."""
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
