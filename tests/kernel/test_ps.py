"""
``memlens ps`` against smaps_rollup, and against a slow count of frames with struct.

The processes sleep between requests, so what they map stands still; a page of a library may
still be mapped by one process more or less from one look to the next.
"""

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import raw
from driver import (
    HUGE,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_SHARED,
    PAGE,
    Target,
    target,
)
from shm_made import fill
from slowread import read_private
from standstill import again_if_moved
from workloads.base import StateMoved, page_out

from memlens import ProcessFilter, ProcessGone, ProcessList, ProcessMemory, list_processes

NAME = "memlens-family"
KPF_ZERO_PAGE = 24
HUNDREDTH = 0.01


@dataclass(frozen=True)
class Family:
    """A parent and its children, and what only the parent has."""

    parent: Target
    children: list[Target]

    @property
    def pids(self) -> list[int]:
        """Return all of them, the parent first."""
        return [self.parent.pid, *(child.pid for child in self.children)]


@pytest.fixture(scope="module")
def family(swap: str) -> Iterator[Family]:
    """Processes that share after fork what there is to share, partly swapped and huge."""
    with ExitStack() as stack:
        parent = stack.enter_context(target())
        parent.run("open('/proc/self/comm', 'w').write(name)", name=NAME)
        start = parent.mmap(2003)
        fill(parent, start, range(1511))
        page_out(parent, start, range(499))
        huge = parent.mmap(1024, align=HUGE)
        parent.libc("madvise", huge, 2 * HUGE, MADV_HUGEPAGE)
        fill(parent, huge, range(0, 1024, 64))
        zeroes = parent.mmap(101)
        parent.peek(zeroes, range(101))
        shared = parent.mmap(307, flags=MAP_SHARED | MAP_ANONYMOUS)
        fill(parent, shared, range(211))
        children = [parent.fork() for _ in range(3)]
        # Copies of their own; pages read back; a part of the huge page unmapped.
        fill(children[0], start, range(600, 701))
        children[1].peek(start, range(53))
        children[1].libc("munmap", huge + 100 * PAGE, 200 * PAGE)
        fill(children[2], shared, range(211, 241))
        fd = children[2].os("memfd_create", "twice", 1)
        children[2].os("ftruncate", fd, 97 * PAGE)
        for _ in range(2):
            fill(children[2], children[2].mmap(97, flags=MAP_SHARED, fd=fd), range(97))
        made = Family(parent, children)
        for pid in made.pids:
            os.kill(pid, signal.SIGSTOP)
        yield made
        for pid in made.pids:
            os.kill(pid, signal.SIGCONT)


ON_ZRAM = pytest.mark.parametrize("swap", ["zram"], indirect=True)


