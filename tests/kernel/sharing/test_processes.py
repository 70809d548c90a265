"""
``memlens ps`` against smaps_rollup, and against a slow count of frames with struct.

The processes sleep between requests, so what they map stands still.  memlens runs as a process
of its own, which maps the same libraries: it must not count.
"""

import mmap
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from memlens import (
    MemlensError,
    ProcessFilter,
    ProcessGone,
    ProcessList,
    ProcessMemory,
    list_processes,
)
from memlens.kernel.cgroups import find_hierarchy
from memlens.kernel.kpage import KpageFile
from memlens.kernel.procfs import Host
from memlens.scan.frametable import Frames
from memlens.scan.machine import Machine
from memlens.scan.mapcounts import MapCounts
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import (
    HUGE,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    Target,
    target,
)
from tests.kernel.support.machine import StateMoved
from tests.kernel.support.private_pages import read_private
from tests.kernel.support.rollup import hold_against_rollup, read_rollup
from tests.kernel.support.standstill import again_if_moved
from tests.kernel.support.swap import ON_ZRAM
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import fill

NAME = "memlens-family"
KPF_ZERO_PAGE = 24


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
        first = oracle.read_pagemap(made.pid, huge + HUGE, 1)
        assert oracle.read_kpageflags(first)[0] >> KPF_ZERO_PAGE & 1
        again_if_moved(lambda: hold_against_rollup([made.pid]))


@ON_ZRAM
def test_swap_of_each(family: Family) -> None:
    rows = _rows(list_processes(family.pids))
    slots = read_private(family.pids).slots
    assert {pid: row.swap_entries_pages for pid, row in rows.items()} == {
        pid: len(slots[pid]) for pid in family.pids
    }
    assert rows[family.pids[0]].swap_entries_pages >= 499
    for pid in family.pids:
        share = sum(
            1 / sum(slot in slots[other] for other in family.pids) for slot in slots[pid]
        )
        assert rows[pid].swap_share_bytes == pytest.approx(share * PAGE)
        # As the kernel divides; it rounds each mapping down to KiB.
        kernel = read_rollup(pid)["SwapPss"] * 1024
        assert 0 <= rows[pid].swap_share_bytes - kernel < 1024 * len(oracle.read_smaps(pid))
    # Others have the same part, whoever is shown.
    (alone,) = list_processes(family.pids[:1]).processes
    assert alone.swap_share_bytes == rows[family.pids[0]].swap_share_bytes


@ON_ZRAM
def test_a_share_is_not_known_where_memories_are_not_told_apart(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "kcmp")
    found = list_processes(family.pids)
    assert [row.swap_share_bytes for row in found.processes] == [None] * len(family.pids)
    assert any("share is not known of 4 processes" in note for note in found.notes)


@ON_ZRAM
def test_a_group_counts_a_page_once(family: Family) -> None:
    found = list_processes(group_by="name")
    (group,) = [group for group in found.groups if group.key == NAME]
    assert (group.by, group.processes) == ("name", len(family.pids))
    assert group.distinct_rss_pages == len(_frames(family.pids))
    private = read_private(family.pids)
    assert group.swap_slots_pages == private.distinct_slots
    # No others have these slots.
    assert group.swap_share_bytes == pytest.approx(private.distinct_slots * PAGE)
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
    for vma in oracle.read_smaps(pid):
        words = oracle.read_pagemap(pid, vma.start, (vma.stop - vma.start) // PAGE).tolist()
        for word in words:
            if word & oracle.PRESENT and not word & oracle.FILE:
                frames.add(word & ((1 << 55) - 1))
    return frames - _zero_frames(frames)


@ON_ZRAM
def test_groups_by_user_and_cgroup(family: Family) -> None:
    for key in ("user", "cgroup"):
        found = list_processes(group_by=key)
        members = Counter(getattr(row, key) for row in found.processes)
        assert {group.key: group.processes for group in found.groups} == members
        assert {group.by for group in found.groups} == {key}
        assert set(family.pids) <= set(_rows(found))


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


def test_what_the_reader_maps_does_not_count(tmp_path: Path) -> None:
    """A file that another process maps, before and after this one maps it twice."""
    pages = 1009
    (tmp_path / "file").write_bytes(b"x" * pages * PAGE)
    with target() as other:
        fd = other.os("open", str(tmp_path / "file"), os.O_RDONLY)
        start = other.mmap(pages, protection=PROT_READ, flags=MAP_SHARED, fd=fd)
        other.peek(start, range(pages))
        os.kill(other.pid, signal.SIGSTOP)

        def look() -> None:
            first, rollup = list_processes([other.pid]).processes[0], read_rollup(other.pid)
            with _mapped_twice(tmp_path / "file"):
                second, now = list_processes([other.pid]).processes[0], read_rollup(other.pid)
            if rollup != read_rollup(other.pid):
                raise StateMoved("others mapped its libraries")
            fallen = [rollup[name] - now[name] for name in ("Private_Clean", "Private_Dirty")]
            assert sum(fallen) * 1024 == pages * PAGE
            assert (first.rss_pages, first.uss_pages) == (second.rss_pages, second.uss_pages)
            # The same fractions, summed in another order.
            assert first.pss_pages == pytest.approx(second.pss_pages, rel=1e-12)

        again_if_moved(look)
        os.kill(other.pid, signal.SIGCONT)


def test_the_reader_counts_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 7 * PAGE)
    with target() as other, _mapped_twice(tmp_path / "file") as (first, second):
        fd = other.os("open", str(tmp_path / "file"), os.O_RDONLY)
        start = other.mmap(7, protection=PROT_READ, flags=MAP_SHARED, fd=fd)
        other.peek(start, range(7))
        words = [oracle.read_pagemap(os.getpid(), address, 7) for address in (first, second)]
        assert words[0].tolist() == oracle.read_pagemap(other.pid, start, 7).tolist()
        machine = Machine()
        with KpageFile("kpagecount", machine) as file:
            counts = MapCounts(file, machine)
            counts.add(os.getpid(), _file_frames(np.concatenate(words)))
            counts.add(other.pid, _file_frames(words[0]))
            sums = counts.sums()
    assert sums[os.getpid()] == (14, pytest.approx(14 / 3), 0, 0)
    assert sums[other.pid] == (7, 7.0, 7, 0)


