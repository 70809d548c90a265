"""Which pages of a process to ask kpageflags about, and their words."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PIECE_PAGES,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import distinct, join_regions
from memlens.pages.bits import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFN, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.pages.runs import Runs, concat_runs, encode_runs, select_runs
from memlens.scan.frametable import FrameTable
from memlens.scan.machine import Machine

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
    directory: ProcessDir, machine: Machine, addresses: tuple[int, int] | None = None
) -> list[list[Window]]:
    """
    Return the ranges of pages to read, in jobs of a bounded size.

    :param addresses: only this half-open range of addresses, in bytes.
    """
    size = machine.page_size_bytes
    ranges = [
        (mapping.start // size, mapping.stop // size)
        for mapping in directory.read_maps()
        if mapping.start < KERNEL_HALF
    ]
    if addresses is not None:
        low, high = addresses[0] // size, -(-addresses[1] // size)
        ranges = [(max(a, low), min(b, high)) for a, b in ranges if a < high and b > low]
    ranges = list(join_windows(ranges))
    pages = sum(stop - first for first, stop in ranges)
    if machine.may("pagemap_scan") and _is_sparse(directory, pages):
        ranges = list(join_windows(_scan(directory, ranges, machine)))
    return list(cut_windows(ranges))


def _is_sparse(directory: ProcessDir, pages: int) -> bool:
    """Return whether a scan for what is there is worth its price."""
    resident = int(directory.read("statm").split()[1])
    return pages > _SPARSE * resident + JOB_PAGES


def _scan(directory: ProcessDir, ranges: list[Window], machine: Machine) -> Iterator[Window]:
    path = f"{directory.path}/pagemap"
    pagemap = Pagemap(directory.open("pagemap"), machine, path)
    any_of, size = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, np.uint64(machine.page_size_bytes)
    try:
        for first, stop in ranges:
            for regions in pagemap.scan(first, stop - first, any_of, any_of):
                for start, end in (regions[:, :2] // size).tolist():
                    yield int(start), int(end)
    finally:
        pagemap.close()


def join_windows(ranges: Iterable[Window]) -> Iterator[Window]:
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


def cut_windows(ranges: Iterable[Window]) -> Iterator[list[Window]]:
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


def find_present(
    pagemap: Pagemap, mapping: Mapping, first: int, stop: int, machine: Machine
) -> tuple[Runs, bool]:
    """
    Return the pages of an object that a mapping of it maps, and if any is huge.

    :param first: first page of the object that is asked about; the mapping covers it.
    :param stop: page after the last.
    :raises MemlensError: as the reads give it.
    """
    size = pagemap.page_size_bytes
    shift = (mapping.start - mapping.offset_bytes) // size
    if machine.may("pagemap_scan"):
        # In a private mapping only pages of the file are the object's.
        needed = PAGE_IS_PRESENT | (0 if mapping.is_shared else PAGE_IS_FILE)
        wanted = needed | PAGE_IS_HUGE
        runs = concat_runs(_scan_present(pagemap, first + shift, stop + shift, wanted))
        runs = select_runs(runs, (runs.value & needed) == needed)
        is_huge = bool((runs.value & PAGE_IS_HUGE).any())
    else:
        bits = PM_PRESENT | PM_FILE
        parts = [
            encode_runs(((words & bits) == bits).astype(np.uint8), page)
            for page, words in pagemap.iter_words(first + shift, stop - first)
        ]
        runs = concat_runs([select_runs(part, part.value != 0) for part in parts])
        is_huge = False
    ones = np.full(len(runs), _MAPPED, np.uint8)
    return Runs(runs.first - shift, runs.pages, ones), is_huge


def _scan_present(pagemap: Pagemap, first: int, stop: int, wanted: int) -> list[Runs]:
    size = np.uint64(pagemap.page_size_bytes)
    parts = []
    for regions in pagemap.scan(first, stop - first, PAGE_IS_PRESENT, wanted):
        begin = (regions[:, 0] // size).astype(np.int64)
        end = (regions[:, 1] // size).astype(np.int64)
        parts.append(Runs(begin, end - begin, regions[:, 2].astype(np.uint8)))
    return parts


_MAPPED = 1

# Wider gaps are passed over: reading the words of so many costs as much as another read.
# A huge zero page is as large on x86, and larger elsewhere with larger base pages.
_WORDS_GAP_PAGES = 512

# Calls of PAGEMAP_SCAN whose regions are joined at once.
_SCANS_AT_ONCE = 16

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
    machine: Machine,
    anonymous: Collection[tuple[int, int]] = (),
) -> Frames:
    """
    Return the frames of a process.

    :param pagemap: its page table.
    :param ranges: half-open page ranges that cover its mappings without those of hugetlbfs,
        in order; with PAGEMAP_SCAN they may cover holes as well.
    :param anonymous: those of the ranges that are of no object, for use without
        PAGEMAP_SCAN.
    :raises Stopped: between pieces, when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    collected = _Collected()
    for first, stop in _filled(pagemap, ranges, machine):
        is_anonymous = (first, stop) in anonymous
        for page in range(first, stop, PIECE_PAGES):
            machine.check_stop()
            pages = min(PIECE_PAGES, stop - page)
            words = pagemap.read_words(page, pages)
            if is_anonymous:
                # Of no file, and yet with that bit: only a huge zero page is.
                words[(words & PM_FILE) != 0] = 0
            collected.add(words)
            if len(words) < pages:
                break
    return collected.frames()


