"""The page frames that one process maps."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.stretches import GAP_PAGES, stretches
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.pages.bits import (
    PM_FILE,
    PM_PFN,
    PM_PRESENT,
)
from memlens.pages.decode import find_swap_entries
from memlens.pages.distinct import distinct

_JOIN_PAGES = 512
# PFNs below this fit 32 bits: 16 TiB of memory, and half the room here.
_NARROW = 1 << 32


class Frames(NamedTuple):
    """
    What a process maps: one entry for each mapped page, in the order of addresses.

    :param pfn: page frame numbers, ``(n,)`` uint32, or uint64 where they need it; all 0
        if they are hidden.
    :param is_file: whether it is a page of a file or of shared memory, ``(n,)`` bool.
    :param swap_words: area and slot of private swapped pages, ``(m,)`` uint64.

    Zero pages and hugetlb pages are left out, as the kernel leaves them out of Rss.
    """

    pfn: NDArray[np.uint32] | NDArray[np.uint64]
    is_file: NDArray[np.bool_]
    swap_words: NDArray[np.uint64]

    def distinct(self) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """Return every frame once, sorted."""
        if self.pfn.dtype == np.uint32:
            return distinct(self.pfn.astype(np.uint32, copy=False))
        return distinct(self.pfn.astype(np.uint64, copy=False))


def read_frames(
    pagemap: Pagemap,
    mappings: Iterable[Mapping],
    is_hugetlb: Callable[[Mapping], bool],
    check_stop: Callable[[], None] = lambda: None,
) -> Frames:
    """
    Return the frames of a process.

    :param pagemap: its page table.
    :param mappings: its mappings, in the order of addresses.
    :param is_hugetlb: whether huge pages back a mapping that has an object.
    :param check_stop: called between pieces; raises when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    # Files on disks have a device with a major number; hugetlbfs has none.
    every = list(mappings)
    wanted = [
        m for m in every if not (m.device.startswith("00:") and m.has_object and is_hugetlb(m))
    ]
    collected = _Collected()
    use_scan = features.has_pagemap_scan() and "pagemap_scan" not in features.read_disabled()
    # Where huge pages were left out, no stretch may run over them.
    gap_pages = GAP_PAGES if len(wanted) == len(every) else 0
    for first, stop in _ranges(pagemap, wanted, use_scan, gap_pages):
        for page, words in pagemap.iter_words(first, stop - first):
            check_stop()
            collected.add(words, page)
    return collected.frames()


def _ranges(
    pagemap: Pagemap, mappings: list[Mapping], use_scan: bool, gap_pages: int
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold anything, zero pages left out as far as can be."""
    size = pagemap.page_size_bytes
    if not use_scan:
        for mapping in mappings:
            yield mapping.start // size, mapping.stop // size
        return
    any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    for first, stop in stretches(mappings, size, gap_pages):
        for regions in pagemap.scan(first, stop - first, any_of, any_of | PAGE_IS_PFNZERO):
            is_zero = (regions[:, 2] & np.uint64(PAGE_IS_PFNZERO)) != 0
            kept = (regions[~is_zero, :2] // np.uint64(size)).astype(np.int64)
            yield from _join(kept, bool(is_zero.any()))


def _join(regions: NDArray[np.int64], is_exact: bool) -> Iterable[tuple[int, int]]:
    """Join regions that are close, unless a zero page may lie between them."""
    if not len(regions):
        return []
    gap = 1 if is_exact else _JOIN_PAGES
    breaks = np.flatnonzero(regions[1:, 0] - regions[:-1, 1] >= gap) + 1
    first = regions[np.append(0, breaks), 0]
    stop = regions[np.append(breaks, len(regions)) - 1, 1]
    return list(zip(first.tolist(), stop.tolist(), strict=True))


class _Collected:
    def __init__(self) -> None:
        self._zero_pfn = np.uint64(features.zero_pfn())
        self._pfns: list[NDArray[np.uint32] | NDArray[np.uint64]] = []
        self._files: list[NDArray[np.bool_]] = []
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
        self._files.append((words[is_present] & PM_FILE) != 0)

    def frames(self) -> Frames:
        return Frames(
            pfn=_joined(self._pfns, np.uint32),
            is_file=_joined(self._files, np.bool_),
            swap_words=_joined(self._swap_words, np.uint64),
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
