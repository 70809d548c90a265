"""The swap slots of one process: of private pages on swap, and of those in RAM again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.stretches import stretches
from memlens.kernel.kpage import KpageFile, merge_pfns
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.pages.distinct import distinct

KPF_ANON = np.uint64(1 << 12)
KPF_SWAPCACHE = np.uint64(1 << 13)
_JOIN_PAGES = 512


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
    mappings: Iterable[Mapping],
    use_scan: bool,
    flags: KpageFile | None,
    check_stop: Callable[[], None],
) -> Slots:
    """
    Return the slots of a process.

    :param flags: an open kpageflags, to look for pages in RAM as well; else None.
    :param check_stop: called between pieces; raises when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    swapped: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
    cached: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
    for first, stop in stretches(mappings, pagemap.page_size_bytes):
        for begin, end in _windows(pagemap, first, stop, use_scan, flags is not None):
            for page, words in pagemap.iter_words(begin, end - begin):
                check_stop()
                swapped.append(find_swap_entries(words, page))
                if flags is not None:
                    cached.append(_find_cached(words, page, flags))
    return Slots(*_joined(swapped), *_joined(cached))


def _windows(
    pagemap: Pagemap, first: int, stop: int, use_scan: bool, has_cached: bool
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold what is looked for; pages of files are passed over."""
    if not use_scan:
        yield first, stop
        return
    any_of = PAGE_IS_SWAPPED | (PAGE_IS_PRESENT if has_cached else 0)
    unwanted = np.uint64(PAGE_IS_FILE | PAGE_IS_PFNZERO)
    size = np.uint64(pagemap.page_size_bytes)
    for regions in pagemap.scan(first, stop - first, any_of, any_of | int(unwanted)):
        is_swapped = (regions[:, 2] & np.uint64(PAGE_IS_SWAPPED)) != 0
        kept = regions[is_swapped | ((regions[:, 2] & unwanted) == 0), :2] // size
        if len(kept):
            yield from _join(kept.astype(np.int64))


def _join(ranges: NDArray[np.int64]) -> list[tuple[int, int]]:
    breaks = np.flatnonzero(ranges[1:, 0] - ranges[:-1, 1] >= _JOIN_PAGES) + 1
    first = ranges[np.append(0, breaks), 0]
    stop = ranges[np.append(breaks, len(ranges)) - 1, 1]
    return list(zip(first.tolist(), stop.tolist(), strict=True))


def _find_cached(
    words: NDArray[np.uint64], page: int, flags: KpageFile
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    is_private = (words & (PM_PRESENT | PM_FILE)) == PM_PRESENT
    pfns = words[is_private] & PM_PFN
    is_cached = _is_swap_cached(pfns, flags)
    return pfns[is_cached], np.flatnonzero(is_private)[is_cached] + page


def _is_swap_cached(pfns: NDArray[np.uint64], flags: KpageFile) -> NDArray[np.bool_]:
    wanted = distinct(pfns)
    found = np.zeros(len(wanted), np.uint64)
    runs = merge_pfns(wanted)
    starts = np.searchsorted(wanted, runs[:, 0].astype(np.uint64)).tolist()
    stops = np.searchsorted(wanted, runs[:, 1].astype(np.uint64)).tolist()
    for (first, stop), begin, end in zip(runs.tolist(), starts, stops, strict=True):
        read = flags.read_range(first, stop - first)
        offsets = (wanted[begin:end] - np.uint64(first)).astype(np.int64)
        is_there = offsets < len(read)
        found[begin:end][is_there] = read[offsets[is_there]]
    both = KPF_ANON | KPF_SWAPCACHE
    is_cached = (found & both) == both
    return np.asarray(is_cached[np.searchsorted(wanted, pfns)])


def _joined(
    parts: list[tuple[NDArray[np.uint64], NDArray[np.int64]]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    # Most pieces hold nothing.
    kept = [part for part in parts if len(part[0])]
    return (
        np.concatenate([_NOTHING, *(part[0] for part in kept)]),
        np.concatenate([_NO_PAGES, *(part[1] for part in kept)]),
    )


_NOTHING = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
