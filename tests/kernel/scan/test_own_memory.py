"""Ledger, inventory and process list of memory that the test itself holds."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import memlens
from memlens.errors import MemlensError, ProcessGone, Unsupported
from memlens.scan.facts import Want
from memlens.scan.machine import Machine
from memlens.scan.sweep import Sweep
from tests.kernel.support.shared_memory import holders_of, marks_of, runs_of

PAGE = os.sysconf("SC_PAGE_SIZE")
IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="needs root: map_files and PFNs")
PAGES = 23


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Let any user run these, beside whatever goes on: nothing of the machine is changed."""


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("line\n\x1b[31m feed")
    os.ftruncate(fd, PAGES * PAGE)
    os.pwrite(fd, b"x" * 7 * PAGE, 0)
    yield fd
    os.close(fd)


def find(fd: int) -> tuple[memlens.Inventory, memlens.SharedObject]:
    status = os.fstat(fd)
    found = memlens.list_shared_memory(runs=True)
    (item,) = (
        item
        for item in found.objects
        if (item.inode, item.device)
        == (
            status.st_ino,
            f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}",
        )
    )
    return found, item


def test_a_memfd_that_is_only_open(memfd: int) -> None:
    found, item = find(memfd)
    assert (item.kind, item.name) == ("memfd", "memfd:line\n\x1b[31m feed")
    assert item.size_bytes == PAGES * PAGE
    assert runs_of(found, item) == [(0, 7, "cached"), (7, PAGES - 7, "none")]
    (holder,) = holders_of(found, item)
    assert (holder.pid, holder.mapped_pages, holder.is_open) == (os.getpid(), 0, True)
    # An ordinary user does not see who else may hold it.
    assert item.may_have_more_holders == (os.geteuid() != 0)
    assert item.sole_keeper == (os.getpid() if os.geteuid() == 0 else None)


def test_mapped_pages_are_present_and_the_holder_says_which_part(memfd: int) -> None:
    with mmap.mmap(memfd, 5 * PAGE, offset=2 * PAGE) as mapped:
        mapped[0], mapped[3 * PAGE]
        found, item = find(memfd)
        by_name = memlens.list_shared_memory(f"{os.getpid()}:{memfd}")
    for report, row in ((found, item), (by_name, by_name.objects[0])):
        present = [run for run in runs_of(report, row) if run[2] == "present"]
        pages = {page for first, count, _ in present for page in range(first, first + count)}
        assert {2, 5} <= pages <= set(range(2, 7))
        (holder,) = holders_of(report, row)
        assert (holder.mapped_pages, holder.parts) == (5, "2-7")
        assert [(r.first, r.pages) for r in report.ranges if r.object == row.object] == [(2, 5)]
        assert holder.is_open
    # Asked for by name, every holder's own page table is read.
    assert by_name.holders[0].present_pages == len(pages)


def test_names_that_are_no_object(tmp_path: Path) -> None:
    with pytest.raises(MemlensError, match="no such shared-memory object"):
        memlens.list_shared_memory("inode:00:01:18446744073709551615")
    with pytest.raises(MemlensError, match="no such"):
        memlens.list_shared_memory("/no/such/file")
    with pytest.raises(Unsupported, match="no tmpfs"):
        memlens.list_shared_memory("/proc/self/status")


def test_what_is_no_proc_is_an_error(tmp_path: Path) -> None:
    for call in (memlens.list_shared_memory, memlens.list_processes):
        with pytest.raises(Unsupported, match="not a proc file system"):
            call(proc=str(tmp_path))
    with pytest.raises(Unsupported):
        memlens.read_swap_ledger(proc=str(tmp_path))


def test_the_scan_itself_holds_nothing(memfd: int) -> None:
    """What the scan opens to look at others must not show up as held by it."""
    status = os.fstat(memfd)
    own = {(status.st_dev, status.st_ino)}
    sweep = Sweep(Machine(), Want(objects=True))
    sweep.run()
    (facts,) = (facts for facts in sweep.processes if facts.pid == os.getpid())
    held = {use.key[:2] for use in facts.uses}
    assert own <= held
    inherited = {
        (found.st_dev, found.st_ino)
        for name in os.listdir("/proc/self/fd")
        if (found := _stat(f"/proc/self/fd/{name}")) is not None
    }
    mapped = {use.key[:2] for use in facts.uses if use.mapping is not None}
    assert held <= inherited | mapped


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def test_the_ledger_closes() -> None:
    found = memlens.read_swap_ledger()
    swap = found.sums["swap"]
    names = ("private_pages", "shared_pages", "swap_cache_pages", "remainder_pages")
    parts = [swap[name] for name in names]
    assert sum(parts) == swap["total_pages"] == sum(area.used_pages for area in found.areas)