def test_two_processes_in_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of one frees nothing; a forked one beside them has a memory of its own."""
    with target() as made:
        made.run("open('/proc/self/comm', 'w').write(name)", name="memlens-twins")
        start = made.mmap(211)
        made.poke(start, range(211))
        forked = made.fork()
        forked.poke(start, range(31))
        with made.twin() as twin:
            pids = [made.pid, twin, forked.pid]
            found = list_processes(pids, group_by="name")
            rows, (group,) = _rows(found), found.groups
            (alone,) = list_processes([twin]).processes
            monkeypatch.setenv("MEMLENS_DISABLE", "kcmp")
            doubtful = list_processes(pids)
            monkeypatch.delenv("MEMLENS_DISABLE")
        (survivor,) = list_processes([made.pid]).processes
    assert rows[made.pid].freed_on_exit_pages == rows[twin].freed_on_exit_pages == 0
    assert alone.freed_on_exit_pages == 0
    assert any("2 processes run in one memory" in note for note in found.notes)
    for row in (rows[forked.pid], survivor):
        assert row.freed_on_exit_pages is not None
        assert row.freed_on_exit_pages >= 31
    assert group.processes == len(pids)
    assert group.distinct_rss_pages is not None
    assert group.uss_pages == rows[made.pid].uss_pages + rows[forked.pid].uss_pages
    assert group.uss_pages <= group.pss_pages <= group.distinct_rss_pages
    assert [row.freed_on_exit_pages for row in doubtful.processes] == [None] * 3
    assert any("kcmp is switched off" in note for note in doubtful.notes)


@contextmanager
def _mapped_twice(path: Path) -> Iterator[tuple[int, int]]:
    """Map a file here at two addresses, and bring all of it into the page table."""
    data = path.read_bytes()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), len(data), prot=PROT_READ) as first,
        mmap.mmap(file.fileno(), len(data), prot=PROT_READ) as second,
    ):
        assert first[:] == second[:] == data
        views = np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)
        addresses = int(views[0].ctypes.data), int(views[1].ctypes.data)
        del views
        yield addresses


def _file_frames(words: np.ndarray) -> Frames:
    pfns = (words & np.uint64((1 << 55) - 1)).astype(np.uint32)
    is_file = np.ones(len(pfns), bool)
    return Frames(pfns, is_file, ~is_file, np.empty(0, np.uint64))


def test_a_cgroup_by_any_of_its_names(squeeze: Squeeze, tmp_path: Path) -> None:
    with squeeze.cgroup() as cgroup, target() as made, cgroup.charging(made.pid):
        name = str(cgroup.path)[len(find_hierarchy(Host()).root) :]
        (tmp_path / "link").symlink_to(cgroup.path)
        links = [str(tmp_path / "link"), os.path.relpath(cgroup.path)]
        for path in (name, f"{name}/", name.lstrip("/"), *links, f"{cgroup.path}/"):
            rows = _rows(list_processes(keep=ProcessFilter(cgroup=path)))
            assert set(rows) == {made.pid}, path
            assert rows[made.pid].cgroup == name
        assert made.pid in _rows(list_processes(keep=ProcessFilter(cgroup="/")))
        with pytest.raises(MemlensError, match="no such cgroup"):
            list_processes(keep=ProcessFilter(cgroup=f"{name}-not"))
        for other in Path("/sys/fs/cgroup").glob("*/cgroup.procs"):
            if find_hierarchy(Host()).version == 1 and other.parent not in cgroup.path.parents:
                with pytest.raises(MemlensError, match="the memory controller is mounted on"):
                    list_processes(keep=ProcessFilter(cgroup=str(other.parent)))


def test_an_unknown_cgroup_is_an_error_of_the_command() -> None:
    command = [sys.executable, "-m", "memlens", "ps", "--cgroup", "/not/there", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such cgroup" in done.stderr


def test_a_process_that_is_gone() -> None:
    with target() as driven:
        pid = driven.pid
    with pytest.raises(ProcessGone):
        list_processes([pid])
