"""The processors of a container: its quota, in both versions of control groups, and no more than there are."""

import os
from pathlib import Path

import pytest

from sumix_stream.runtime import cpus

V2, V1 = "0::{}\n", "5:memory:/x\n4:cpu,cpuacct:{}\n"
PERIOD = "cpu.cfs_period_us"
QUOTA = "cpu.cfs_quota_us"
CASES = {
    "no control groups": (None, {}, 8),
    "version 2, none": (V2.format("/"), {"cpu.max": "max 100000\n"}, 8),
    "version 2, in a container": (V2.format("/"), {"cpu.max": "200000 100000\n"}, 2),
    "version 2, a part": (V2.format("/"), {"cpu.max": "250000 100000\n"}, 2),
    "version 2, less than one": (V2.format("/"), {"cpu.max": "50000 100000\n"}, 1),
    "version 2, more than there are": (V2.format("/"), {"cpu.max": "6400000 100000\n"}, 8),
    "version 2, above": (V2.format("/a/b"), {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
    "version 2, the least": (V2.format("/a/b"), {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 50000"}, 2),
    "version 2, the host's path": (V2.format("/docker/1234"), {"cpu.max": "400000 100000"}, 4),
    "version 2, damaged": (V2.format("/"), {"cpu.max": "much\n"}, 8),
    "version 1": (V1.format("/d"), {f"cpu,cpuacct/d/{QUOTA}": "150000\n", f"cpu,cpuacct/d/{PERIOD}": "50000\n"}, 3),
    "version 1, another mount": (V1.format("/"), {f"cpu/{QUOTA}": "500000", f"cpu/{PERIOD}": "100000"}, 5),
    "version 1, none": (V1.format("/"), {f"cpu/{QUOTA}": "-1", f"cpu/{PERIOD}": "100000"}, 8),
}


@pytest.mark.parametrize(("groups", "files", "expected"), CASES.values(), ids=CASES)
def test_available_cpus(groups, files, expected, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpus.available_cpus(tmp_path) == expected


def test_here_there_is_at_least_one():
    assert 1 <= cpus.available_cpus() <= (os.cpu_count() or 1)
