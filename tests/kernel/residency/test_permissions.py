"""
An ordinary user who looks at a process of his own: less is known, nothing is wrong.

The kernel hides swap areas and frames from him, refuses map_files, and lets mincore call
every page of a file resident that he may not write.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from memlens import AccessDenied, PageClass
from tests.kernel.support.verdicts import (
    GIVE_AWAY,
    Look,
    ReportsOf,
    Seen,
    differences,
    looker,
    seen_of,
)
from tests.kernel.workloads.base import Entry, Workload, as_array
from tests.kernel.workloads.catalogue import cases

USER = 65534
# Not ours to give away: in a user namespace, another program by now, or proven by a call of
# the target itself that needs its privileges.
OTHERS = (
    *("other_namespaces", "thirty_two_bits"),
    *("overlay_copied_up", "overlay_copied_up_by_user"),
)
CASES = [
    pytest.param(entry, kind, id=f"{entry.name}-{kind}")
    for entry, kind in cases()
    if entry.name not in OTHERS
]
# What he must know all the same: the page table is his to read.
CERTAIN = {PageClass.PRESENT, PageClass.GUARD}


@pytest.fixture(scope="module")
def ordinary(machine: None) -> Iterator[Look]:
    """Return a reader without any privilege."""
    with looker(uid=USER) as look:
        yield look


@pytest.fixture(scope="module")
def old_kernel(machine: None) -> Iterator[Look]:
    """Return one without PAGEMAP_SCAN, which tells zero pages where frames are hidden."""
    with looker(("pagemap_scan",), uid=USER) as look:
        yield look


@pytest.fixture(scope="module")
def stranger(machine: None) -> Iterator[Look]:
    """Return a reader without any privilege who is yet another user."""
    with looker(uid=USER - 1) as look:
        yield look


@pytest.mark.parametrize(("entry", "swap"), CASES, indirect=["swap"], scope="module")
def test_an_ordinary_user_is_not_told_wrong(
    entry: Entry, reports_of: ReportsOf, ordinary: Look, old_kernel: Look, stranger: Look
) -> None:
    def look(workload: Workload) -> list[str]:
        for driven in (workload.target, *workload.target.children):
            driven.run(GIVE_AWAY, uid=USER)
        reports = [
            *_look(workload, ordinary, CERTAIN),
            *_look(workload, old_kernel, {PageClass.GUARD}),
        ]
        with pytest.raises(AccessDenied):
            stranger(workload.target.pid)
        return reports

    reports = reports_of(entry, look)
    assert not reports, reports


def _look(workload: Workload, look: Look, certain: set[PageClass]) -> list[str]:
    results = {pid: look(pid) for pid in workload.pids}
    reports = []
    for expected in workload.mappings:
        seen = seen_of(results[expected.pid], expected)
        wanted = as_array(expected)
        is_excused = seen.classes == PageClass.UNKNOWN
        for page in np.flatnonzero(is_excused).tolist():
            is_excused[page] = (
                bool(seen.reasons.get(page)) and expected.classes[page] not in certain
            )
        checked = Seen(np.where(is_excused, wanted, seen.classes), seen.reasons)
        reports.append(differences(expected, checked))
    workload.reprove()
    return reports
