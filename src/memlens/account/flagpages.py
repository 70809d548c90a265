"""Which pages of a process to ask kpageflags about, and their words by frame."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.pagemap import PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.pages.bits import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFN, PM_PRESENT, PM_SOFT_DIRTY

Window = tuple[int, int]

# Above this address is the kernel's half, which no page table of a process covers.
KERNEL_HALF = 1 << 63
# How often a page that changes is asked again.
TRIES = 4
# More pages at once are more frames that lie together; fewer change meanwhile.
JOB_PAGES = 1 << 17
# Reading over a gap of so many pages costs less than another read.
_GAP_PAGES = 64
# Words are read at once where at least this share of the pages is there.
_SPARSE = 4

# A packed word: the frame above, bits 55 to 62 of the pagemap word below, so that sorting
# by frame keeps both together.
_PACKED_BITS = np.uint64(9)
_KEPT = (PM_SOFT_DIRTY | PM_MMAP_EXCLUSIVE | PM_FILE) >> np.uint64(55)


class PackedWords(NamedTuple):
    """Present pages sorted by frame, ``(n,)`` uint64."""

    packed: NDArray[np.uint64]

    def pfns(self) -> NDArray[np.int64]:
        """Return the frames, ``(n,)`` int64, sorted."""
        return (self.packed >> _PACKED_BITS).view(np.int64)

    def pagemap_part(self) -> NDArray[np.uint64]:
        """Return soft-dirty, exclusive and file at their places in a pagemap word."""
        part: NDArray[np.uint64] = (self.packed & _KEPT) << np.uint64(55)
        return part


class FrameWords(NamedTuple):
    """Present pages sorted by frame: packed and joined words, both ``(n,)`` uint64."""

    packed: NDArray[np.uint64]
    joined: NDArray[np.uint64]

    @classmethod
    def empty(cls) -> "FrameWords":
        """Return none."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))


def pack_words(words: NDArray[np.uint64]) -> PackedWords:
    """
    Return the present pages with a frame, sorted by it.

    >>> pack_words(np.array([1 << 63 | 9, 0, 1 << 63 | 5], dtype=np.uint64)).pfns()
    array([5, 9])

    :param words: pagemap words, ``(n,)`` uint64.

    Frame 0 is never given to a process, and is how a hidden frame reads: it is left out.
    """
    has_frame = ((words & PM_PRESENT) != 0) & ((words & PM_PFN) != 0)
    present = words if has_frame.all() else words[has_frame]
    packed = (present << _PACKED_BITS) | (present >> np.uint64(55) & np.uint64(0xFF))
    packed.sort()
    return PackedWords(packed)


def read_windows(pagemap: Pagemap, windows: list[Window]) -> NDArray[np.uint64]:
    """
    Return the words of some ranges of pages, one after the other.

    :raises EOFError: if the process is gone.
    """
    parts = [pagemap.read_words(first, stop - first) for first, stop in windows]
    if any(
        len(part) < stop - first for part, (first, stop) in zip(parts, windows, strict=True)
    ):
        raise EOFError
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def list_windows(
    directory: ProcessDir, page_size_bytes: int, addresses: tuple[int, int] | None = None
) -> list[list[Window]]:
    """
    Return the ranges of pages to read, in jobs of a bounded size.

    :param addresses: only this half-open range of addresses, in bytes.
    """
    ranges = [
        (mapping.start // page_size_bytes, mapping.stop // page_size_bytes)
        for mapping in directory.read_maps()
        if mapping.start < KERNEL_HALF
    ]
    if addresses is not None:
        low, high = addresses[0] // page_size_bytes, -(-addresses[1] // page_size_bytes)
        ranges = [(max(a, low), min(b, high)) for a, b in ranges if a < high and b > low]
    ranges = list(_join(ranges))
    if _is_sparse(directory, sum(stop - first for first, stop in ranges)):
        ranges = list(_join(_scan(directory, page_size_bytes, ranges)))
    return list(_cut(ranges))


def _is_sparse(directory: ProcessDir, pages: int) -> bool:
    """Return whether a scan for what is there is worth its price."""
    if not features.has_pagemap_scan() or "pagemap_scan" in features.read_disabled():
        return False
    resident = int(directory.read("statm").split()[1])
    return pages > _SPARSE * resident + JOB_PAGES


def _scan(directory: ProcessDir, size: int, ranges: list[Window]) -> Iterator[Window]:
    path = f"{directory.path}/pagemap"
    pagemap = Pagemap(directory.open("pagemap"), size, Meter(), path)
    any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    try:
        for first, stop in ranges:
            for regions in pagemap.scan(first, stop - first, any_of, any_of):
                for start, end in (regions[:, :2] // np.uint64(size)).tolist():
                    yield int(start), int(end)
    finally:
        pagemap.close()


def _join(ranges: list[Window] | Iterator[Window]) -> Iterator[Window]:
    """Join ranges with small gaps between them."""
    low = high = -1
    for first, stop in ranges:
        if low >= 0 and first - high <= _GAP_PAGES:
            high = stop
        else:
            if low >= 0:
                yield low, high
            low, high = first, stop
    if low >= 0:
        yield low, high


def _cut(ranges: list[Window]) -> Iterator[list[Window]]:
    """Group small ranges, and cut large ones, into jobs."""
    job: list[Window] = []
    room = JOB_PAGES
    for first, stop in ranges:
        while first < stop:
            end = min(stop, first + room)
            job.append((first, end))
            room -= end - first
            first = end
            if not room:
                yield job
                job, room = [], JOB_PAGES
    if job:
        yield job
