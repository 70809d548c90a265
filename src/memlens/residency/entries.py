"""What the page table of a process says, as runs of ``Entry``."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.pagemap import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    SCAN_REGIONS,
    Pagemap,
)
from memlens.pages.classes import Entry
from memlens.pages.decode import Words, decode_entries, decode_pfn, is_maybe_zero_page
from memlens.pages.runs import (
    Runs,
    concat_runs,
    encode_runs,
    merge_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    window_runs,
)
from memlens.scan.machine import Machine

# Swapped pages closer than this are read with one call.
_JOIN_PAGES = 512
_ANY_OF = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
_WANTED = _ANY_OF | PAGE_IS_PFNZERO

# A call of PAGEMAP_SCAN that is full after so few pages has found crumbs: their words are
# read faster, window by window, until a window has fewer runs than one in so many pages.
_CRUMBLED_PAGES = SCAN_REGIONS * 32
WINDOW_PAGES = 1 << 16
_CRUMB_PAGES = 16

# Regions turned into runs at a time.
_REGIONS_AT_ONCE = SCAN_REGIONS * 8

# Runs read at a time: what follows works on all of them at once.
_MOST_RUNS = 1 << 14

# Members of enumerations are slow to come by.
_SWAP, _TRANSIT, _ZERO = int(Entry.SWAP), int(Entry.TRANSIT), int(Entry.ZERO)
_MAYBE_ZERO = int(Entry.MAYBE_ZERO)

# What an entry is now that was swapped a moment ago: to be looked at again.
_IS_MOVED = np.zeros(256, bool)
_IS_MOVED[[Entry.PRESENT, Entry.FILE_PAGE, Entry.EMPTY]] = True


@dataclass(slots=True)
class PageTable:
    """
    The page table of one process, read in bounded pieces.

    :param pagemap: the open file.
    :param machine: says whether PAGEMAP_SCAN may be used, and when to stop.
    :param zero_pfn: PFN of the zero page, 0 if PFNs are hidden.
    :param keep_words: whether to keep the raw words.
    :param words: raw words read so far, page numbers of the address space.
    :param is_crumbled: whether runs were so short lately that windows are read instead.
    """

    pagemap: Pagemap
    machine: Machine
    zero_pfn: int
    keep_words: bool = False
    words: list[Words] = field(default_factory=list)
    is_crumbled: bool = False

    @property
    def use_scan(self) -> bool:
        """Return whether PAGEMAP_SCAN is used."""
        return self.machine.may("pagemap_scan")

    def read_entries(self, first: int, stop: int) -> Runs:
        """
        Return the entries of a range of address space.

        :param first: first page, an address divided by the page size.
        :param stop: page after the last.
        :return: runs of ``Entry``; pages in none are ``EMPTY``.
        :raises Stopped: if the caller wants an end.
        :raises EOFError: if the page table has vanished.
        """
        parts = []
        while first < stop:
            found, end = self.read_some(first, stop)
            parts.append(found if isinstance(found, Runs) else encode_runs(found, first))
            first = end
        return concat_runs(parts)

    def read_some(self, first: int, stop: int) -> tuple[Runs | NDArray[np.uint8], int]:
        """
        Return the entries of the beginning of a range, and where that ends.

        :return: runs as of ``read_entries``, some ten thousand at most; or, where these
            would be crumbs, an ``Entry`` for each page, some ten thousand too.
        """
        if not self.is_crumbled:
            runs, end = (self._scan if self.use_scan else self._scan_words)(first, stop)
            if end > first:
                return runs, end
        end = min(first + WINDOW_PAGES, stop)
        return self.read_window(first, end), end

    def read_window(self, first: int, stop: int) -> NDArray[np.uint8]:
        """Do as ``read_densely``, and see whether that is still the way to read on."""
        entries = self.read_densely(first, stop)
        changes = int(np.count_nonzero(entries[1:] != entries[:-1]))
        self.is_crumbled = changes * _CRUMB_PAGES > len(entries)
        return entries

    def read_densely(self, first: int, stop: int) -> NDArray[np.uint8]:
        """Return the ``Entry`` of each page of a range, ``(stop - first,)`` uint8."""
        entries = np.empty(stop - first, np.uint8)
        for page, words in self._iter_words(first, stop):
            entries[page - first : page - first + len(words)] = self._decode(page, words)
        return entries

    def take_words(self, first: int, stop: int) -> Words:
        """Return the words read since the last time, of each page the last, from ``first``."""
        parts = [part for part in self.words if len(part.page)]
        self.words = []
        if not parts:
            return Words(np.empty(0, np.int64), np.empty(0, np.uint64))
        page = np.concatenate([part.page for part in parts])
        word = np.concatenate([part.word for part in parts])
        inside = (page >= first) & (page < stop)
        page, word = page[inside][::-1], word[inside][::-1]
        page, last = np.unique(page, return_index=True)
        word = word[last]
        keep = word != 0
        return Words(page[keep] - first, word[keep])

    def _scan(self, first: int, stop: int) -> tuple[Runs, int]:
        """Return runs up to where crumbs begin, or there are many."""
        self.pagemap.meter.used.add("pagemap_scan")
        parts: list[Runs] = []
        regions: list[NDArray[np.uint64]] = []
        page, waiting, count = first, 0, 0
        while page < stop and count < _MOST_RUNS:
            self.machine.check_stop()
            found, end = self.pagemap.scan_once(page, stop, _ANY_OF, _WANTED)
            is_full = len(found) == SCAN_REGIONS
            if is_full and end - page < _CRUMBLED_PAGES and self.zero_pfn:
                self.is_crumbled = True
                break
            page = end
            if len(found):
                regions.append(found)
                waiting += len(found)
                count += len(found)
            if waiting >= _REGIONS_AT_ONCE:
                parts.append(self._runs_of(regions))
                regions, waiting = [], 0
        if regions:
            parts.append(self._runs_of(regions))
        return concat_runs(parts), page

    def _runs_of(self, regions: list[NDArray[np.uint64]]) -> Runs:
        joined = regions[0] if len(regions) == 1 else np.concatenate(regions)
        edges = (joined[:, :2] // np.uint64(self.pagemap.page_size_bytes)).astype(np.int64)
        begins = edges[:, 0].copy()
        entries = _ENTRY_OF_CATEGORIES[joined[:, 2].astype(np.uint8)]
        return self._resolve(merge_runs(Runs(begins, edges[:, 1] - begins, entries)))

    def _resolve(self, found: Runs) -> Runs:
        """Read the words of swapped pages: only they tell a marker or a migration."""
        is_swap = found.value == _SWAP
        if not (self.keep_words or is_swap.any()):
            return found
        asked = found if self.keep_words else select_runs(found, is_swap)
        windows = window_runs(asked, _JOIN_PAGES)
        patches = concat_runs([self._refine(low, high) for low, high in windows])
        return replace_runs(found, restrict_runs(patches, select_runs(found, is_swap)))

    def _refine(self, first: int, stop: int) -> Runs:
        """Return what the words of a range say, of pages that were swapped a moment ago."""
        parts = []
        for page, words in self._iter_words(first, stop):
            if self.keep_words:
                self._keep(page, words)
            fresh = decode_entries(words)
            fresh[_IS_MOVED[fresh]] = _TRANSIT
            parts.append(encode_runs(fresh, page))
        return concat_runs(parts)

    def _scan_words(self, first: int, stop: int) -> tuple[Runs, int]:
        """Do as ``_scan`` does where there is no PAGEMAP_SCAN."""
        parts: list[Runs] = []
        count, done = 0, first
        for page, words in self._iter_words(first, stop):
            done = page + len(words)
            if not words.any():
                continue
            runs = encode_runs(self._decode(page, words), page)
            parts.append(runs)
            count += len(runs)
            self.is_crumbled = len(runs) * _CRUMB_PAGES > len(words)
            if self.is_crumbled or count >= _MOST_RUNS:
                break
        return concat_runs(parts), done

    def _decode(self, page: int, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        if self.keep_words:
            self._keep(page, words)
        entries = decode_entries(words)
        is_maybe = is_maybe_zero_page(words)
        if not is_maybe.any():
            return entries
        if not self.zero_pfn:
            entries[is_maybe] = _MAYBE_ZERO
        else:
            entries[is_maybe & (decode_pfn(words) == np.uint64(self.zero_pfn))] = _ZERO
        return entries

    def _iter_words(self, first: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        self.pagemap.meter.used.add("pagemap")
        done = first
        for page, words in self.pagemap.iter_words(first, stop - first):
            self.machine.check_stop()
            done = page + len(words)
            yield page, words
        if done < stop:
            raise EOFError

    def _keep(self, page: int, words: NDArray[np.uint64]) -> None:
        where = np.flatnonzero(words)
        self.words.append(Words(where + page, words[where]))


def _entry_of_categories() -> NDArray[np.uint8]:
    table = np.full(PAGE_IS_PFNZERO * 2, Entry.EMPTY, np.uint8)
    for categories in range(len(table)):
        if categories & PAGE_IS_SWAPPED:
            table[categories] = Entry.SWAP
        elif categories & PAGE_IS_PRESENT:
            is_zero = categories & PAGE_IS_PFNZERO
            table[categories] = Entry.ZERO if is_zero else Entry.PRESENT
    return table


_ENTRY_OF_CATEGORIES = _entry_of_categories()
