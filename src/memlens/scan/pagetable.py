"""
The page table of a process: PAGEMAP_SCAN or words, which of them pays, gaps joined.

Nothing else above ``kernel`` reads page tables.  A word that is not zero need not hold
anything: where the kernel tracks soft-dirty pages, one that was never touched has bit 55.
What makes an entry are bits 62 and 63, and the categories that PAGEMAP_SCAN has for them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    SCAN_REGIONS,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import join_regions
from memlens.pages.bits import CATEGORIES, PM_FILE, PM_PFN, PM_PRESENT, PM_SOFT_DIRTY, PM_SWAP
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

# A half-open range of pages.
Window = tuple[int, int]

# Entries with less between them are read with one call.  A huge zero page is as large on
# x86, and larger elsewhere with larger base pages.
_JOIN_PAGES = 512
_ANY_OF = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
_WANTED = _ANY_OF | PAGE_IS_PFNZERO
_ALL_CATEGORIES = (1 << len(CATEGORIES)) - 1
_OLD_CATEGORIES = PAGE_IS_PFNZERO * 2 - 1

# Calls of PAGEMAP_SCAN whose regions are joined at once.
_SCANS_AT_ONCE = 16

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
    :param keep_words: whether to keep the raw words of entries.
    :param is_crumbled: whether runs were so short lately that windows are read instead.
    """

    pagemap: Pagemap
    machine: Machine
    zero_pfn: int = field(default_factory=features.zero_pfn)
    keep_words: bool = False
    is_crumbled: bool = False
    _kept: list[Words] = field(default_factory=list)

    @classmethod
    def open(cls, process: ProcessDir, machine: Machine, *, keep_words: bool = False) -> Self:
        """
        Open the page table of a process; the caller closes it.

        :raises MemlensError: if it is gone, or may not be read.
        """
        path = f"{process.path}/pagemap"
        pagemap = Pagemap(process.open("pagemap"), machine, path)
        return cls(pagemap, machine, keep_words=keep_words)

    def close(self) -> None:
        """Close the file."""
        self.pagemap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Return the size of a page in bytes."""
        return self.pagemap.page_size_bytes

    @property
    def use_scan(self) -> bool:
        """Return whether PAGEMAP_SCAN is used."""
        return self.machine.may("pagemap_scan")

    # Words

    def word(self, page: int) -> int | None:
        """Return the word of one page, None beyond the table or if the process is gone."""
        words = self.pagemap.read_words(page, 1)
        return int(words[0]) if len(words) else None

    def words(
        self, ranges: Iterable[Window], holding: int = 0, without: int = 0
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """
        Yield ``(page, words)`` piece by piece; the array is used again for the next.

        :param ranges: half-open ranges of pages, in order, which may cover holes.
        :param holding: only where there may be pages in one of these ``PAGE_IS_`` categories,
            and small gaps between them; 0 for all.
        :param without: present pages in one of these do not count.
        :raises Stopped: between pieces, when the scan is to end.
        :raises MemlensError: as the reads give it.

        A range ends early where the address space does, or the process.
        """
        for first, stop in self._holding(ranges, holding, without) if holding else ranges:
            for page, words in self.pagemap.iter_words(first, stop - first):
                self.machine.check_stop()
                yield page, words

    def _holding(
        self, ranges: Iterable[Window], holding: int, without: int
    ) -> Iterable[Window]:
        if not self.use_scan:
            return ranges
        # The zero page of one base page is known by its frame.  What that is can only be told
        # by who sees frames, and a huge zero page is no smaller than the gaps.
        is_known = self.zero_pfn or not without & PAGE_IS_PFNZERO
        return self._join(ranges, holding, without, _JOIN_PAGES if is_known else 1)

    def _join(
        self, ranges: Iterable[Window], holding: int, without: int, gap_pages: int
    ) -> Iterator[Window]:
        # To tell the categories of present pages the kernel looks at their frames: twice
        # the time.
        waiting = []
        for regions in self.regions(ranges, holding, holding | without):
            if without:
                is_out = (regions[:, 2] & (without | PAGE_IS_SWAPPED)) != 0
                is_out &= (regions[:, 2] & PAGE_IS_SWAPPED) == 0
                regions = regions[~is_out]
            if len(regions):
                waiting.append(regions[:, :2])
            if len(waiting) == _SCANS_AT_ONCE:
                yield from join_regions(np.concatenate(waiting), gap_pages)
                waiting = []
        if waiting:
            yield from join_regions(np.concatenate(waiting), gap_pages)

    def read(self, windows: list[Window]) -> NDArray[np.uint64]:
        """
        Return the words of some ranges of pages, one after the other.

        :raises EOFError: if the process is gone.
        """
        parts = [self.pagemap.read_words(first, stop - first) for first, stop in windows]
        if sum(map(len, parts)) < sum(stop - first for first, stop in windows):
            raise EOFError
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def are_same(self, windows: list[Window], words: NDArray[np.uint64]) -> bool:
        """
        Return whether these ranges still have these words.

        :raises EOFError: if the process is gone.
        """
        place = 0
        for first, stop in windows:
            end = place + stop - first
            for _, piece in self.pagemap.iter_words(first, stop - first):
                if not np.array_equal(piece, words[place : place + len(piece)]):
                    return False
                place += len(piece)
            if place < end:
                raise EOFError
        return True

    # Regions

    def regions(
        self, ranges: Iterable[Window], any_of: int, wanted: int
    ) -> Iterator[NDArray[np.int64]]:
        """
        Yield regions of pages of one set of categories, in order, some at a time.

        :param any_of: a page is reported if it is in one of these ``PAGE_IS_`` categories.
        :param wanted: categories to report.
        :return: arrays ``(n, 3)`` int64 of first page, page after the last, categories.
        :raises MemlensError: as the reads give it.

        Words do not tell huge pages, nor a zero page to whom frames are hidden.
        """
        for first, stop in ranges:
            if not self.use_scan:
                for page, words in self.pagemap.iter_words(first, stop - first):
                    yield self._regions_of(words, page, any_of, wanted)
                continue
            for regions in self.pagemap.scan(first, stop - first, any_of, wanted):
                found = regions.view(np.int64)
                found[:, :2] //= self.size
                yield found

    def _regions_of(
        self, words: NDArray[np.uint64], page: int, any_of: int, wanted: int
    ) -> NDArray[np.int64]:
        found = np.zeros(len(words), np.uint8)
        for bit, category in _CATEGORY_OF_BIT:
            found[(words & bit) != 0] |= category
        if self.zero_pfn:
            is_zero = (words >= PM_PRESENT) & ((words & PM_PFN) == np.uint64(self.zero_pfn))
            found[is_zero] |= PAGE_IS_PFNZERO
        runs = encode_runs(np.where((found & any_of) != 0, found & wanted, _NOWHERE), page)
        runs = select_runs(runs, runs.value != _NOWHERE)
        return np.stack((runs.first, runs.stop, runs.value.astype(np.int64)), axis=1)

    def mapped(self, first: int, stop: int, needed: int) -> Runs:
        """Return the present pages of a range that are in all categories ``needed``."""
        needed |= PAGE_IS_PRESENT
        parts = []
        for regions in self.regions([(first, stop)], PAGE_IS_PRESENT, needed | PAGE_IS_HUGE):
            begin = regions[:, 0].copy()
            parts.append(Runs(begin, regions[:, 1] - begin, regions[:, 2].astype(np.uint8)))
        runs = concat_runs(parts)
        return select_runs(runs, (runs.value & needed) == needed)

    def mapped_of(self, mapping: Mapping, first: int, stop: int) -> tuple[Runs, bool]:
        """
        Return the pages of an object that a mapping of it maps, and if any is huge.

        :param first: first page of the object that is asked about; the mapping covers it.
        :param stop: page after the last.
        :raises MemlensError: as the reads give it.
        """
        shift = (mapping.start - mapping.offset_bytes) // self.size
        # In a private mapping only pages of the file are the object's.
        needed = 0 if mapping.is_shared else PAGE_IS_FILE
        runs = self.mapped(first + shift, stop + shift, needed)
        is_huge = bool((runs.value & PAGE_IS_HUGE).any())
        return Runs(runs.first - shift, runs.pages, np.ones(len(runs), np.uint8)), is_huge

    def categories(self, page: int) -> int | None:
        """Return every category of a page that this kernel knows, None if it tells none."""
        if not self.use_scan:
            return None
        for wanted in (_ALL_CATEGORIES, _OLD_CATEGORIES):
            try:
                regions = list(self.pagemap.scan(page, 1, 0, wanted))
                return int(regions[0][0, 2]) if regions else 0
            except Unsupported:
                continue
            except ProcessGone:
                raise
            except MemlensError:
                break
        return None

    # Entries

    def entries(self, ranges: Iterable[Window]) -> Runs:
        """
        Return the entries of ranges of address space.

        :param ranges: half-open ranges of pages, addresses divided by the page size, in order.
        :return: runs of ``Entry``; pages in none are ``EMPTY``.
        :raises Stopped: if the caller wants an end.
        :raises EOFError: if the page table has vanished.
        """
        parts = []
        for first, stop in ranges:
            while first < stop:
                found, end = self.read_some(first, stop)
                parts.append(found if isinstance(found, Runs) else encode_runs(found, first))
                first = end
        return concat_runs(parts)

    def read_some(self, first: int, stop: int) -> tuple[Runs | NDArray[np.uint8], int]:
        """
        Return the entries of the beginning of a range, and where that ends.

        :return: runs as of ``entries``, some ten thousand at most; or, where these would be
            crumbs, an ``Entry`` for each page, some ten thousand too.
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
        for page, words in self._iter_all(first, stop):
            entries[page - first : page - first + len(words)] = self._decode(page, words)
        return entries

    def take_words(self, first: int, stop: int) -> Words:
        """Return the words kept since the last time, of each page the last, from ``first``."""
        parts, self._kept = self._kept, []
        page = np.concatenate([np.empty(0, np.int64), *(part.page for part in parts)])
        word = np.concatenate([np.empty(0, np.uint64), *(part.word for part in parts)])
        inside = (page >= first) & (page < stop)
        page, word = page[inside][::-1], word[inside][::-1]
        page, last = np.unique(page, return_index=True)
        return Words(page - first, word[last])

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
        edges = (joined[:, :2] // np.uint64(self.size)).astype(np.int64)
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
        for page, words in self._iter_all(first, stop):
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
        for page, words in self._iter_all(first, stop):
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

    def _iter_all(self, first: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield all words of a range; unlike ``words`` this does not end early."""
        self.pagemap.meter.used.add("pagemap")
        done = first
        for page, words in self.words([(first, stop)]):
            done = page + len(words)
            yield page, words
        if done < stop:
            raise EOFError

    def _keep(self, page: int, words: NDArray[np.uint64]) -> None:
        where = np.flatnonzero(words & ~PM_SOFT_DIRTY)
        self._kept.append(Words(where + page, words[where]))


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
_CATEGORY_OF_BIT = (
    (PM_PRESENT, PAGE_IS_PRESENT),
    (PM_SWAP, PAGE_IS_SWAPPED),
    (PM_FILE, PAGE_IS_FILE),
)
_NOWHERE = np.uint8(255)
