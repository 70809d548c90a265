"""
Looking changes nothing: the kernel's own counts before and after a map are the same.

Each test also does what memlens must not do, and sees that this would have been noticed.
"""

import ctypes
import errno
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memlens import PageClass, map_process
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import MAP_PRIVATE, MAP_SHARED, PAGE, Target, target
from tests.kernel.support.machine import StateMoved, setting, wait_until
from tests.kernel.support.verdicts import GIVE_AWAY, can_walk, looker
from tests.kernel.workloads.base import Tools
from tests.kernel.workloads.catalogue import CATALOGUE
from tests.kernel.workloads.shmem import SWAP_STATES, make_shmem, memfd

ATTEMPTS = 4
ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
SYS_PIDFD_OPEN, SYS_PROCESS_MADVISE = 434, 440
MADV_PAGEOUT = 21
IN_OPEN = 0x20
F_SETLEASE, F_WRLCK, F_UNLCK = 1024, 1, 2
LISTED = {entry.name: entry for entry in CATALOGUE}
libc = ctypes.CDLL(None, use_errno=True)


def faults(pid: int) -> tuple[int, ...]:
    """Return the minor and major faults of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return tuple(int(field) for field in fields[7:11])


def memory(pid: int) -> dict[int, tuple[object, ...]]:
    """Return what smaps says of each mapping, but for who else maps the same pages."""
    return {
        vma.start: (vma.stop, vma.path, _own_fields(vma), vma.flags)
        for vma in oracle.read_smaps(pid)
    }


def _own_fields(vma: oracle.Vma) -> dict[str, int]:
    # Other processes of the same program come and go: Pss, and shared against private.
    others = ("Pss", "SwapPss", "Shared", "Private")
    return {name: kib for name, kib in vma.fields.items() if not name.startswith(others)}


def frames(pid: int, start: int, pages: int) -> list[int]:
    """Return the accessed and active bits of the frames that are mapped."""
    bits = 1 << oracle.KPF_REFERENCED | 1 << oracle.KPF_ACTIVE
    words = oracle.read_pagemap(pid, start, pages)
    return [flags & bits for flags in oracle.read_kpageflags(words)]


def meminfo(name: str) -> int:
    """Return one line of /proc/meminfo."""
    (line,) = [
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1])


@contextmanager
def still(driven: Target) -> Iterator[None]:
    """Stop a target for a while."""
    os.kill(driven.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(driven.pid) == "T", "stopped")
        yield
    finally:
        os.kill(driven.pid, signal.SIGCONT)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def everything(pid: int, places: list[tuple[int, int, int]]) -> dict[object, object]:
    """Return every count that must not move, by what it counts."""
    counts: dict[object, object] = {"faults": faults(pid)}
    counts |= {("frames", place): frames(*place) for place in places}
    counts |= {("smaps", start): fields for start, fields in memory(pid).items()}
    return counts


def differences(
    before: dict[object, object], after: dict[object, object]
) -> dict[object, object]:
    """Return what differs."""
    return {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }


KINDS = ("private", "memfds", "posix_shm", "disk_file", "hugetlb_in_part", "secret_memory")
SWAPPED_KINDS = ("private_swapped", "memfds", "private_of_memfd", "shared_markers")
CASES = [(name, "none") for name in KINDS]
CASES += [(name, kind) for kind in ("zram", "file") for name in SWAPPED_KINDS]


@pytest.mark.parametrize(("name", "swap"), CASES, indirect=["swap"], scope="module")
def test_no_count_of_the_kernel_moves(
    name: str, swap: str, squeeze: Squeeze, tmp_path: Path
) -> None:
    for attempt in range(ATTEMPTS):
        with LISTED[name].open(swap, squeeze, tmp_path / str(attempt)) as workload:
            places = [(one.pid, one.start, len(one.classes)) for one in workload.mappings]
            pid = workload.target.pid
            with still(workload.target):
                before = everything(pid, places)
                reserved = meminfo("HugePages_Rsvd")
                map_process(pid)  # what is opened once for all stays open
                descriptors = os.listdir("/proc/self/fd")
                for _ in range(3):
                    map_process(pid)
                assert os.listdir("/proc/self/fd") == descriptors
                assert meminfo("HugePages_Rsvd") == reserved
                after = everything(pid, places)
            try:
                workload.reprove()
            except StateMoved:
                continue  # reclaim, which the comparison cannot tell from ours
            assert differences(before, after) == {}
            return
    raise StateMoved("reclaim never let go")


@ON_SWAP
def test_what_lies_on_swap_stays_there(swap: str) -> None:
    """Also the page of the stack that /proc/PID/cmdline would bring back."""
    with target() as driven, still(driven):
        anonymous = [
            vma
            for vma in oracle.read_smaps(driven.pid)
            if vma.path in ("", "[stack]", "[heap]") and "w" in vma.permissions
        ]
        page_out_of(driven.pid, anonymous)
        before = everything(driven.pid, [])
        map_process(driven.pid)
        after = everything(driven.pid, [])
        assert differences(before, after) == {}
        (stack,) = [vma for vma in oracle.read_smaps(driven.pid) if vma.path == "[stack]"]
        assert stack.fields["Swap"] > 0
        # The test would notice: this is what the kernel does for a reader of cmdline.
        Path(f"/proc/{driven.pid}/cmdline").read_bytes()
        assert everything(driven.pid, []) != after


def page_out_of(pid: int, mappings: list[oracle.Vma]) -> None:
    """MADV_PAGEOUT mappings of another process, until something of each is on swap."""
    pidfd = libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    assert pidfd >= 0
    try:
        for vma in mappings:
            vector = struct.pack("<2Q", vma.start, vma.stop - vma.start)
            libc.syscall(SYS_PROCESS_MADVISE, pidfd, vector, 1, MADV_PAGEOUT, 0)
    finally:
        os.close(pidfd)


def _object(driven: Target, kind: str, directory: Path) -> Path:
    if kind == "memfd":
        fd = memfd(driven, 23)
        path = Path(f"/proc/{driven.pid}/fd/{fd}")
    else:
        name = f"memlens-test-{driven.pid}"
        path = Path("/dev/shm" if kind == "tmpfs" else directory) / name
        fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT)
        driven.os("ftruncate", fd, 23 * PAGE)
    driven.pwrite(fd, range(11))
    driven.mmap(23, flags=MAP_SHARED, fd=fd)
    return path


@pytest.mark.parametrize("kind", ["memfd", "tmpfs", "disk"])
def test_objects_keep_their_times_and_blocks(machine: None, kind: str, tmp_path: Path) -> None:
    with target() as driven:
        path = _object(driven, kind, tmp_path)
        try:
            # relatime: an access time older than the write is set by the next access
            os.utime(path, ns=(1, 2_000_000_000))
            before = os.stat(path)
            map_process(driven.pid)
            assert os.stat(path) == before
            fd = os.open(path, os.O_RDONLY)
            oracle.read_mincore(fd, 0, 23)
            os.close(fd)
            assert os.stat(path).st_atime_ns != before.st_atime_ns, "would not be noticed"
        finally:
            if kind != "memfd":
                path.unlink()


@pytest.mark.parametrize("disabled", [(), ("cachestat",)])
def test_who_does_not_own_a_file_keeps_its_access_time(
    machine: None, disabled: tuple[str, ...]
) -> None:
    """O_NOATIME is refused to him, though mincore would be honest."""
    uid = 65534
    with target() as driven, looker(disabled, uid=uid) as look:
        path = _object(driven, "tmpfs", Path())
        try:
            os.chmod(path, 0o666)
            driven.run(GIVE_AWAY, uid=uid)
            os.utime(path, ns=(1, 2_000_000_000))
            before = os.stat(path)
            (mapping,) = [row for row in look(driven.pid).each if row.path == str(path)]
            assert os.stat(path) == before
        finally:
            path.unlink()
        classes = set(mapping.classes().tolist())
        assert classes == {PageClass.UNKNOWN if disabled else PageClass.CACHED, PageClass.NONE}


@pytest.mark.parametrize("disabled", [(), ("cachewalk",)])
def test_a_lease_is_not_broken(
    machine: None, disabled: tuple[str, ...], tmp_path: Path
) -> None:
    with target() as driven, looker(disabled) as look:
        driven.run("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])")
        path = tmp_path / "leased"
        fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT)
        driven.os("ftruncate", fd, 23 * PAGE)
        driven.pwrite(fd, range(23))
        start = driven.mmap(23, flags=MAP_SHARED, fd=fd)
        driven.poke(start, [0, 7])
        driven.libc("fcntl", fd, F_SETLEASE, F_WRLCK)
        assert not _is_pending(driven.pid, signal.SIGIO)

        result = look(driven.pid)

        assert not _is_pending(driven.pid, signal.SIGIO)
        (mapping,) = [one for one in result.each if one.start == start]
        # The walk opens nothing, and answers all the same.
        is_walked = can_walk() and not disabled
        other = PageClass.CACHED if is_walked else PageClass.UNKNOWN
        mapped = {0: PageClass.PRESENT, 7: PageClass.PRESENT}
        assert mapping.classes().tolist() == [mapped.get(page, other) for page in range(23)]
        assert all("lease" in run.reason for run in mapping.unknown)

        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert _is_pending(driven.pid, signal.SIGIO), "would not be noticed"
        driven.libc("fcntl", fd, F_SETLEASE, F_UNLCK)


def _is_pending(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [
        int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_devices_are_not_opened(machine: None) -> None:
    with target() as driven, watched("/dev/zero") as count_opens:
        fd = driven.os("open", "/dev/zero", os.O_RDWR)
        start = driven.mmap(23, flags=MAP_PRIVATE, fd=fd)
        driven.poke(start, [3])
        count_opens()
        result = map_process(driven.pid)
        assert count_opens() == 0
        (mapping,) = [one for one in result.each if one.start == start]
        assert mapping.counts()[PageClass.PRESENT] == 1
        os.close(os.open("/dev/zero", os.O_RDONLY))
        assert count_opens() == 1, "would not be noticed"


@contextmanager
def watched(path: str) -> Iterator[Callable[[], int]]:
    """Count how often a file is opened; each call returns the opens since the last."""
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0
    try:
        assert libc.inotify_add_watch(fd, path.encode(), IN_OPEN) >= 0, errno.errorcode[
            ctypes.get_errno()
        ]

        def count() -> int:
            opens = 0
            while select.select([fd], [], [], 0)[0]:
                opens += len(os.read(fd, 4096)) // 16
            return opens

        yield count
    finally:
        os.close(fd)


def test_no_huge_page_is_reserved(machine: None) -> None:
    """Also where a file of huge pages is mapped that holds none."""
    with setting(Path("/proc/sys/vm/nr_hugepages"), 4), target() as driven:
        fd = driven.os("memfd_create", "memlens-test", 4)
        driven.os("ftruncate", fd, 3 << 21)
        # Not reserved by the target itself: MAP_NORESERVE
        driven.mmap(3 << 9, flags=MAP_SHARED | 0x4000, fd=fd, align=2 << 20)
        before = meminfo("HugePages_Rsvd")
        map_process(driven.pid)
        assert meminfo("HugePages_Rsvd") == before
        own = os.open(f"/proc/{driven.pid}/fd/{fd}", os.O_RDWR)
        mapped = oracle.libc.mmap(None, 3 << 21, 3, MAP_SHARED, own, 0)
        assert meminfo("HugePages_Rsvd") == before + 3, "would not be noticed"
        oracle.libc.munmap(mapped, 3 << 21)
        os.close(own)


@ON_SWAP
def test_the_object_stays_as_it_is(swap: str, squeeze: Squeeze, tmp_path: Path) -> None:
    """Its pages on swap, in the page cache and set aside; asked one page at a time."""
    for attempt in range(ATTEMPTS):
        with target() as driven:
            states = [SWAP_STATES[page % len(SWAP_STATES)] for page in range(71)]
            fd = memfd(driven, len(states))
            start = driven.mmap(len(states), flags=MAP_SHARED, fd=fd)
            tools = Tools(swap, squeeze, tmp_path / str(attempt))
            make_shmem(tools, driven, start, fd, states)
            own = os.open(f"/proc/{driven.pid}/fd/{fd}", os.O_RDONLY | os.O_NOATIME)
            try:
                before = _answers(own, len(states))
                again = _answers(own, len(states))
                for _ in range(3):
                    map_process(driven.pid, start=start, stop=start + len(states) * PAGE)
                after = _answers(own, len(states))
            finally:
                os.close(own)
            if before == again == after:
                return
    assert after == before


def _answers(fd: int, pages: int) -> list[list[bool]]:
    evidence = oracle.read_object(fd, 0, pages)
    columns = (evidence.cached, evidence.evicted, evidence.resident, evidence.data)
    return [column.tolist() for column in columns if column is not None]
