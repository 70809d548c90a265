"""Rare calls: they move pages of a file about, hide them, or copy them unasked."""

import os

from tests.kernel.support.driver import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_RANDOM,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_NONE,
    PROT_READ,
    READ_WRITE,
    Target,
)
from tests.kernel.workloads.base import BOTH, Expected, P, Tools, Workload, entries, page_out
from tests.kernel.workloads.files import require_disk
from tests.kernel.workloads.shmem import map_mixed, memfd

ENTRIES, workload = entries()
MAP_NONBLOCK = 0x10000
MREMAP_MAYMOVE = 1


@workload("none", *BOTH)
def remapped(tools: Tools) -> Workload:
    """remap_file_pages cuts a mapping; mremap of nothing maps a shared object once more."""
    driven = tools.target()
    fd = memfd(driven, 61)
    whole = map_mixed(tools, driven, fd)
    start = driven.mmap(61, flags=MAP_SHARED, fd=fd)
    driven.libc("remap_file_pages", start + 10 * PAGE, PAGE, 0, 50, MAP_NONBLOCK)
    again = driven.libc("mremap", whole.start + 7 * PAGE, 0, 40 * PAGE, MREMAP_MAYMOVE)
    seen = [P.CACHED if kind is P.PRESENT else kind for kind in whole.classes]
    pieces = ((start, 0, 10), (start + 10 * PAGE, 50, 1), (start + 11 * PAGE, 11, 50))
    return Workload(
        driven,
        [
            whole,
            *(
                Expected(driven.pid, at, seen[first : first + pages], "shmem", first * PAGE)
                for at, first, pages in (*pieces, (again, 7, 40))
            ),
        ],
    )


def _cached_file(tools: Tools, driven: Target, name: str) -> int:
    require_disk(tools.directory)
    path = str(tools.directory / name)
    fd: int = driven.os("open", path, os.O_RDWR | os.O_CREAT, 0o644)
    driven.pwrite(fd, range(23))
    driven.os("fsync", fd)
    return fd


@workload()
def guarded_files(tools: Tools) -> Workload:
    """Guard regions over files take the copies with them; the file's own pages stay."""
    driven = tools.target()
    found = []
    for flags in (MAP_PRIVATE, MAP_SHARED):
        start = driven.mmap(23, flags=flags, fd=_cached_file(tools, driven, f"file{flags}"))
        driven.madvise(start, range(23), MADV_RANDOM)
        driven.poke(start, range(11))
        driven.madvise(start, range(7, 17), MADV_GUARD_INSTALL)
        classes = [P.PRESENT] * 7 + [P.GUARD] * 10 + [P.CACHED] * 6
        found.append(Expected(driven.pid, start, classes, "disk"))
    return Workload(driven, found)


@workload(*BOTH)
def forced_copies(tools: Tools) -> Workload:
    """A debugger writes where the process may not: private copies in a read-only mapping."""
    driven = tools.target()
    fd = _cached_file(tools, driven, "program")
    start = driven.mmap(23, flags=MAP_PRIVATE, fd=fd, protection=PROT_READ)
    driven.madvise(start, range(23), MADV_RANDOM)
    memory = os.open(f"/proc/{driven.pid}/mem", os.O_WRONLY)
    try:
        for page in range(0, 12, 2):
            os.pwrite(memory, b"breakpoint", start + page * PAGE)
    finally:
        os.close(memory)
    driven.libc("mprotect", start, 23 * PAGE, READ_WRITE)
    page_out(driven, start, [4, 6])
    driven.madvise(start, [8], MADV_DONTNEED)
    driven.libc("mprotect", start, 23 * PAGE, PROT_NONE)
    known = {0: P.PRESENT, 2: P.PRESENT, 4: P.SWAPPED, 6: P.SWAPPED, 10: P.PRESENT}
    classes = [known.get(page, P.CACHED) for page in range(23)]
    return Workload(driven, [Expected(driven.pid, start, classes, "disk")])
