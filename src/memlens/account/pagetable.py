"""What the page table of a process says, as runs of ``Entry``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.account.model import Words
from memlens.kernel.pagemap import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    SCAN_REGIONS,
    Pagemap,
)
from memlens.pages.classes import Entry
from memlens.pages.decode import decode_entries, decode_pfn, is_maybe_zero_page
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

# Swapped pages closer than this are read with one call.
_JOIN_PAGES = 512
_ANY_OF = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
_WANTED = _ANY_OF | PAGE_IS_PFNZERO
# A call of PAGEMAP_SCAN that is full after so few pages has found crumbs.
_CRUMBLED_PAGES = SCAN_REGIONS * 8
_WORDS_AT_ONCE = 1 << 16


class Stopped(Exception):
    """The caller wants the scan to end here."""


@dataclass(slots=True)
class PageTable:
    """
    The page table of one process, read in bounded pieces.

    :param pagemap: the open file.
    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param zero_pfn: PFN of the zero page, 0 if PFNs are hidden.
    :param keep_words: whether to keep the raw words.
    :param should_stop: asked between pieces.
    :param words: raw words read so far, page numbers of the address space.
    """

    pagemap: Pagemap
    use_scan: bool
    zero_pfn: int
    keep_words: bool = False
    should_stop: Callable[[], bool] | None = None
    words: list[Words] = field(default_factory=list)

    def read_entries(self, first: int, stop: int, is_anonymous: bool | None) -> Runs:
        """
        Return the entries of a range of address space.

        :param first: first page, an address divided by the page size.
        :param stop: page after the last.
        :param is_anonymous: whether one mapping without an object holds the whole range, or
            one with; None if several mappings do.
        :return: runs of ``Entry``; pages in none are ``EMPTY``.
        :raises Stopped: if the caller wants an end.
        :raises EOFError: if the page table has vanished.
        """
        if self.use_scan:
            self.pagemap.meter.used.add("pagemap_scan")
            return self._scan_entries(first, stop, is_anonymous)
        return self._decode_words(first, stop, bool(is_anonymous))

    def take_words(self, first: int, stop: int) -> Words:
        """Return the words kept for a range, the last read of each page, from ``first``."""
        parts = [part for part in self.words if len(part.page)]
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

    def _scan_entries(self, first: int, stop: int, is_anonymous: bool | None) -> Runs:
        size = np.uint64(self.pagemap.page_size_bytes)
        parts = []
        page = first
        while page < stop:
            self.check_stop()
            regions, end = self.pagemap.scan_once(page, stop, _ANY_OF, _WANTED)
            begins = (regions[:, 0] // size).astype(np.int64)
            ends = (regions[:, 1] // size).astype(np.int64)
            entries = _ENTRY_OF_CATEGORIES[regions[:, 2]]
            parts.append(self._resolve(merge_runs(Runs(begins, ends - begins, entries))))
            is_crumbled = len(regions) == SCAN_REGIONS and end - page < _CRUMBLED_PAGES
            page = end
            if is_crumbled and is_anonymous is not None and self.zero_pfn:
                # So many short regions cost more than words do.
                end = min(page + _WORDS_AT_ONCE, stop)
                parts.append(self._decode_words(page, end, is_anonymous))
                page = end
        return concat_runs(parts)

    def _resolve(self, found: Runs) -> Runs:
        """Read the words of swapped pages: only they tell a marker or a migration."""
        asked = found if self.keep_words else select_runs(found, found.value == Entry.SWAP)
        if not len(asked):
            return found
        windows = window_runs(asked, _JOIN_PAGES)
        patches = concat_runs([self._refine(low, high) for low, high in windows])
        is_swap = select_runs(found, found.value == Entry.SWAP)
        return replace_runs(found, restrict_runs(patches, is_swap))

    def _refine(self, first: int, stop: int) -> Runs:
        """Return what the words of a range say."""
        parts = []
        for page, words in self._iter_words(first, stop):
            if self.keep_words:
                self._keep(page, words)
            fresh = decode_entries(words, is_anonymous=False)
            # Swapped a moment ago and something else now: to be looked at again.
            fresh[(fresh == Entry.PRESENT) | (fresh == Entry.EMPTY)] = Entry.TRANSIT
            parts.append(encode_runs(fresh, page))
        return concat_runs(parts)

    def _decode_words(self, first: int, stop: int, is_anonymous: bool) -> Runs:
        parts = []
        for page, words in self._iter_words(first, stop):
            if not words.any():
                continue
            if self.keep_words:
                self._keep(page, words)
            entries = decode_entries(words, is_anonymous)
            self._mark_zero_pages(entries, words)
            parts.append(encode_runs(entries, page))
        return concat_runs(parts)

    def _mark_zero_pages(self, entries: NDArray[np.uint8], words: NDArray[np.uint64]) -> None:
        is_maybe = is_maybe_zero_page(words)
        if not is_maybe.any():
            return
        if not self.zero_pfn:
            entries[is_maybe] = Entry.MAYBE_ZERO
        else:
            entries[is_maybe & (decode_pfn(words) == np.uint64(self.zero_pfn))] = Entry.ZERO

    def _iter_words(self, first: int, stop: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        self.pagemap.meter.used.add("pagemap")
        done = first
        for page, words in self.pagemap.iter_words(first, stop - first):
            self.check_stop()
            done = page + len(words)
            yield page, words
        if done < stop:
            raise EOFError

    def _keep(self, page: int, words: NDArray[np.uint64]) -> None:
        where = np.flatnonzero(words)
        self.words.append(Words(where + page, words[where]))

    def check_stop(self) -> None:
        """Raise ``Stopped`` if the caller wants an end."""
        if self.should_stop is not None and self.should_stop():
            raise Stopped


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