def _rollup(pid: int) -> dict[str, int]:
    """Return the sums of smaps_rollup in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name[:-1]: int(value) for name, value, *_ in map(str.split, lines)}


def _rows(found: ProcessList) -> dict[int, ProcessMemory]:
    return {row.pid: row for row in found.processes}


def _zero_frames(frames: set[int]) -> set[int]:
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        return {
            pfn
            for pfn in frames
            if struct.unpack("<Q", os.pread(file.fileno(), 8, pfn * 8))[0] >> KPF_ZERO_PAGE & 1
        }


def _frames(pids: list[int]) -> set[int]:
    frames = set().union(*read_private(pids).frames.values())
    return frames - _zero_frames(frames)


def hold_against_rollup(pids: list[int]) -> None:
    """
    Compare RSS, PSS and USS of processes that stand still with smaps_rollup.

    :raises StateMoved: if others mapped or unmapped pages of theirs meanwhile.
    """
    before = [_rollup(pid) for pid in pids]
    rows = _rows(list_processes(pids))
    if [_rollup(pid) for pid in pids] != before:
        raise StateMoved("smaps_rollup changed")
    assert set(rows) == set(pids)
    for pid, sums in zip(pids, before, strict=True):
        row = rows[pid]
        alone = sums["Private_Clean"] + sums["Private_Dirty"]
        assert row.rss_pages * PAGE == sums["Rss"] * 1024
        assert row.pss_pages * PAGE == pytest.approx(sums["Pss"] * 1024, rel=HUNDREDTH)
        assert row.uss_pages * PAGE == pytest.approx(alone * 1024, rel=HUNDREDTH)


@ON_ZRAM
@pytest.mark.parametrize("disabled", ["", "pagemap_scan"])
def test_as_smaps_rollup(
    family: Family, disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    again_if_moved(lambda: hold_against_rollup(family.pids))


@pytest.mark.parametrize("disabled", ["", "pagemap_scan"])
def test_zero_pages_cost_nothing(disabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero pages between others, the huge one, and the huge one cut to small ones."""
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    with target() as made:
        mixed = made.mmap(301)
        fill(made, mixed, range(0, 301, 7))
        made.peek(mixed, range(301))
        huge = made.mmap(4 * HUGE // PAGE, align=HUGE)
        made.libc("madvise", huge, 4 * HUGE, MADV_HUGEPAGE)
        fill(made, huge, [0])
        made.peek(huge + HUGE, [0])
        made.peek(huge + 2 * HUGE, [0])
        made.libc("munmap", huge + 2 * HUGE + 100 * PAGE, 3 * PAGE)
        fill(made, huge + 3 * HUGE, [0])
        first = raw.read_pagemap(made.pid, huge + HUGE, 1)
        assert raw.read_kpageflags(first)[0] >> KPF_ZERO_PAGE & 1
        again_if_moved(lambda: hold_against_rollup([made.pid]))


@ON_ZRAM
def test_swap_of_each(family: Family) -> None:
    rows = _rows(list_processes(family.pids))
    slots = read_private(family.pids).slots
    assert {pid: row.swap_own_pages for pid, row in rows.items()} == {
        pid: len(slots[pid]) for pid in family.pids
    }
    assert rows[family.pids[0]].swap_own_pages >= 499


@ON_ZRAM
def test_a_group_counts_a_page_once(family: Family) -> None:
    found = list_processes(group_by="name")
    (group,) = [group for group in found.groups if group.key == NAME]
    assert sorted(group.pids) == sorted(family.pids)
    assert group.distinct_rss_pages == len(_frames(family.pids))
    private = read_private(family.pids)
    assert group.swap_own_pages == private.distinct_slots
    rows = _rows(found)
    assert group.pss_pages == pytest.approx(sum(rows[pid].pss_pages for pid in family.pids))
    assert group.distinct_rss_pages < sum(rows[pid].rss_pages for pid in family.pids) / 2


@ON_ZRAM
def test_exit_frees_what_is_mapped_once(family: Family) -> None:
    rows = _rows(list_processes(family.pids))
    with open("/proc/kpagecount", "rb", buffering=0) as file:
        for pid in family.pids:
            alone = set()
            for pfn in _anonymous_frames(pid):
                (count,) = struct.unpack("<Q", os.pread(file.fileno(), 8, pfn * 8))
                if count == 1:
                    alone.add(pfn)
            # The memfd of the last goes with it; it alone has it open.
            memfd = 97 if pid == family.pids[-1] else 0
            assert rows[pid].freed_on_exit_pages == len(alone) + memfd


def _anonymous_frames(pid: int) -> set[int]:
    frames = set()
    for vma in raw.read_smaps(pid):
        words = raw.read_pagemap(pid, vma.start, (vma.stop - vma.start) // PAGE).tolist()
        for word in words:
            if word & raw.PRESENT and not word & raw.FILE:
                frames.add(word & ((1 << 55) - 1))
    return frames - _zero_frames(frames)


@ON_ZRAM
def test_groups_by_user_and_cgroup(family: Family) -> None:
    for key in ("user", "cgroup"):
        found = list_processes(group_by=key)
        grouped = [pid for group in found.groups for pid in group.pids]
        assert sorted(grouped) == sorted(row.pid for row in found.processes)
        assert set(family.pids) <= set(grouped)


@ON_ZRAM
def test_filters(family: Family) -> None:
    rows = _rows(list_processes(keep=ProcessFilter(name=NAME)))
    assert set(rows) == set(family.pids)
    everybody = _rows(list_processes(keep=ProcessFilter(uid=0)))
    assert set(family.pids) <= set(everybody)
    assert not set(family.pids) & set(_rows(list_processes(keep=ProcessFilter(uid=12345))))
    # Others still count as sharers.
    (row,) = list_processes([family.pids[0]]).processes
    assert row.uss_pages == rows[family.pids[0]].uss_pages


def test_a_process_that_is_gone() -> None:
    with target() as driven:
        pid = driven.pid
    with pytest.raises(ProcessGone):
        list_processes([pid])
