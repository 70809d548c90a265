"""Userfaultfd: write protection and poison leave markers in the page table."""

import struct
from collections.abc import Sequence

from tests.kernel.support.driver import MAP_SHARED, PAGE, Target, pages_where, spans
from tests.kernel.workloads.base import (
    BOTH,
    Expected,
    P,
    Tools,
    Workload,
    entries,
    page_out,
    pattern,
)
from tests.kernel.workloads.shmem import SWAP_STATES, make_shmem, memfd

ENTRIES, workload = entries()

SYS_USERFAULTFD = 323
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
UFFDIO_WRITEPROTECT, UFFDIO_POISON = 0xC018AA06, 0xC020AA08
# PAGEFAULT_FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED, POISON
FEATURES = 1 << 0 | 1 << 12 | 1 << 13 | 1 << 14
REGISTER_MODE_WP = WRITEPROTECT_MODE_WP = 2
WRITEPROTECT = 1


def watch(driven: Target, start: int, pages: int) -> int:
    """Register a mapping with a new userfaultfd and return it."""
    fd = driven.libc("syscall", SYS_USERFAULTFD, 0o2004000)  # O_CLOEXEC | O_NONBLOCK
    driven.ioctl(fd, UFFDIO_API, struct.pack("<3Q", 0xAA, FEATURES, 0))
    span = struct.pack("<4Q", start, pages * PAGE, REGISTER_MODE_WP, 0)
    driven.ioctl(fd, UFFDIO_REGISTER, span)
    return fd


def protect(driven: Target, fd: int, start: int, pages: Sequence[int]) -> None:
    """Write-protect exactly these pages."""
    for first, count in spans(pages):
        span = struct.pack("<3Q", start + first * PAGE, count * PAGE, WRITEPROTECT)
        driven.ioctl(fd, UFFDIO_WRITEPROTECT, span)


def poison(driven: Target, fd: int, start: int, pages: Sequence[int]) -> None:
    """Poison exactly these pages, which must be empty."""
    for first, count in spans(pages):
        span = struct.pack("<4Q", start + first * PAGE, count * PAGE, 0, 0)
        driven.ioctl(fd, UFFDIO_POISON, span)


def _private(driven: Target, states: Sequence[str]) -> Expected:
    start = driven.mmap(len(states))
    fd = watch(driven, start, len(states))
    swapped = [page for page, state in enumerate(states) if state.startswith("swapped")]
    driven.poke(start, swapped)
    page_out(driven, start, swapped)
    present = [page for page, state in enumerate(states) if state.startswith("written")]
    driven.poke(start, present)
    marked = [page for page, state in enumerate(states) if state.endswith("protected")]
    protect(driven, fd, start, marked)
    poison(driven, fd, start, pages_where(states, "poisoned"))
    classes = {"swapped": P.SWAPPED, "written": P.PRESENT, "poisoned": P.POISONED}
    expected = [classes.get(state.split(",")[0], P.NONE) for state in states]
    return Expected(driven.pid, start, expected, "anonymous", 0, states)


@workload()
def private_markers(tools: Tools) -> Workload:
    """A marker over a page that was never touched is not a swapped page."""
    driven = tools.target()
    states = ("written", "written, protected", "empty, protected", "poisoned", "empty")
    return Workload(
        driven,
        [_private(driven, pattern(states, 23)), _private(driven, pattern(states, 29, 3))],
    )


@workload(*BOTH)
def private_markers_and_swap(tools: Tools) -> Workload:
    """Swapped pages with and without write protection between markers."""
    driven = tools.target()
    states = (
        *("swapped", "empty, protected", "swapped, protected", "poisoned"),
        *("written", "written, protected", "empty"),
    )
    return Workload(driven, [_private(driven, pattern(states, 47))])


@workload(*BOTH)
def shared_markers(tools: Tools) -> Workload:
    """A marker over shared memory hides its state, and the object still knows it."""
    driven = tools.target()
    states = pattern(SWAP_STATES, 71)
    fd = memfd(driven, len(states))
    start = driven.mmap(len(states), flags=MAP_SHARED, fd=fd)
    classes = make_shmem(tools, driven, start, fd, states)
    watcher = watch(driven, start, len(states))
    protect(driven, watcher, start, [page for page in range(len(states)) if page % 3])
    empty = [
        page for page in range(0, len(states), 6) if classes[page] not in (P.PRESENT, P.ZERO)
    ]
    poison(driven, watcher, start, empty)
    for page in empty:
        classes[page] = P.POISONED
    # smaps counts what lies on swap behind the poison, too.
    return Workload(
        driven,
        [Expected(driven.pid, start, classes, "shmem", 0, states, smaps=("Rss",))],
    )
