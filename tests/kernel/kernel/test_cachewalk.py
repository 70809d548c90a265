"""
The page-cache walk against the kernel: contents, states, privileges, speed.

The proof of a slot is the swap device: the page of random bytes that was swapped out must
be there.  Pages of zeroes would not do, since newer kernels never write them.
"""

import ctypes
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel import cachewalk
from memlens.kernel.cacherecords import CacheRecords
from memlens.kernel.cachewalk import CacheWalker
from memlens.kernel.frameslots import number_areas
from memlens.kernel.mounts import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.procfs import Host
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import MADV_PAGEOUT, target
from tests.kernel.support.machine import setting, undone_at_exit, wait_until
from tests.kernel.support.swapped_objects import (
    MAKE,
    PAGE,
    by_page,
    huge_shmem,
    memfd,
    prove_slots,
    read_slots,
    swap_lines,
    swap_on,
    swapped_pages,
    written_swap_file,
    zram_devices,
)

NONE = pytest.mark.parametrize("swap", ["none"], indirect=True)
ZRAM = pytest.mark.parametrize("swap", ["zram"], indirect=True)
PROVEN_PAGES = 12_289  # prime, and over the 10,000 asked for
HUGE_PAGES = 24 * 512
CLONE_NEWUSER = 0x10000000
NOBODY = 65534

libc = ctypes.CDLL(None, use_errno=True)


@ZRAM
@pytest.mark.parametrize("kind", list(MAKE))
def test_zram_holds_each_page_at_its_slot(swap: str, walker: CacheWalker, kind: str) -> None:
    prove_object(walker, kind)


@NONE
@pytest.mark.parametrize("kind", list(MAKE))
def test_a_swap_file_holds_each_page_at_its_slot(
    swap: str, walker: CacheWalker, kind: str, tmp_path: Path
) -> None:
    with written_swap_file(tmp_path / "swap", 96 << 20):
        prove_object(walker, kind)


def prove_object(walker: CacheWalker, kind: str) -> None:
    pages = HUGE_PAGES if kind == "huge shmem" else PROVEN_PAGES
    with MAKE[kind](pages) as made:
        content = made.fill()
        made.page_out()
        by_fd = walker.walk_fd(made.fd)
        by_vma = walker.walk_vma(os.getpid(), made.address + PAGE)
        assert swapped_pages(by_fd) >= 10_000
        assert by_fd.object.swapped == swapped_pages(by_fd)
        assert by_fd.pages.sum() == pages
        assert by_fd.object.magic == TMPFS_MAGIC
        assert by_fd.object.inode == os.fstat(made.fd).st_ino
        prove_slots(by_fd, content)
        assert [list(one) for one in by_page(by_fd)] == [list(one) for one in by_page(by_vma)]
        assert by_vma.object.vma == (made.address, made.address + pages * PAGE, 0)


@ZRAM
def test_single_pages_of_large_entries(swap: str, walker: CacheWalker) -> None:
    """Asked for a part, the walk begins and ends inside entries of 512 pages."""
    with huge_shmem(4 * 512) as made:
        content = made.fill()
        made.page_out()
        whole_page, whole_slot = by_page(walker.walk_fd(made.fd))
        assert len(whole_page) == made.pages
        for start, stop in ((0, 1), (511, 513), (700, 1301), (2047, 2048), (64, 128)):
            page, slot = by_page(walker.walk_fd(made.fd, start, stop))
            assert page.tolist() == list(range(start, stop))
            assert (slot == whole_slot[start:stop]).all()
        prove_slots(walker.walk_fd(made.fd), content)


