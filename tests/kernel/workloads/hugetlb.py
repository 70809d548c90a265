"""hugetlbfs: pages of 2 MiB out of a pool."""

import ctypes
import os
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import (
    HUGE,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    Target,
)
from tests.kernel.support.machine import Missing, StateMoved, setting
from tests.kernel.workloads.base import (
    PROOFS,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
    kinds,
)
from tests.kernel.workloads.userfault import poison, protect, watch

ENTRIES, workload = entries()
SMALL = HUGE // PAGE
POOL = Path("/proc/sys/vm/nr_hugepages")
MFD_HUGETLB = 4
SHM_HUGETLB = 0o4000


def _fill_pool(tools: Tools, pages: int) -> None:
    before = int(POOL.read_text())
    tools.stack.enter_context(setting(POOL, before + pages))
    if int(POOL.read_text()) < before + pages:
        raise Missing(f"no {pages} huge pages of 2 MiB to be had")


def _expect(driven: Target, start: int, *classes: PageClass, offset: int = 0) -> Expected:
    spread = kinds(*((kind, SMALL) for kind in classes))
    # smaps counts hugetlb in fields of its own.
    return Expected(driven.pid, start, spread, "hugetlb", offset, smaps=("Swap",))


def _map(driven: Target, fd: int, pages: int, offset: int = 0) -> int:
    offset_pages = offset // PAGE
    return driven.mmap(
        pages * SMALL, flags=MAP_SHARED, fd=fd, offset_pages=offset_pages, align=HUGE
    )


def _touch(driven: Target, start: int, *pages: int) -> None:
    driven.poke(start, [page * SMALL for page in pages])


@workload()
def hugetlb_mapped(tools: Tools) -> Workload:
    """Everything in the file is mapped, or nothing was ever allocated."""
    _fill_pool(tools, 9)
    driven = tools.target()
    fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", fd, 2 * HUGE)
    whole = _map(driven, fd, 2)
    _touch(driven, whole, 0, 1)
    empty_fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", empty_fd, 2 * HUGE)
    empty = _map(driven, empty_fd, 2)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    private = driven.mmap(2 * SMALL, flags=flags, align=HUGE)
    _touch(driven, private, 1)
    return Workload(
        driven,
        [
            _expect(driven, whole, P.PRESENT, P.PRESENT),
            _expect(driven, empty, P.NONE, P.NONE),
            _expect(driven, private, P.NONE, P.PRESENT),
        ],
    )


@workload()
def hugetlb_not_mapped(tools: Tools) -> Workload:
    """All of the file is in RAM and not mapped here: st_blocks tells."""
    _fill_pool(tools, 5)
    driven = tools.target()
    fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", fd, 3 * HUGE)
    first = _map(driven, fd, 3)
    _touch(driven, first, 0, 1, 2)
    second = _map(driven, fd, 2, offset=HUGE)
    driven.peek(second, [SMALL])
    third = _map(driven, fd, 3)
    return Workload(
        driven,
        [
            _expect(driven, first, P.PRESENT, P.PRESENT, P.PRESENT),
            _expect(driven, second, P.CACHED, P.PRESENT, offset=HUGE),
            _expect(driven, third, P.CACHED, P.CACHED, P.CACHED),
        ],
    )


@workload()
def hugetlb_copied(tools: Tools) -> Workload:
    """Private copies of huge pages of a file, and pages of the file itself."""
    _fill_pool(tools, 6)
    driven = tools.target()
    fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", fd, 3 * HUGE)
    shared = _map(driven, fd, 3)
    _touch(driven, shared, 0, 1, 2)
    copied = driven.mmap(3 * SMALL, flags=MAP_PRIVATE, fd=fd, align=HUGE)
    _touch(driven, copied, 0)
    driven.peek(copied, [SMALL])
    return Workload(
        driven,
        [
            _expect(driven, shared, P.PRESENT, P.PRESENT, P.PRESENT),
            _expect(driven, copied, P.PRESENT, P.PRESENT, P.CACHED),
        ],
    )


@workload()
def hugetlb_protected(tools: Tools) -> Workload:
    """Write-protected through userfaultfd: of what is not mapped a marker is left."""
    _fill_pool(tools, 6)
    driven = tools.target()
    fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", fd, 3 * HUGE)
    first = _map(driven, fd, 3)
    _touch(driven, first, 0, 1, 2)
    driven.madvise(first, range(SMALL, 2 * SMALL), MADV_DONTNEED)
    protect(driven, watch(driven, first, 3 * SMALL), first, range(2 * SMALL))
    empty_fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", empty_fd, HUGE)
    empty = _map(driven, empty_fd, 1)
    protect(driven, watch(driven, empty, SMALL), empty, range(SMALL))
    return Workload(
        driven,
        [
            _expect(driven, first, P.PRESENT, P.CACHED, P.PRESENT),
            _expect(driven, empty, P.NONE),
        ],
    )


