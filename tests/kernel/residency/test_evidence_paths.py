"""
Every workload through every path: without an interface memlens says the same, or why not.

A path may know less, and then says ``unknown`` with a reason; it never says otherwise.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations

import numpy as np
import pytest

from memlens import PageClass
from memlens.kernel.procfs import SWITCHES
from tests.kernel.support.verdicts import (
    WALK_ALONE_TELLS,
    Look,
    ReportsOf,
    Seen,
    can_walk,
    differences,
    looker,
    seen_of,
)
from tests.kernel.workloads.base import Entry, Expected, Workload, as_array
from tests.kernel.workloads.catalogue import cases

OBJECT_SWITCHES = ("map_files", "seek_data", "cachestat", "mincore", "cachewalk")
PATHS = (
    *((switch,) for switch in SWITCHES),
    *combinations(OBJECT_SWITCHES, 2),
    ("pagemap_scan", "kpageflags"),
    ("seek_data", "cachestat", "mincore"),
    SWITCHES,
)
CASES = [pytest.param(entry, kind, id=f"{entry.name}-{kind}") for entry, kind in cases()]
Paths = dict[tuple[str, ...], Look]

LARGE = 8000
P = PageClass
OPEN_SHMEM = {P.CACHED, P.SWAP_CACHED, P.SWAPPED, P.PREALLOCATED, P.NONE}
# What may stay open when one interface alone is missing: classes, by kind of proof.
LEAVES_OPEN: dict[str, dict[str, set[PageClass]]] = {
    # Only the scan tells markers of poison on hugetlbfs, where userfaultfd may have set some.
    "pagemap_scan": {"hugetlb, watched": {P.CACHED, P.NONE}},
    "kpageflags": {},
    "frameslots": {},
    "scm_fds": {},
    "kcmp": {},
    "cachewalk": WALK_ALONE_TELLS,
    "smaps": {"pfn": {P.DEVICE}, "overlay": {P.SWAPPED}},
    "seek_data": {
        "disk": {P.NONE, P.ON_DISK},
        "parts": {P.NONE, P.ON_DISK},
        "overlay": {P.NONE, P.ON_DISK, P.SWAPPED},
    },
    "mincore": {
        "shmem": {P.SWAPPED, P.SWAP_CACHED},
        "overlay": {P.CACHED, P.NONE, P.ON_DISK, P.SWAPPED},
        "layer on tmpfs": {P.SWAPPED, P.SWAP_CACHED},
    },
    "cachestat": {"shmem": OPEN_SHMEM - {P.SWAPPED}, "parts": {P.CACHED, P.ON_DISK}},
    # Objects without a path or a descriptor: shared anonymous, SysV, deleted, in namespaces.
    # The walk by mapping knows them, but for copies in the swap cache.
    # So it does where the layer of an overlay is an overlay, by whose name nothing is open.
    "map_files": {
        "shmem": {P.SWAPPED, P.SWAP_CACHED},
        "layer on tmpfs": {P.SWAPPED, P.SWAP_CACHED},
    },
}
WITHOUT_WALK = {"map_files": {"shmem": OPEN_SHMEM, "hugetlb": {P.CACHED, P.NONE}}}


@pytest.fixture(scope="module")
def paths(machine: None) -> Iterator[Paths]:
    """Return a reader for every path, each in a process of its own."""
    with ExitStack() as stack:
        yield {path: stack.enter_context(looker(path)) for path in PATHS}


def disagreements(path: tuple[str, ...], expected: Expected, seen: Seen) -> str:
    """Return a report on the pages whose class is another one, or unknown without need."""
    wanted = as_array(expected)
    is_unknown = seen.classes == PageClass.UNKNOWN
    is_excused = np.zeros(len(wanted), bool)
    for page in np.flatnonzero(is_unknown).tolist():
        is_excused[page] = bool(seen.reasons.get(page)) and _may_be_open(path, expected, page)
    checked = Seen(np.where(is_excused, wanted, seen.classes), seen.reasons)
    report = differences(expected, checked)
    return f"without {', '.join(path)}: {report}" if report else ""


def _may_be_open(path: tuple[str, ...], expected: Expected, page: int) -> bool:
    if len(path) > 1:
        return True
    table = LEAVES_OPEN if can_walk() else LEAVES_OPEN | WITHOUT_WALK
    return expected.classes[page] in table[path[0]].get(expected.proof, set())


@pytest.mark.parametrize(("entry", "swap"), CASES, indirect=["swap"], scope="module")
def test_paths_agree(entry: Entry, reports_of: ReportsOf, paths: Paths) -> None:
    reports = reports_of(entry, lambda workload: _look(workload, paths))
    assert not reports, reports


def _look(workload: Workload, paths: Paths) -> list[str]:
    reports = []
    is_large = sum(len(expected.classes) for expected in workload.mappings) > LARGE
    for path, look in paths.items():
        if is_large and len(path) > 1:
            continue  # thousands of mappings of one kind: nothing that pairs would add
        results = {pid: look(pid) for pid in workload.pids}
        for expected in workload.mappings:
            seen = seen_of(results[expected.pid], expected)
            reports.append(disagreements(path, expected, seen))
    workload.reprove()
    return reports
