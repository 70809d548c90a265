"""Shared memory in huge pages: a tmpfs mounted with huge=always."""

import os
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    HUGE,
    MADV_DONTNEED,
    MAP_SHARED,
    PAGE,
    Target,
)
from tests.kernel.support.machine import StateMoved
from tests.kernel.workloads.base import (
    BOTH,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
    kinds,
)
from tests.kernel.workloads.shmem import push_out

ENTRIES, workload = entries()
SMALL = HUGE // PAGE
HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class _Huge:
    """Files on a tmpfs of huge pages, each mapped whole by the target."""

    def __init__(self, driven: Target, where: Path) -> None:
        driven.isolate_mounts()
        driven.mount("tmpfs", where, "huge=always")
        self.driven = driven
        self.where = where
        self.files = 0

    def map(self, size_bytes: int = HUGE) -> tuple[int, int]:
        """Map a new file of one huge page; its first byte is written: (fd, address)."""
        self.files += 1
        path = str(self.where / f"file{self.files}")
        fd: int = self.driven.os("open", path, os.O_RDWR | os.O_CREAT)
        self.driven.os("ftruncate", fd, size_bytes)
        start = self.driven.mmap(SMALL, flags=MAP_SHARED, fd=fd, align=HUGE)
        self.driven.poke(start, [0])
        return fd, start

    def expect(self, start: int, *groups: tuple[PageClass, int]) -> Expected:
        """Return what is expected of the mapping at ``start``."""
        return Expected(self.driven.pid, start, kinds(*groups), "shmem")


def _prove_huge(driven: Target, start: int) -> None:
    (vma,) = oracle.smaps_at(driven.pid, start, start + HUGE)
    if vma.fields["ShmemPmdMapped"] != HUGE >> 10:
        raise StateMoved("not mapped by a huge entry")


def _is_cached(driven: Target, fd: int) -> bool:
    """Return whether the first page of an object is in the page cache."""
    descriptor = os.open(f"/proc/{driven.pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return oracle.read_cachestat(descriptor, 0, PAGE) == (1, 0)
    finally:
        os.close(descriptor)


@workload()
def shared_huge(tools: Tools) -> Workload:
    """Mapped by one entry, unmapped, with holes punched; and a short file in a huge page."""
    driven = tools.target()
    huge = _Huge(driven, tools.directory / "huge")
    _, whole = huge.map()
    _prove_huge(driven, whole)
    _, zapped = huge.map()
    _prove_huge(driven, zapped)
    driven.madvise(zapped, range(SMALL), MADV_DONTNEED)
    punched_fd, punched = huge.map()
    driven.fallocate(punched_fd, range(100, 123), HOLE)
    driven.madvise(punched, range(SMALL), MADV_DONTNEED)
    driven.poke(punched, range(200, 231))
    driven.madvise(punched, [p for p in range(SMALL) if not 200 <= p < 231], MADV_DONTNEED)
    # One entry maps all of the page, also what lies past the file's end.
    _, short = huge.map(size_bytes=40 << 10)
    _prove_huge(driven, short)
    _, short_zapped = huge.map(size_bytes=40 << 10)
    driven.madvise(short_zapped, range(SMALL), MADV_DONTNEED)
    return Workload(
        driven,
        [
            huge.expect(whole, (P.PRESENT, SMALL)),
            huge.expect(zapped, (P.CACHED, SMALL)),
            huge.expect(
                punched,
                *((P.CACHED, 100), (P.NONE, 23), (P.CACHED, 77), (P.PRESENT, 31)),
                (P.CACHED, SMALL - 231),
            ),
            huge.expect(short, (P.PRESENT, SMALL)),
            huge.expect(short_zapped, (P.CACHED, 10), (P.BEYOND_END, SMALL - 10)),
        ],
    )


@workload(*BOTH)
def shared_huge_swapped(tools: Tools) -> Workload:
    """On swap whole, and with a hole punched while there."""
    driven = tools.target()
    huge = _Huge(driven, tools.directory / "huge")
    mapped = []
    for _ in range(2):
        with tools.squeeze.cgroup() as cgroup:
            with cgroup.charging(driven.pid):
                fd, start = huge.map()
                driven.poke(start, range(SMALL))
            driven.madvise(start, range(SMALL), 21)
            push_out(cgroup, driven, fd, list(range(SMALL)))
        mapped.append((fd, start))
    (_, whole), (punched_fd, punched) = mapped
    driven.fallocate(punched_fd, range(100, 123), HOLE)
    # To punch a hole in one that lies on zram whole, the kernel reads it in.
    is_back = _is_cached(driven, punched_fd)
    kind = P.CACHED if is_back else P.SWAPPED
    return Workload(
        driven,
        [
            huge.expect(whole, (P.SWAPPED, SMALL)),
            huge.expect(punched, (kind, 100), (P.NONE, 23), (kind, SMALL - 123)),
        ],
    )


@workload(*BOTH)
def shared_huge_zapped_by_reclaim(tools: Tools) -> Workload:
    """MADV_PAGEOUT of a part of a huge page takes away the one entry that mapped it all."""
    driven = tools.target()
    huge = _Huge(driven, tools.directory / "huge")
    _, start = huge.map()
    driven.madvise(start, range(16, 32), 21)
    return Workload(driven, [huge.expect(start, (P.CACHED, SMALL))])
