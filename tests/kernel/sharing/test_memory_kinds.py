"""Kinds of memory that sums get wrong: what KSM merged, hugetlb, segments by their number."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from memlens import (
    Holder,
    Inventory,
    SharedObject,
    list_processes,
    list_shared_memory,
    read_swap_ledger,
)
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.commands import run
from tests.kernel.support.driver import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    HUGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    Target,
    target,
)
from tests.kernel.support.machine import setting, wait_until
from tests.kernel.support.private_pages import read_private
from tests.kernel.support.rollup import hold_against_rollup
from tests.kernel.support.shared_memory import counts_of, holders_of, marks_of, runs_of
from tests.kernel.support.standstill import again_if_moved
from tests.kernel.support.swap import ON_ZRAM
from tests.kernel.workloads.shm_builder import Builder, Mix, fill, segment_columns
from tests.kernel.workloads.shm_mix import segment_of_nobody

KSM = Path("/sys/kernel/mm/ksm")
MERGED = 47
KPF_KSM = 21


@contextmanager
def merging() -> Iterator[None]:
    """Have KSM merge, and stop it again without undoing what it has merged."""
    with ExitStack() as stack:
        for name, value in (("sleep_millisecs", 0), ("pages_to_scan", 10000), ("run", 1)):
            stack.enter_context(setting(KSM / name, value))
        yield


def _merge_and_swap(driven: Target, squeeze: Squeeze) -> None:
    """Fill pages alike, have them merged, and push the one that is left out to swap."""
    with squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            start = driven.mmap(MERGED)
            driven.madvise(start, range(MERGED), MADV_NOHUGEPAGE)
            code = "result = ctypes.memset(start, 77, size)"
            driven.run(code, start=start, size=MERGED * PAGE)
        driven.madvise(start, range(MERGED), MADV_MERGEABLE)

        def is_merged() -> bool:
            words = oracle.read_pagemap(driven.pid, start, MERGED).tolist()
            flags = oracle.read_kpageflags(oracle.read_pagemap(driven.pid, start, MERGED))
            same = len({word & ((1 << 55) - 1) for word in words}) == 1
            return same and all(flag >> KPF_KSM & 1 for flag in flags)

        def is_out() -> bool:
            cgroup.reclaim()
            words = oracle.read_pagemap(driven.pid, start, MERGED).tolist()
            return all(word & oracle.SWAP for word in words)

        with merging():
            wait_until(is_merged, f"{MERGED} pages merged")
        wait_until(is_out, "the merged page on swap")


@ON_ZRAM
def test_a_merged_page_has_one_slot(swap: str, squeeze: Squeeze) -> None:
    """Many entries of one process's page table name it; its exit frees one slot."""
    if not KSM.exists():
        pytest.skip("this kernel has no KSM")
    with target() as driven:
        _merge_and_swap(driven, squeeze)
        private = read_private([driven.pid])
        others = len(private.slots[driven.pid]) - 1
        (row,) = [row for row in read_swap_ledger().processes if row.pid == driven.pid]
        assert row.swap_entries_pages == others + MERGED
        assert row.swap_share_bytes == (others + 1) * PAGE
        assert row.freed_on_exit_pages == others + 1
        (row_of_ps,) = list_processes([driven.pid]).processes
        assert row_of_ps.swap_entries_pages == others + MERGED
        assert row_of_ps.swap_share_bytes == (others + 1) * PAGE


def test_hugetlb_is_in_no_rss() -> None:
    """As in smaps: neither Rss nor Pss count hugetlb."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    with setting(pool, int(pool.read_text()) + 3), target() as driven:
        for kind in (MAP_PRIVATE, MAP_SHARED):
            flags = kind | MAP_ANONYMOUS | MAP_HUGETLB
            start = driven.mmap(HUGE // PAGE, flags=flags, align=HUGE)
            driven.poke(start, [0])
        os.kill(driven.pid, signal.SIGSTOP)
        again_if_moved(lambda: hold_against_rollup([driven.pid]))
        # Shared hugetlb memory is no tmpfs, so that Shmem does not count it either.
        holders = set(list_shared_memory().holders.column("pid").tolist())
        assert driven.pid not in holders


def test_exit_frees_only_what_nobody_unseen_may_hold(tmp_path: Path) -> None:
    """From within a PID namespace: a memfd may have been passed to a process outside it."""
    with target() as driven:
        driven.libc("unshare", CLONE_NEWPID | CLONE_NEWNS)
        child = driven.fork()
        fd = child.os("memfd_create", "perhaps passed on", 1)
        child.os("ftruncate", fd, 29 * PAGE)
        fill(child, child.mmap(29, flags=MAP_SHARED, fd=fd), range(29))
        proc = tmp_path / "proc"
        child.mount("proc", proc)
        inside = f"/proc/{child.pid}/root{proc}"
        within, holders = _named("memfd:perhaps passed on", inside)
        without, _ = _named("memfd:perhaps passed on", "/proc")
        freed = list_processes(proc=inside)
        (from_outside,) = list_processes([child.pid]).processes
    assert [holder.pid for holder in holders] == [1]
    assert (within.sole_keeper, without.sole_keeper) == (None, child.pid)
    (from_inside,) = freed.processes
    assert from_inside.freed_on_exit_pages is not None
    assert from_outside.freed_on_exit_pages == from_inside.freed_on_exit_pages + 29
    assert any("leaves out 1 object that" in note for note in freed.notes)


def _named(name: str, proc: str) -> tuple[SharedObject, list[Holder]]:
    found = list_shared_memory(proc=proc)
    (item,) = [item for item in found.objects if item.name == name]
    return item, holders_of(found, item)


@ON_ZRAM
def test_a_segment_by_its_number(swap: str, squeeze: Squeeze, tmp_path: Path) -> None:
    """It is attached for a moment to be looked at; nothing of it moves."""
    with ExitStack() as stack:
        segment_of_nobody(Builder(stack, squeeze, swap, mix := Mix(tmp_path)))
        (made,) = mix.objects
        done = run("shm", f"sysv:{made.inode}", "--json", "--pages")
        assert done.returncode == 0, done.stderr
        found = Inventory.from_json(done.stdout)
        (item,) = found.objects
        pages = {kind.label: pages for kind, pages in counts_of(item).items() if pages}
        assert pages == {"cached": 3, "swapped": 31, "none": 3}
        assert runs_of(found, item) == [(0, 31, "swapped"), (31, 3, "cached"), (34, 3, "none")]
        assert not len(found.holders)
        assert marks_of(item) == {"no_holder", "detached"}
        assert segment_columns(None, made.inode) == (0, 3, 31)
        text = run("shm", f"sysv:{made.inode}")
        assert f"sysv:{made.inode}" in text.stdout
    gone = run("shm", f"sysv:{made.inode}")
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1
