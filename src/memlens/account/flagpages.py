"""Which pages of a process to ask kpageflags about, and their words."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.pagemap import PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter

Window = tuple[int, int]

# Above this address is the kernel's half, which no page table of a process covers.
KERNEL_HALF = 1 << 63
# How often a page that changes is asked again.
TRIES = 4
# More pages at once are more frames that lie together; fewer stay in the CPU's cache, and
# fewer change meanwhile.
JOB_PAGES = 1 << 16
# Reading over a gap of so many pages costs less than another read.
_GAP_PAGES = 64
# Words are read at once where at least this share of the pages is there.
_SPARSE = 4


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


def are_same(pagemap: Pagemap, windows: list[Window], words: NDArray[np.uint64]) -> bool:
    """
    Return whether these ranges still have these words.

    :raises EOFError: if the process is gone.
    """
    place = 0
    for first, stop in windows:
        page = first
        for page, piece in pagemap.iter_words(first, stop - first):
            if not np.array_equal(piece, words[place : place + len(piece)]):
                return False
            place += len(piece)
            page += len(piece)
        if page < stop:
            raise EOFError
    return True


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
