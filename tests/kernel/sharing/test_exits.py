"""What ``memlens ps`` and ``swap`` say an exit frees, against what it does free."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from memlens import list_processes, read_swap_ledger
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Cgroup, Squeeze
from tests.kernel.support.driver import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    HUGE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_SHARED,
    PAGE,
    Target,
    target,
)
from tests.kernel.support.machine import StateMoved, wait_until
from tests.kernel.support.namespaces import mount_tmpfs
from tests.kernel.support.standstill import again_if_moved, standing_still
from tests.kernel.support.swap import used_pages
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import fill

PAGES = 8192
# The kernel keeps up to 64 charged pages of a cgroup in stock for every CPU
# (MEMCG_CHARGE_BATCH), and what one CPU freed lately is counted later.
STOCK = 64 * (os.cpu_count() or 1)
Fill = Callable[[Target, Path], int]


def _huge(driven: Target, _: Path) -> int:
    start = driven.mmap(PAGES, align=HUGE)
    driven.madvise(start, range(PAGES), MADV_HUGEPAGE)
    fill(driven, start, range(0, PAGES, 64))
    return PAGES


def _half_of_it_zero(driven: Target, _: Path) -> int:
    start = driven.mmap(PAGES)
    driven.madvise(start, range(PAGES), MADV_NOHUGEPAGE)
    driven.peek(start, range(PAGES // 2))
    fill(driven, start, range(PAGES // 2, PAGES))
    return PAGES // 2


def _shared_anonymous(driven: Target, _: Path) -> int:
    start = driven.mmap(PAGES, flags=MAP_SHARED | MAP_ANONYMOUS)
    fill(driven, start, range(PAGES))
    return PAGES


def _memfd_only_open(driven: Target, _: Path) -> int:
    fd = driven.os("memfd_create", "freed", 1)
    driven.os("ftruncate", fd, PAGES * PAGE)
    start = driven.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    fill(driven, start, range(PAGES))
    driven.libc("munmap", start, PAGES * PAGE)
    return PAGES


def _half_of_it_the_child_s_too(driven: Target, _: Path) -> int:
    start = driven.mmap(PAGES)
    driven.madvise(start, range(PAGES), MADV_NOHUGEPAGE)
    fill(driven, start, range(PAGES))
    # The child stays, since it is not told to end with its parent.
    child = driven.fork()
    child.libc("prctl", 1, 0, 0, 0, 0)
    fill(driven, start, range(PAGES // 2))
    return PAGES // 2


def _file_that_stays(driven: Target, where: Path) -> int:
    fd = driven.os("open", str(where / "stays"), os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, PAGES * PAGE)
    start = driven.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    fill(driven, start, range(PAGES))
    return 0


@pytest.mark.parametrize(
    "make",
    [
        *(_huge, _half_of_it_zero, _shared_anonymous, _memfd_only_open),
        *(_half_of_it_the_child_s_too, _file_that_stays),
    ],
)
def test_the_cgroup_gives_back_what_is_freed(
    make: Fill, squeeze: Squeeze, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        cgroup = stack.enter_context(squeeze.cgroup())
        driven = stack.enter_context(target())
        before = _said(driven)
        (cgroup.path / "cgroup.procs").write_text(str(driven.pid))
        made = make(driven, tmp_path)
        said = _said(driven)
        charged = _charged_pages(cgroup)
        for child in driven.children:
            stack.callback(os.kill, child.pid, signal.SIGKILL)
        os.kill(driven.pid, signal.SIGKILL)
        os.waitid(os.P_PID, driven.pid, os.WEXITED | os.WNOWAIT)
        # What it had before it came into the cgroup is charged elsewhere, and in part no longer
        # its own if it has forked.
        if driven.children:
            assert 0 <= said - made <= before
        else:
            assert abs(said - before - made) <= STOCK

        def is_given_back() -> bool:
            return abs(charged - _charged_pages(cgroup) - made) <= STOCK + _own_tables(PAGES)

        wait_until(is_given_back, f"{made} pages given back, {charged} charged before")


def _said(driven: Target) -> int:
    (row,) = list_processes([driven.pid]).processes
    assert row.freed_on_exit_pages is not None
    return row.freed_on_exit_pages


def _own_tables(pages: int) -> int:
    """Return the pages that page tables of so many pages take, which are charged as well."""
    return pages * 8 // PAGE + 8


def _charged_pages(cgroup: Cgroup) -> int:
    for name in ("memory.usage_in_bytes", "memory.current"):
        path = cgroup.path / name
        if path.exists():
            return int(path.read_text()) // PAGE
    raise FileNotFoundError(cgroup.path)


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
def test_swap_that_is_freed(swap: str) -> None:
    """Used falls by what the ledger says of a process that holds private pages and a memfd."""

    def attempt() -> None:
        with target() as driven:
            start = driven.mmap(499)
            fill(driven, start, range(499))
            page_out(driven, start, range(499))
            fd = driven.os("memfd_create", "freed", 1)
            driven.os("ftruncate", fd, 101 * PAGE)
            shared = driven.mmap(101, flags=MAP_SHARED, fd=fd)
            fill(driven, shared, range(101))
            page_out(driven, shared, range(101))
            said = again_if_moved(lambda: _said_of_swap(driven))
            assert said >= 600
            used, moved = used_pages(), _moved()
            os.kill(driven.pid, signal.SIGKILL)
            os.waitid(os.P_PID, driven.pid, os.WEXITED | os.WNOWAIT)
            wait_until(
                lambda: used - used_pages() >= said or _moved() != moved,
                f"Used to fall by {said}",
            )
            fell = used - used_pages()
            if _moved() != moved:
                raise StateMoved("something was swapped meanwhile")
        assert fell == said

    again_if_moved(attempt)


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
def test_private_swap_that_a_process_unseen_may_hold(swap: str, tmp_path: Path) -> None:
    """From within a PID namespace: the parent, outside of it, has the same slots since fork."""
    with target() as driven:
        start = driven.mmap(307)
        fill(driven, start, range(307))
        page_out(driven, start, range(307))
        driven.libc("unshare", CLONE_NEWPID | CLONE_NEWNS)
        child = driven.fork()
        (proc := tmp_path / "proc").mkdir()
        child.mount("proc", proc)
        inside = read_swap_ledger(proc=f"/proc/{child.pid}/root{proc}")
        outside = read_swap_ledger()
    (row,) = inside.processes
    assert (row.pid, row.freed_on_exit_pages) == (1, None)
    assert row.swap_entries_pages >= 307
    assert any("freed on exit is not known of 1 process" in note for note in inside.notes)
    (row,) = [row for row in outside.processes if row.pid == child.pid]
    assert row.freed_on_exit_pages is not None
    assert row.freed_on_exit_pages <= row.swap_entries_pages - 307
    assert not any("freed on exit is not known" in note for note in outside.notes)


def _said_of_swap(driven: Target) -> int:
    with standing_still():
        (row,) = [r for r in read_swap_ledger().processes if r.pid == driven.pid]
    assert row.freed_on_exit_pages is not None
    return row.freed_on_exit_pages


def _moved() -> tuple[int, int]:
    counters = oracle.read_vmstat()
    return counters["pswpin"], counters["pswpout"]
