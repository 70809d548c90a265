"""What is known of page frames in a scan of many processes: answers, numbers, sets of them."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PIECE_PAGES,
)
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import distinct
from memlens.pages.bits import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFN, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.scan.pagetable import PageTable

KPF_ANON = np.uint64(1 << 12)
KPF_SWAPCACHE = np.uint64(1 << 13)
_FRAMES_AT_ONCE = 1 << 18
_PRESENT_OR_SWAPPED = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
_NOTHING = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
ANSWER_LIMIT = 0xFFFE
_ROOM_TO_GROW = 5 / 4
_POPCOUNTS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class FrameTable:
    """
    Answers about frames; for one thread.

    :param file: an open kpageflags or kpagecount.
    :param reduce: makes an answer, at most ``ANSWER_LIMIT``, of each word; it is given the
        words and their frames.

    Takes two bytes for every frame of a part of memory where any is asked about.
    """

    def __init__(
        self,
        file: KpageFile,
        reduce: Callable[[NDArray[np.uint64], NDArray[np.int64]], NDArray[np.uint16]],
    ) -> None:
        self.file = file
        self._reduce = reduce
        # Answers plus one; 0 is not known yet.  The kernel gives zeros no memory before they
        # are written, so that room for every frame of the machine costs nothing.
        self._table = np.zeros(count_frames(file.host), np.uint16)

    def of(self, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.uint16]:
        """
        Return the answers for frames in any order, repeated or not, ``(n,)`` uint16.

        :raises MemlensError: as the reads give it.
        """
        if not len(pfns):
            return np.empty(0, np.uint16)
        numbers = pfns.astype(np.int64)
        self._make_room(int(numbers.max()))
        answers = self._table[numbers]
        is_new = answers == 0
        if is_new.any():
            fresh = distinct(numbers[is_new])
            words = read_sorted(self.file, fresh)
            self._table[fresh] = self._reduce(words, fresh) + np.uint16(1)
            answers[is_new] = self._table[numbers[is_new]]
        answers -= np.uint16(1)
        return answers

    def ask_again(self, pfns: NDArray[np.int64]) -> bool:
        """
        Ask anew of those of some frames that were asked about, and return if there are any.

        :param pfns: ``(n,)`` int64, each once.
        :raises MemlensError: as the reads give it.
        """
        inside = pfns[pfns < len(self._table)]
        known = inside[self._table[inside] != 0]
        self._table[known] = 0
        self.of(known.view(np.uint64))
        return bool(len(known))

    def _make_room(self, last: int) -> None:
        """Grow for memory that came after the start, or was not known of."""
        if last >= len(self._table):
            grown = np.zeros(int(last * _ROOM_TO_GROW) + 1, np.uint16)
            grown[: len(self._table)] = self._table
            self._table = grown


# What the page table of a process has of frames and slots.

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
    table: PageTable,
    ranges: Sequence[tuple[int, int]],
    anonymous: Collection[tuple[int, int]] = (),
) -> Frames:
    """
    Return the frames of a process.

    :param table: its page table.
    :param ranges: half-open page ranges that cover its mappings without those of hugetlbfs,
        in order; with PAGEMAP_SCAN they may cover holes as well.
    :param anonymous: those of the ranges that are of no object, for use without
        PAGEMAP_SCAN.
    :raises Stopped: between pieces, when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    collected = _Collected()
    for several in ([one] for one in ranges) if anonymous else [ranges]:
        is_anonymous = bool(anonymous) and several[0] in anonymous
        for _, words in table.words(several, _PRESENT_OR_SWAPPED, PAGE_IS_PFNZERO):
            if is_anonymous:
                # Of no file, and yet with that bit: only a huge zero page is.
                words[(words & PM_FILE) != 0] = 0
            collected.add(words.copy())
    return collected.frames()


