"""The page frames that one process maps."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.stretches import join_regions
from memlens.kernel import features
from memlens.kernel.pagemap import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.pages.bits import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFN, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.pages.distinct import distinct

# Wider gaps are passed over: reading the words of so many costs as much as another read.
# A huge zero page is as large on x86, and larger elsewhere with larger base pages.
_GAP_PAGES = 512
# PFNs below this fit 32 bits: 16 TiB of memory, and half the room here.
_NARROW = 1 << 32


class Frames(NamedTuple):
    """
    What a process maps: one entry for each mapped page, in the order of addresses.

    :param pfn: page frame numbers, ``(n,)`` uint32, or uint64 where they need it; all 0
        if they are hidden.
    :param is_file: whether it is a page of a file or of shared memory, ``(n,)`` bool.
    :param is_alone: whether the page table says that it is mapped nowhere else, ``(n,)``.
    :param swap_words: area and slot of private swapped pages, ``(m,)`` uint64.

    Zero pages and hugetlb pages are left out, as the kernel leaves them out of Rss.
    """

    pfn: NDArray[np.uint32] | NDArray[np.uint64]
    is_file: NDArray[np.bool_]
    is_alone: NDArray[np.bool_]
    swap_words: NDArray[np.uint64]

    def distinct(self) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """Return every frame once, sorted."""
        if self.pfn.dtype == np.uint32:
            return distinct(self.pfn.astype(np.uint32, copy=False))
        return distinct(self.pfn.astype(np.uint64, copy=False))


def read_frames(
    pagemap: Pagemap,
    ranges: Iterable[tuple[int, int]],
    use_scan: bool,
    anonymous: Collection[tuple[int, int]] = (),
    check_stop: Callable[[], None] = lambda: None,
) -> Frames:
    """
    Return the frames of a process.

    :param pagemap: its page table.
    :param ranges: half-open page ranges that cover its mappings without those of hugetlbfs,
        in order; with PAGEMAP_SCAN they may cover holes as well.
    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param anonymous: those of the ranges that are of no object, for use without
        PAGEMAP_SCAN.
    :param check_stop: called between pieces; raises when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    collected = _Collected()
    for first, stop in _filled(pagemap, ranges, use_scan):
        is_anonymous = (first, stop) in anonymous
        for page, words in pagemap.iter_words(first, stop - first):
            check_stop()
            if is_anonymous:
                # Of no file, and yet with that bit: only a huge zero page is.
                words[(words & PM_FILE) != 0] = 0
            collected.add(words, page)
    return collected.frames()


def _filled(
    pagemap: Pagemap, ranges: Iterable[tuple[int, int]], use_scan: bool
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold anything but zero pages, and small gaps between them."""
    if not use_scan:
        yield from ranges
        return
    any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    # The zero page of one base page is known by its frame.  What that is can only be told
    # by who sees frames, and a huge zero page is no smaller than the gaps.
    gap_pages = _GAP_PAGES if features.zero_pfn() else 1
    size = np.uint64(pagemap.page_size_bytes)
    for first, stop in ranges:
        for regions in pagemap.scan(first, stop - first, any_of, any_of | PAGE_IS_PFNZERO):
            is_zero = (regions[:, 2] & np.uint64(PAGE_IS_PFNZERO)) != 0
            kept = (regions[~is_zero, :2] // size).astype(np.int64)
            if len(kept):
                yield from join_regions(kept, gap_pages)


class _Collected:
    def __init__(self) -> None:
        self._zero_pfn = np.uint64(features.zero_pfn())
        self._pfns: list[NDArray[np.uint32] | NDArray[np.uint64]] = []
        self._files: list[NDArray[np.bool_]] = []
        self._alone: list[NDArray[np.bool_]] = []
        self._swap_words: list[NDArray[np.uint64]] = []

    def add(self, words: NDArray[np.uint64], page: int) -> None:
        is_present = (words & PM_PRESENT) != 0
        pfns = words & PM_PFN
        if self._zero_pfn:
            is_present &= pfns != self._zero_pfn
        if not is_present.all():
            slots, _ = find_swap_entries(words, page)
            if len(slots):
                self._swap_words.append(slots)
        pfns = pfns[is_present]
        is_wide = len(pfns) and int(pfns.max()) >= _NARROW
        self._pfns.append(pfns if is_wide else pfns.astype(np.uint32))
        kept = words[is_present]
        self._files.append((kept & PM_FILE) != 0)
        self._alone.append((kept & PM_MMAP_EXCLUSIVE) != 0)

    def frames(self) -> Frames:
        return Frames(
            pfn=_joined(self._pfns, np.uint32),
            is_file=_joined(self._files, np.bool_),
            is_alone=_joined(self._alone, np.bool_),
            swap_words=_joined(self._swap_words, np.uint64),
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