@pytest.mark.parametrize("after", [0, 1])
def test_a_scan_that_is_stopped_says_what_is_left_out(after: int) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    found = memlens.list_shared_memory(should_stop=should_stop)
    assert not found.is_complete
    assert any("the scan was stopped" in missed.reason for missed in found.missed)
    assert not memlens.list_processes(should_stop=lambda: True).is_complete


def test_a_spent_budget_says_what_is_left_out() -> None:
    found = memlens.list_shared_memory(budget_s=1e-9)
    assert not found.is_complete
    assert any(missed.reason == "the budget was spent" for missed in found.missed)
    assert not len(found.objects)


def test_progress_ends_where_it_said_it_would(memfd: int) -> None:
    seen: list[tuple[int, int]] = []
    memlens.list_shared_memory(on_progress=lambda done, total: seen.append((done, total)))
    assert all(done <= total for done, total in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def figures(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 // PAGE for line in lines}


CHILD = """
import mmap, sys
private = mmap.mmap(-1, 997 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(997):
    private[page * mmap.PAGESIZE] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


def row_of(pid: int) -> dict[str, Any]:
    """Look from a process that does not count; one that may not see frames always counts."""
    if not IS_ROOT:
        (row,) = memlens.list_processes([pid]).processes
        return asdict(row)
    command = [sys.executable, "-m", "memlens", "ps", str(pid), "--json"]
    done = subprocess.run(command, check=True, capture_output=True)
    (found,) = json.loads(done.stdout)["tables"]["processes"]
    return dict(found)


def test_rss_pss_and_uss_are_those_of_the_kernel(child: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        before = figures(child)
        row = row_of(child)
        after = figures(child)
        # Others that map the same libraries come and go: look while none does.
        if before == after or time.monotonic() > deadline:
            break
    uss = [f["Private_Clean"] + f["Private_Dirty"] for f in (before, after)]
    least, most = sorted((before["Rss"], after["Rss"]))
    assert least <= row["rss_pages"] <= most
    assert row["pss_pages"] == pytest.approx(before["Pss"], rel=0.01)
    assert row["uss_pages"] == pytest.approx(uss[0], rel=0.01)
    if IS_ROOT:
        assert 997 <= row["freed_on_exit_pages"] <= max(uss)
    else:
        assert row["freed_on_exit_pages"] is None


@root_only
def test_a_group_counts_every_frame_once(child: int) -> None:
    found = memlens.list_processes([child, os.getpid()], group_by="user")
    (group,) = found.groups
    assert group.processes == len(found.processes) == 2
    sizes = [row.rss_pages for row in found.processes]
    assert group.distinct_rss_pages is not None
    # libc, the interpreter and numpy's neighbours are mapped by both.
    assert max(sizes) < group.distinct_rss_pages < sum(sizes)


def test_a_named_process_that_is_not_there_is_an_error() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessGone):
        memlens.list_processes([process.pid])


@pytest.fixture
def segment() -> Iterator[int]:
    """A System V segment with pages in it that nobody has attached."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    shmid = libc.shmget(0, PAGES * PAGE, 0o1600)
    assert shmid >= 0
    try:
        address = libc.shmat(shmid, None, 0)
        ctypes.memset(address, 1, 5 * PAGE)
        libc.shmdt(address)
        yield shmid
    finally:
        libc.shmctl(shmid, 0, None)


def sysv_line(shmid: int) -> list[str]:
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    (row,) = (row for row in rows if row[1] == str(shmid))
    return row


@root_only
def test_a_detached_segment_is_looked_at_without_touching_a_page(segment: int) -> None:
    before = sysv_line(segment)
    found = memlens.list_shared_memory(f"sysv:{segment}")
    (item,) = found.objects
    after = sysv_line(segment)
    # Size, attachments, and what is in RAM and on swap: none of them moved.
    assert [before[column] for column in (3, 6, 14, 15)] == [
        after[column] for column in (3, 6, 14, 15)
    ]
    assert runs_of(found, item) == [(0, 5, "cached"), (5, PAGES - 5, "none")]
    assert not len(found.holders)
    assert marks_of(item) == {"no_holder", "detached"}
    assert item.sole_keeper is None


def test_a_mapping_cut_to_pieces_is_one_part(memfd: int) -> None:
    """mprotect leaves a mapping for every page; what is mapped stays the same."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with mmap.mmap(memfd, PAGES * PAGE) as mapped:
        address = ctypes.addressof(view := ctypes.c_char.from_buffer(mapped))
        before = len(Path("/proc/self/maps").read_text().splitlines())
        for page in range(0, PAGES, 2):
            assert libc.mprotect(address + page * PAGE, PAGE, mmap.PROT_READ) == 0
        assert len(Path("/proc/self/maps").read_text().splitlines()) >= before + PAGES - 1
        found, item = find(memfd)
        del view
    (holder,) = holders_of(found, item)
    assert (holder.mapped_pages, holder.parts) == (PAGES, f"0-{PAGES}")