@workload()
def hugetlb_in_part(tools: Tools) -> Workload:
    """Part of the file is allocated; only the walk of the page cache tells which."""
    _fill_pool(tools, 9)
    driven = tools.target()
    driven.isolate_mounts()
    driven.mount("hugetlbfs", tools.directory / "huge")
    path = str(tools.directory / "huge" / "file")
    fd = driven.os("open", path, os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", fd, 3 * HUGE)
    first = _map(driven, fd, 3)
    _touch(driven, first, 0, 2)
    second = _map(driven, fd, 3)
    punched_fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", punched_fd, 2 * HUGE)
    punched = _map(driven, punched_fd, 2)
    _touch(driven, punched, 0, 1)
    driven.libc("fallocate", punched_fd, 3, 0, HUGE)
    return Workload(
        driven,
        [
            _expect(driven, first, P.PRESENT, P.NONE, P.PRESENT),
            _expect(driven, second, P.CACHED, P.NONE, P.CACHED),
            _expect(driven, punched, P.NONE, P.PRESENT),
        ],
    )


@workload()
def hugetlb_poisoned(tools: Tools) -> Workload:
    """
    Poison by userfaultfd: pagemap shows an empty entry, an access is SIGBUS.

    Nothing tells it from a page in migration, so that it is unknown at best.
    """
    _fill_pool(tools, 6)
    driven = tools.target()
    fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
    driven.os("ftruncate", fd, 4 * HUGE)
    start = _map(driven, fd, 4)
    _touch(driven, start, 0, 1)
    driven.madvise(start, range(SMALL, 2 * SMALL), MADV_DONTNEED)
    poison(driven, watch(driven, start, 4 * SMALL), start, range(3 * SMALL, 4 * SMALL))
    expected = _expect(driven, start, P.PRESENT, P.CACHED, P.NONE, P.UNKNOWN)
    expected.proof = "hugetlb, watched"
    return Workload(driven, [expected])


@workload()
def hugetlb_forked(tools: Tools) -> Workload:
    """Private huge pages that a child maps too: in no Rss, and yet no zero pages."""
    _fill_pool(tools, 3)
    driven = tools.target()
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    start = driven.mmap(2 * SMALL, flags=flags, align=HUGE)
    _touch(driven, start, 0)
    child = driven.fork()
    return Workload(
        driven,
        [
            _expect(driven, start, P.PRESENT, P.NONE),
            _expect(child, start, P.PRESENT, P.NONE),
        ],
    )


@workload()
def hugetlb_system_v(tools: Tools) -> Workload:
    """A SysV segment of huge pages."""
    _fill_pool(tools, 3)
    driven = tools.target()
    identifier = driven.libc("shmget", 0, 2 * HUGE, 0o600 | SHM_HUGETLB)
    libc = ctypes.CDLL(None)
    tools.stack.callback(libc.shmctl, identifier, 0, None)
    start = driven.libc("shmat", identifier, None, 0)
    _touch(driven, start, 0, 1)
    return Workload(driven, [_expect(driven, start, P.PRESENT, P.PRESENT)])


def prove_hugetlb(expected: Expected) -> None:
    """
    Page table for what is mapped or poisoned; st_blocks of the whole file for the rest.

    Which pages of a part are there nothing else tells: that is as they were built.
    """
    words = oracle.read_pagemap(expected.pid, expected.start, len(expected.classes)).tolist()
    scan = oracle.read_scan(expected.pid, expected.start, len(expected.classes)).tolist()
    fd = oracle.open_object(expected.pid, expected.start)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    allocated = status.st_blocks * 512
    for page, (word, kind) in enumerate(zip(words, expected.classes, strict=True)):
        is_present = bool(word & oracle.PRESENT)
        proven = {
            P.PRESENT: is_present,
            P.NONE: not is_present and allocated < status.st_size,
            P.CACHED: not is_present and allocated > 0,
            P.UNKNOWN: word == 0 and bool(scan[page] & oracle.IS_SWAPPED),
        }[kind]
        if not proven:
            raise StateMoved(f"{expected.describe(page)}: word {word:#x}, {status}")


PROOFS["hugetlb"] = PROOFS["hugetlb, watched"] = prove_hugetlb