@ZRAM
def test_states_are_those_that_seek_and_cachestat_see(swap: str, walker: CacheWalker) -> None:
    """Random neighbours: swapped, cached, set aside, none."""
    rng = np.random.default_rng(23)
    state = rng.choice(["swapped", "cached", "preallocated", "none"], 5003)
    with memfd(len(state)) as made:
        for page in np.flatnonzero(np.isin(state, ["swapped", "cached"])).tolist():
            made.bytes[page * PAGE : page * PAGE + 8] = np.frombuffer(os.urandom(8), np.uint8)
        for page in np.flatnonzero(state == "preallocated").tolist():
            libc.fallocate(made.fd, 0, ctypes.c_long(page * PAGE), ctypes.c_long(PAGE))
        made.page_out(np.flatnonzero(state == "swapped"))
        seen = classify(walker.walk_fd(made.fd), len(state))
        asked = ask_otherwise(made.fd, len(state))
        assert (asked == state).all()
        assert (seen == state).all()


def classify(records: CacheRecords, pages: int) -> NDArray[np.str_]:
    state = np.full(pages, "none", "U12")
    for index, count, is_swap, is_uptodate in zip(
        records.index.tolist(),
        records.pages.tolist(),
        records.is_swap.tolist(),
        records.is_uptodate.tolist(),
        strict=True,
    ):
        name = "swapped" if is_swap else "cached" if is_uptodate else "preallocated"
        state[index : index + count] = name
    return state


def ask_otherwise(fd: int, pages: int) -> NDArray[np.str_]:
    """Ask SEEK_DATA and cachestat of each page."""
    state = np.full(pages, "none", "U12")
    has_data = oracle.read_data(fd, 0, pages)
    for page in range(pages):
        cached, evicted = oracle.read_cachestat(fd, page * PAGE, PAGE)
        if evicted:
            state[page] = "swapped"
        elif cached:
            state[page] = "cached" if has_data[page] else "preallocated"
    return state


@NONE
def test_every_folio_is_charged_to_the_cgroup_of_who_wrote_it(
    swap: str, walker: CacheWalker, squeeze: Squeeze
) -> None:
    with squeeze.cgroup() as group, target() as process:
        fd = process.os("memfd_create", "memlens")
        with group.charging(process.pid):
            process.os("pwrite", fd, b"memlens", 5 * PAGE)
        opened = os.open(f"/proc/{process.pid}/fd/{fd}", os.O_RDONLY)
        records = walker.walk_fd(opened)
        os.close(opened)
        assert records.index.tolist() == [5]
        assert records.cgroup_id.tolist() == [group.path.stat().st_ino]


