"""Steps of a preparation: when they are done, done again, gone on with."""

import subprocess
from time import sleep

import pytest

from sumix_stream.corpora.stages import AHEAD, CHECKSUMS, Stages, in_processes, parallel


class Preparation:
    """Two independent steps, one that joins what they made, one after it; notes what was done."""

    def __init__(self, folder):
        self.folder, self.done = folder, []

    def __call__(self, a=1, b=1, joined=1, fail=""):
        self.done.clear()
        stages = Stages(self.folder)
        for name, value in (("a", a), ("b", b)):
            stages.run(name, {"value": value}, self.write(name, value, fail), [name], independent=True)
        stages.run("joined", {"value": joined}, self.write("joined", f"{a}{b}{joined}", fail), ["joined"])
        stages.run("last", {}, self.write("last", (self.folder / "joined").read_text(), fail), ["last"])
        stages.write_checksums()
        return "".join(name[0] for name in self.done)

    def write(self, name, value, fail):
        def action():
            self.done.append(name)
            if name == fail:
                raise KeyboardInterrupt
            (self.folder / name).write_text(str(value))

        return action


@pytest.fixture
def prepare(tmp_path):
    preparation = Preparation(tmp_path)
    assert preparation() == "abjl"
    return preparation


def test_what_is_done_is_not_done_again(prepare, capsys):
    assert prepare() == ""
    assert capsys.readouterr().out.count("already done") == 4


def test_other_settings_are_followed_by_what_depends_on_them(prepare):
    assert prepare(a=2) == "ajl"  # not b, which does not depend on a
    assert prepare(a=2, b=2) == "bjl"
    assert prepare(a=2, b=2, joined=2) == "jl"
    assert (prepare.folder / "last").read_text() == "222"


@pytest.mark.parametrize("name, expected", [("a", "ajl"), ("b", "bjl"), ("joined", "jl"), ("last", "l")])
@pytest.mark.parametrize("damage", ["changed", "missing", "no marker", "damaged marker"])
def test_what_is_damaged_is_made_again(prepare, name, expected, damage):
    file, marker = prepare.folder / name, prepare.folder / f".{name}.completed"
    if damage == "changed":
        file.write_text("7")
    elif damage == "missing":
        file.unlink()
    elif damage == "no marker":
        marker.unlink()
    else:
        marker.write_text("{")
    assert prepare() == expected
    assert prepare() == ""


@pytest.mark.parametrize("name, rest", [("a", "abjl"), ("b", "bjl"), ("joined", "jl"), ("last", "l")])
def test_interrupted(tmp_path, name, rest):
    prepare = Preparation(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(fail=name)
    assert prepare() == rest


def test_interrupted_between_two_steps_of_a_change(prepare):
    """Step a is done anew and marked, then the power fails: the markers of the later steps still tell of success."""
    stages = Stages(prepare.folder)
    stages.run("a", {"value": 2}, lambda: (prepare.folder / "a").write_text("2"), ["a"], independent=True)
    assert prepare(a=2) == "jl"


def test_checksums_are_those_of_coreutils(prepare):
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=prepare.folder, check=True, capture_output=True)
    assert len((prepare.folder / CHECKSUMS).read_text().splitlines()) == 4


def test_parallel_keeps_the_order_and_stops_at_an_error():
    assert list(parallel(lambda n: n * n, range(50), 4, "squares", "number")) == [n * n for n in range(50)]
    started = []

    def work(n):
        started.append(n)
        if n == 3:
            raise OSError("disk full")
        sleep(0.001)

    with pytest.raises(OSError, match="disk full"):
        list(parallel(work, range(10_000), 1, "work", "number"))
    assert len(started) < 10_000


def test_parallel_needs_a_job():
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"):
        list(parallel(str, [1], 0, "work", "number"))


def square(n):
    if n == 1000:
        raise OSError("disk full")
    return n * n


@pytest.mark.parametrize("jobs", [1, 2])
def test_processes_keep_the_order_and_take_items_as_they_are_needed(jobs):
    taken = []

    def numbers(count):
        for n in range(count):
            taken.append(n)
            yield n

    results = in_processes(square, numbers(60), jobs)
    for n, result in enumerate(results):
        assert result == n * n and len(taken) <= n + 1 + AHEAD * jobs
    assert len(taken) == 60
    with pytest.raises(OSError, match="disk full"):
        list(in_processes(square, [1, 1000, 2], jobs))
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"):
        list(in_processes(square, [1], 0))