class _Collected:
    """Words, decoded many at a time: those of a small process all at once."""

    def __init__(self) -> None:
        self._zero_pfn = np.uint64(features.zero_pfn())
        self._waiting: list[NDArray[np.uint64]] = []
        self._waiting_pages = 0
        self._pfns: list[NDArray[np.uint32] | NDArray[np.uint64]] = []
        self._files: list[NDArray[np.bool_]] = []
        self._alone: list[NDArray[np.bool_]] = []
        self._swap_words: list[NDArray[np.uint64]] = []

    def add(self, words: NDArray[np.uint64]) -> None:
        self._waiting.append(words)
        self._waiting_pages += len(words)
        if self._waiting_pages >= PIECE_PAGES:
            self._decode()

    def _decode(self) -> None:
        words = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting, self._waiting_pages = [], 0
        is_present = words >= PM_PRESENT
        if self._zero_pfn:
            is_present &= (words & PM_PFN) != self._zero_pfn
        kept = words
        if not is_present.all():
            slots, _ = find_swap_entries(words, 0)
            if len(slots):
                self._swap_words.append(slots)
            kept = words[is_present]
        pfns = kept & PM_PFN
        is_wide = len(pfns) and int(pfns.max()) >= _NARROW
        self._pfns.append(pfns if is_wide else pfns.astype(np.uint32))
        self._files.append((kept & PM_FILE) != 0)
        self._alone.append((kept & PM_MMAP_EXCLUSIVE) != 0)

    def frames(self) -> Frames:
        if self._waiting:
            self._decode()
        return Frames(
            pfn=_joined(self._pfns, np.uint32),
            is_file=_joined(self._files, np.bool_),
            is_alone=_joined(self._alone, np.bool_),
            swap_words=_joined(self._swap_words, np.uint64),
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


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
    table: PageTable, ranges: Iterable[tuple[int, int]], flags: FrameTable | None
) -> Slots:
    """
    Return the slots of a process.

    :param ranges: half-open page ranges that cover its private mappings, in order.
    :param flags: as ``find_swap_cached`` gives it, to look for pages in RAM as well; or None.
    :raises Stopped: between pieces, when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    swapped, cached = _Entries(), _Cached(flags)
    holding, without = PAGE_IS_SWAPPED, 0
    if flags is not None:
        holding, without = _PRESENT_OR_SWAPPED, PAGE_IS_FILE | PAGE_IS_PFNZERO
    for page, words in table.words(ranges, holding, without):
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


class FrameRanks:
    """
    Numbers frames in the order in which they come.

    :param frames: page frames of the machine, 0 if that is not known.

    Takes four bytes for every frame of a part of memory where any is used.
    """

    def __init__(self, frames: int) -> None:
        self.size = 0
        self._rank = np.zeros(max(frames, 1), np.uint32)

    def learn(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return the numbers of frames, given to those that are new.

        :param pfns: ``(n,)`` int64, in any order, repeated or not.
        :return: ``(n,)`` int64, from 0.
        """
        if len(pfns) and int(pfns.max()) >= len(self._rank):
            grown = np.zeros(int(pfns.max()) * 5 // 4 + 1, np.uint32)
            grown[: len(self._rank)] = self._rank
            self._rank = grown
        fresh = np.sort(pfns[self._rank[pfns] == 0])
        if len(fresh):
            fresh = fresh[np.append(True, fresh[1:] != fresh[:-1])]
            numbers = np.arange(self.size + 1, self.size + 1 + len(fresh), dtype=np.uint32)
            self._rank[fresh] = numbers
            self.size += len(fresh)
        return self._rank[pfns].astype(np.int64) - 1

    def find(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of frames, ``(n,)`` int64; -1 for those that never came."""
        is_inside = pfns < len(self._rank)
        found = self._rank[np.where(is_inside, pfns, 0)].astype(np.int64) - 1
        found[~is_inside] = -1
        return found

    def known(self) -> NDArray[np.uint64]:
        """Return the frames that came, sorted, ``(n,)`` uint64."""
        return np.flatnonzero(self._rank).view(np.uint64)


class FrameSet:
    """
    A set of numbered frames, a bit for each.

    >>> one, other = FrameSet(), FrameSet()
    >>> one.add(np.array([1, 9])), other.add(np.array([9, 70]))
    (None, None)
    >>> one.count_common(other)
    1
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)

    def add(self, ranks: NDArray[np.int64]) -> None:
        """Put frames in, by number."""
        if not len(ranks):
            return
        first, stop = int(ranks.min()) // 8, int(ranks.max()) // 8 + 1
        if stop > len(self._bits):
            grown = np.zeros(max(stop, len(self._bits) * 5 // 4), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        dense = np.zeros((stop - first) * 8, bool)
        dense[ranks - first * 8] = True
        self._bits[first:stop] |= np.packbits(dense)

    def has(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which frames are in, ``(n,)`` bool; -1 never is."""
        place = ranks >> 3
        is_inside = (ranks >= 0) & (place < len(self._bits))
        if not len(self._bits):
            return is_inside
        bits = self._bits[np.where(is_inside, place, 0)]
        found: NDArray[np.bool_] = is_inside & ((bits >> (7 - (ranks & 7))) & 1).astype(bool)
        return found

    def count(self) -> int:
        """Return how many frames are in."""
        return _count_bits(self._bits)

    def count_common(self, other: "FrameSet") -> int:
        """Return how many frames are in both."""
        length = min(len(self._bits), len(other._bits))
        return _count_bits(self._bits[:length] & other._bits[:length])

    def include(self, other: "FrameSet") -> None:
        """Put everything in that another set has."""
        length = max(len(self._bits), len(other._bits))
        joined = np.zeros(length, np.uint8)
        joined[: len(self._bits)] = self._bits
        joined[: len(other._bits)] |= other._bits
        self._bits = joined


def _count_bits(bits: NDArray[np.uint8]) -> int:
    # numpy counts bits itself since 2.0.
    if hasattr(np, "bitwise_count"):
        whole = len(bits) // 8 * 8
        words = np.bitwise_count(bits[:whole].view(np.uint64))
        rest = np.bitwise_count(bits[whole:])
        return int(words.sum(dtype=np.int64)) + int(rest.sum(dtype=np.int64))
    return int(_POPCOUNTS[bits].sum(dtype=np.int64))