@NONE
def test_hugetlb_pages_that_nobody_else_shows(swap: str, walker: CacheWalker) -> None:
    """pagemap reads zero for these, SEEK_DATA finds data everywhere, mincore finds none."""
    with ExitStack() as stack:
        stack.enter_context(setting(Path("/proc/sys/vm/nr_hugepages"), 8))
        fd = os.memfd_create("memlens-hugetlb", os.MFD_HUGETLB | os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        size = 2 << 20
        os.ftruncate(fd, 7 * size)
        with mmap.mmap(fd, 7 * size) as mapping:
            for page in (0, 3, 4):
                mapping[page * size] = 1
        records = walker.walk_fd(fd)
        assert records.object.magic == HUGETLBFS_MAGIC
        assert records.index.tolist() == [0, 3 * 512, 4 * 512]
        assert records.pages.tolist() == [512] * 3
        part = walker.walk_fd(fd, 3 * 512 + 7, 4 * 512 + 1)
        assert part.index.tolist() == [3 * 512 + 7, 4 * 512]
        assert part.pages.tolist() == [505, 1]


@NONE
def test_overlayfs_is_seen_by_the_mapping_only(
    swap: str, walker: CacheWalker, tmp_path: Path
) -> None:
    """The pages are those of the file below, which a file descriptor does not name."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    below = tmp_path / "lower" / "object"
    below.write_bytes(os.urandom(5 * PAGE))
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", layers, "o", tmp_path / "merged"], check=True
    )
    with undone_at_exit(
        lambda: subprocess.run(["umount", "-l", tmp_path / "merged"], check=True)
    ):
        with (tmp_path / "merged" / "object").open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            address = int(np.frombuffer(mapping, np.uint8).ctypes.data)
            assert mapping[3 * PAGE] == below.read_bytes()[3 * PAGE]
            with pytest.raises(Unsupported, match="overlayfs"):
                walker.walk_fd(file.fileno())
            records = walker.walk_vma(os.getpid(), address)
        assert records.object.inode == below.stat().st_ino
        assert records.pages.sum() == 5
        assert not records.is_swap.any()


@NONE
def test_evicted_pages_of_a_disk_file_are_not_swap(
    swap: str, walker: CacheWalker, tmp_path: Path
) -> None:
    """Their entries are values too: shadows, which must not read as slots."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 * PAGE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert len(mapping[:]) == 64 * PAGE
            mapping.madvise(MADV_PAGEOUT)
        records = walker.walk_fd(file.fileno())
    assert not records.is_swap.any()


@NONE
def test_an_answer_longer_than_one_call(swap: str, walker: CacheWalker) -> None:
    """More pages than a call visits, and more records than it has room for."""
    with memfd(150_001) as made:
        made.bytes[:: 2 * PAGE] = 1
        records = walker.walk_fd(made.fd)
        assert records.index.tolist() == list(range(0, 150_001, 2))
        assert set(records.pages.tolist()) == {1}
        by_vma = walker.walk_vma(os.getpid(), made.address)
        assert (by_vma.index == records.index).all()
        part = walker.walk_fd(made.fd, 131_000, 131_073)
        assert part.index.tolist() == list(range(131_000, 131_073, 2))


@NONE
def test_what_is_not_there(swap: str, walker: CacheWalker) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        walker.walk_fd(1 << 20)
    with pytest.raises(MemlensError, match="no mapping"):
        walker.walk_vma(os.getpid(), PAGE)
    private = np.zeros(1 << 20, np.uint8)
    with pytest.raises(MemlensError, match="anonymous"):
        walker.walk_vma(os.getpid(), int(private.ctypes.data) + PAGE)
    with target() as process:
        pid = process.pid
    with pytest.raises(MemlensError):
        walker.walk_vma(pid, int(private.ctypes.data))


@NONE
def test_threads_get_their_own_answers(swap: str, walker: CacheWalker) -> None:
    wrong: list[int] = []

    def ask(pages: int) -> None:
        with memfd(64) as made:
            made.bytes[: pages * PAGE] = 1
            for _ in range(200):
                if walker.walk_fd(made.fd).pages.sum() != pages:
                    wrong.append(pages)

    threads = [threading.Thread(target=ask, args=(pages,)) for pages in (3, 17, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@NONE
def test_nothing_is_left_open(swap: str, walker: CacheWalker) -> None:
    before = os.listdir("/proc/self/fd")
    with CacheWalker() as another, memfd(3) as made:
        another.walk_fd(made.fd)
        another.walk_vma(os.getpid(), made.address)
    another.close()
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ValueError, match="closed"):
        another.walk_fd(0)


@NONE
def test_a_forked_child_loads_its_own(swap: str, walker: CacheWalker) -> None:
    with memfd(23) as made:
        made.bytes[:] = 1
        shared = cachewalk.walker()
        try:

            def look() -> str:
                mine = cachewalk.walker()
                return f"{mine is shared} {mine.walk_fd(made.fd).pages.sum()}"

            assert in_child(look) == "False 23"
            assert shared.walk_fd(made.fd).pages.sum() == 23
        finally:
            cachewalk.close_walker()


def in_child(look: Callable[[], str]) -> str:
    """Run ``look`` in a forked child and return what it says."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, look().encode())
        except BaseException as error:
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    return answer


def refusal() -> str:
    """Return the reason and its time; the best of a few, as the machine is shared."""
    times = []
    for _ in range(5):
        cachewalk.close_walker()
        before = time.perf_counter()
        try:
            cachewalk.walker()
        except AccessDenied as error:
            times.append(time.perf_counter() - before)
            reason = str(error)
        else:
            return "not refused"
    return f"{min(times) * 1000:.3f}|{reason}"


def as_nobody() -> str:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return refusal()


def as_root_of_a_user_namespace() -> str:
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    return refusal()


@NONE
@pytest.mark.parametrize("who", [as_nobody, as_root_of_a_user_namespace])
def test_without_privilege_it_is_refused_at_once(
    swap: str, walker: CacheWalker, who: Callable[[], str]
) -> None:
    milliseconds, _, reason = in_child(who).partition("|")
    assert float(milliseconds) < 5
    assert "needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN" in reason
    assert "\n" not in reason


@NONE
def test_numbers_of_three_areas_after_the_middle_one_was_switched_off(
    swap: str, walker: CacheWalker
) -> None:
    """The line of the third moves up in /proc/swaps; its number stays, and is found."""
    with zram_devices(3, 32 << 20) as devices, ExitStack() as stack:
        on = [stack.enter_context(ExitStack()) for _ in devices]
        for device, context in zip(devices, on, strict=True):
            context.enter_context(swap_on(device))
        on[1].close()
        assert [line.split()[0] for line in swap_lines()] == [str(devices[0]), str(devices[2])]
        with memfd(24 << 8) as filler, memfd(24 << 8) as made:
            filler.fill()
            filler.page_out()
            content = made.fill()
            made.page_out()
            records = walker.walk_fd(made.fd)
            assert set(records.area[records.is_swap].tolist()) == {0, 2}
            seen = records.area[records.is_swap].tolist()
            paths = {area.number: area.area.path for area in number_areas(Host(), seen)}
            assert paths == {0: str(devices[0]), 2: str(devices[2])}
            for number, path in paths.items():
                prove_area(records, number, path, content)
            # Not seen in full: known from the kernel's table, or as far as the order goes.
            for one, by_order in ((2, [None, None]), (0, [0, None])):
                numbers = [area.number for area in number_areas(Host(), [one])]
                assert numbers in ([0, 2], by_order)


def prove_area(
    records: CacheRecords, number: int | None, path: str, content: NDArray[np.uint8]
) -> None:
    """Compare what is in one of several areas with its device."""
    page, slot = by_page(records)
    area = np.repeat(records.area, np.where(records.is_swap, records.pages, 0))
    assert (read_slots(path, slot[area == number]) == content[page[area == number]]).all()


@ZRAM
@pytest.mark.parametrize(
    ("kind", "at_least"), [("in few runs", 40), ("in single pages", 10)], ids=str
)
def test_speed_in_million_pages_a_second(
    swap: str, walker: CacheWalker, kind: str, at_least: int
) -> None:
    """256 MiB; the best walk within a deadline counts, as the machine is shared."""
    pages = 1 << 16
    with memfd(pages) as made:
        made.fill()
        if kind == "in single pages":
            # The even pages take one run of slots, then the odd ones another.
            made.page_out(np.arange(0, pages, 2))
            made.page_out(np.arange(1, pages, 2))
        else:
            made.page_out()
        records = walker.walk_fd(made.fd)
        assert swapped_pages(records) == pages
        assert (len(records) > 60_000) == (kind == "in single pages")

        def is_fast() -> bool:
            before = time.perf_counter()
            walker.walk_fd(made.fd)
            return pages / (time.perf_counter() - before) >= at_least * 1e6

        wait_until(is_fast, f"{at_least} million pages a second")


@NONE
def test_loading_takes_tens_of_milliseconds(swap: str, walker: CacheWalker) -> None:
    def is_fast() -> bool:
        before = time.perf_counter()
        CacheWalker().close()
        return time.perf_counter() - before < 0.05

    wait_until(is_fast, "loading within 50 ms")
