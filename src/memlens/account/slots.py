"""The swap slots of one process: of private pages on swap, and of those in RAM again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.frametable import FrameTable
from memlens.account.stretches import join_regions
from memlens.kernel.kpage import KpageFile
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT
from memlens.pages.decode import find_swap_entries

KPF_ANON = np.uint64(1 << 12)
KPF_SWAPCACHE = np.uint64(1 << 13)
_JOIN_PAGES = 512
_FRAMES_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Slots:
    """
    What one process keeps swap slots for, in the order of addresses.

    :param words: area and slot of private swapped pages, ``(n,)`` uint64.
    :param pages: their addresses divided by the page size, ``(n,)`` int64.
    :param cached_pfns: frames of private pages in RAM that keep a slot, ``(m,)`` uint64.
    :param cached_pages: their addresses divided by the page size, ``(m,)`` int64.
    """

    words: NDArray[np.uint64]
    pages: NDArray[np.int64]
    cached_pfns: NDArray[np.uint64]
    cached_pages: NDArray[np.int64]


def read_slots(
    pagemap: Pagemap,
    ranges: Iterable[tuple[int, int]],
    use_scan: bool,
    flags: FrameTable | None,
    check_stop: Callable[[], None],
) -> Slots:
    """
    Return the slots of a process.

    :param ranges: half-open page ranges that cover its private mappings, in order.
    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param flags: as ``find_swap_cached`` gives it, to look for pages in RAM as well; or None.
    :param check_stop: called between pieces; raises when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    swapped, cached = _Entries(), _Cached(flags)
    for first, stop in ranges:
        for begin, end in _windows(pagemap, first, stop, use_scan, flags is not None):
            for page, words in pagemap.iter_words(begin, end - begin):
                check_stop()
                swapped.add(*find_swap_entries(words, page))
                cached.add(words, page)
    return Slots(*swapped.joined(), *cached.joined())


class _Entries:
    """Words and page numbers, collected piece by piece."""

    def __init__(self) -> None:
        self._words = [_NOTHING]
        self._pages = [_NO_PAGES]
        self.count = 0

    def add(self, words: NDArray[np.uint64], pages: NDArray[np.int64]) -> None:
        # Most pieces hold nothing.
        if len(words):
            self._words.append(words)
            self._pages.append(pages)
            self.count += len(words)

    def joined(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        return np.concatenate(self._words), np.concatenate(self._pages)


class _Cached:
    """Frames of private pages, asked about many at a time; those with a slot are kept."""

    def __init__(self, flags: FrameTable | None) -> None:
        self._flags = flags
        self._waiting, self._found = _Entries(), _Entries()

    def add(self, words: NDArray[np.uint64], page: int) -> None:
        if self._flags is None:
            return
        where = np.flatnonzero((words & (PM_PRESENT | PM_FILE)) == PM_PRESENT)
        self._waiting.add(words[where] & PM_PFN, where + page)
        if self._waiting.count >= _FRAMES_AT_ONCE:
            self._ask(self._flags)

    def joined(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        if self._flags is not None:
            self._ask(self._flags)
        return self._found.joined()

    def _ask(self, flags: FrameTable) -> None:
        pfns, pages = self._waiting.joined()
        is_cached = flags.of(pfns) != 0
        self._found.add(pfns[is_cached], pages[is_cached])
        self._waiting = _Entries()


def _windows(
    pagemap: Pagemap, first: int, stop: int, use_scan: bool, has_cached: bool
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold what is looked for; pages of files are passed over."""
    if not use_scan:
        yield first, stop
        return
    any_of = told = PAGE_IS_SWAPPED
    unwanted = np.uint64(PAGE_IS_FILE | PAGE_IS_PFNZERO)
    if has_cached:
        # To tell these the kernel looks at the frame of every page: twice the time.
        any_of |= PAGE_IS_PRESENT
        told = any_of | int(unwanted)
    size = np.uint64(pagemap.page_size_bytes)
    for regions in pagemap.scan(first, stop - first, any_of, told):
        is_swapped = (regions[:, 2] & np.uint64(PAGE_IS_SWAPPED)) != 0
        kept = regions[is_swapped | ((regions[:, 2] & unwanted) == 0), :2] // size
        if len(kept):
            yield from join_regions(kept.astype(np.int64), _JOIN_PAGES)


def find_swap_cached(file: KpageFile) -> FrameTable:
    """
    Return a table of which frames are private pages that keep a swap slot: 1, else 0.

    :param file: an open kpageflags.
    """
    return FrameTable(file, _is_swap_cached)


def _is_swap_cached(words: NDArray[np.uint64], _pfns: NDArray[np.int64]) -> NDArray[np.uint16]:
    both = KPF_ANON | KPF_SWAPCACHE
    is_cached: NDArray[np.bool_] = (words & both) == both
    return is_cached.astype(np.uint16)


_NOTHING = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
