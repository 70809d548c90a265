"""
Every workload by the page-cache walk and without it: the same verdicts, page by page.

Where the other interfaces leave a page open the walk may know more; never otherwise.
"""

import mmap
import os
from collections.abc import Iterator

import pytest

from memlens import PageClass, ProcessMap, map_process
from memlens.kernel.cacherecords import CacheRecords, CacheWalkInvalid
from memlens.kernel.cachewalk import CacheWalker
from memlens.objects.backing import Backing
from memlens.pages.runs import decode_runs
from memlens.residency.answers import ObjectReader
from memlens.residency.walk import Walking
from memlens.scan.machine import Machine
from tests.kernel.support.verdicts import (
    Look,
    ReportsOf,
    can_walk,
    differences,
    excused,
    looker,
    seen_of,
    used_by,
)
from tests.kernel.workloads.base import Entry, Expected, Workload
from tests.kernel.workloads.catalogue import cases

PAGE = mmap.PAGESIZE

CASES = [pytest.param(entry, kind, id=f"{entry.name}-{kind}") for entry, kind in cases()]
# Kinds of proof of objects that are walked whenever slots are wanted.
WALKED = {"shmem", "disk", "ramfs", "block"}


class LookWalking(Look):
    """map_process that walks every object, since it is to keep slots."""

    def __call__(self, pid: int) -> ProcessMap:
        return map_process(pid, words=True)


@pytest.fixture(scope="module")
def without(machine: None) -> Iterator[Look]:
    """Return a reader that may not walk."""
    if not can_walk():
        pytest.skip("the page-cache walk cannot be used here")
    with looker(["cachewalk"]) as look:
        yield look


@pytest.mark.parametrize(("entry", "swap"), CASES, indirect=["swap"], scope="module")
def test_the_walk_says_what_the_others_say(
    entry: Entry, reports_of: ReportsOf, without: Look
) -> None:
    reports = reports_of(entry, lambda workload: compare(workload, LookWalking(), without))
    assert not reports, reports


def compare(workload: Workload, walking: Look, without: Look) -> list[str]:
    """Return what differs from the truth, or between the two, while the state stood."""
    workload.reprove()
    walked = {pid: walking(pid) for pid in workload.pids}
    asked = {pid: without(pid) for pid in workload.pids}
    workload.reprove()
    reports = []
    for expected in workload.mappings:
        by_walk, by_others = walked[expected.pid], asked[expected.pid]
        assert not any("void" in note for note in by_walk.notes)
        assert "cachewalk" not in used_by(by_others)
        if expected.proof in WALKED and has_open_pages(expected):
            assert "cachewalk" in used_by(by_walk)
        reports.append(differences(expected, seen_of(by_walk, expected)))
        reports.append(differences(expected, excused(expected, seen_of(by_others, expected))))
    return reports


def has_open_pages(expected: Expected) -> bool:
    """Return whether any page is one that only its object tells of."""
    told = (PageClass.CACHED, PageClass.SWAP_CACHED, PageClass.PREALLOCATED, PageClass.ON_DISK)
    return any(kind in told for kind in expected.classes)


def test_a_void_answer_is_said_and_the_others_are_asked() -> None:
    if not can_walk():
        pytest.skip("the page-cache walk cannot be used here")

    class VoidWalking(Walking):
        def walk_fd(self, fd: int, first: int, stop: int, name: str) -> CacheRecords | None:
            def void(walker: CacheWalker) -> CacheRecords:
                walker.walk_fd(fd, first, stop)
                raise CacheWalkInvalid("impossible")

            return self._walk(void, name)

    fd = os.memfd_create("memlens-test", os.MFD_CLOEXEC)
    os.pwrite(fd, b"x", PAGE)
    os.ftruncate(fd, 3 * PAGE)
    machine = Machine(disabled=frozenset())
    backing = Backing(fd, "shmem", machine, True, "an object")
    try:
        walking = VoidWalking(machine, is_eager=True)
        reader = ObjectReader(backing, machine, walking)
        found = decode_runs(reader.verdicts(0, 3), 3).tolist()
    finally:
        backing.close()
    assert found == [PageClass.NONE, PageClass.CACHED, PageClass.NONE]
    assert walking.notes == ["an object: the page-cache walk is void: impossible"]
    assert "cachewalk" not in backing.host.meter.used