def _filled(
    pagemap: Pagemap, ranges: Iterable[tuple[int, int]], machine: Machine
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold anything but zero pages, and small gaps between them."""
    if not machine.may("pagemap_scan"):
        yield from ranges
        return
    any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    # The zero page of one base page is known by its frame.  What that is can only be told
    # by who sees frames, and a huge zero page is no smaller than the gaps.
    gap_pages = _WORDS_GAP_PAGES if features.zero_pfn() else 1
    wanted = any_of | PAGE_IS_PFNZERO
    waiting: list[NDArray[np.uint64]] = []
    for first, stop in ranges:
        for regions in pagemap.scan(first, stop - first, any_of, wanted):
            waiting.append(regions)
            if len(waiting) == _SCANS_AT_ONCE:
                yield from _join(waiting, pagemap, gap_pages)
                waiting = []
    if waiting:
        yield from _join(waiting, pagemap, gap_pages)


def _join(
    scans: Sequence[NDArray[np.uint64]], pagemap: Pagemap, gap_pages: int
) -> list[tuple[int, int]]:
    """Return the ranges of pages of all regions but zero pages, and of small gaps."""
    regions = scans[0] if len(scans) == 1 else np.concatenate(scans)
    is_zero = (regions[:, 2] & np.uint64(PAGE_IS_PFNZERO)) != 0
    kept = (regions[~is_zero, :2] // np.uint64(pagemap.page_size_bytes)).astype(np.int64)
    return join_regions(kept, gap_pages) if len(kept) else []


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
    machine: Machine,
    flags: FrameTable | None,
) -> Slots:
    """
    Return the slots of a process.

    :param ranges: half-open page ranges that cover its private mappings, in order.
    :param flags: as ``find_swap_cached`` gives it, to look for pages in RAM as well; or None.
    :raises Stopped: between pieces, when the scan is to end.
    :raises MemlensError: as the reads give it.
    """
    swapped, cached = _Entries(), _Cached(flags)
    for first, stop in ranges:
        for begin, end in _windows(pagemap, first, stop, machine, flags is not None):
            for page, words in pagemap.iter_words(begin, end - begin):
                machine.check_stop()
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
    pagemap: Pagemap, first: int, stop: int, machine: Machine, has_cached: bool
) -> Iterable[tuple[int, int]]:
    """Yield the ranges that hold what is looked for; pages of files are passed over."""
    if not machine.may("pagemap_scan"):
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
