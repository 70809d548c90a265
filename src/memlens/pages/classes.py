"""
THE table of page classes, and the table that turns evidence into one of them.

A class is one row of ``CLASSES``.  ``ENTRY_TABLE`` says what a page-table entry
means; where it leaves the page to the object, ``OBJECT_TABLE`` says what the
object's answers mean.  Rows stand in the order in which they are asked, and the
first that matches decides.
"""

from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ON_DISK = ("file", "block")


class PageClass(IntEnum):
    """What a page is; every page is in exactly one class."""

    PRESENT = 0
    ZERO = 1
    CACHED = 2
    SWAP_CACHED = 3
    SWAPPED = 4
    ON_DISK = 5
    PREALLOCATED = 6
    NONE = 7
    GUARD = 8
    POISONED = 9
    BEYOND_END = 10
    DEVICE = 11
    UNKNOWN = 12

    @property
    def label(self) -> str:
        """Return the name as it is written everywhere: ``swap_cached``."""
        return self.name.lower()


class ClassRow(NamedTuple):
    r"""
    One page class, as documented and drawn.

    :param page_class: the class.
    :param meaning: one sentence.
    :param sign: one ASCII character that stands for it without colour.
    :param color: a colour name that rich knows.
    :param rank: how much a reader would miss it, from 0, which is missed most.
    :param title: what heads a column of it; ``\n`` where it may break.
    :param holds_ram: whether such a page takes RAM.
    :param holds_slot: whether it takes a slot on swap.
    :param of_object: whether only the object behind a mapping can say so.
    """

    page_class: PageClass
    meaning: str
    sign: str
    color: str
    rank: int
    title: str
    holds_ram: bool = False
    holds_slot: bool = False
    of_object: bool = False

    @property
    def label(self) -> str:
        """Return the name as it is written everywhere: ``swap_cached``."""
        return self.page_class.label


CLASSES = (
    ClassRow(
        PageClass.PRESENT,
        "in RAM and mapped by this process",
        *("P", "green", 11, "present"),
        holds_ram=True,
    ),
    ClassRow(
        PageClass.ZERO,
        "mapped to the shared zero page: costs no memory",
        *("z", "bright_black", 9, "zero"),
    ),
    ClassRow(
        PageClass.CACHED,
        "in RAM, in the object's page cache, not mapped by this process",
        *("c", "cyan", 4, "cached"),
        holds_ram=True,
        of_object=True,
    ),
    ClassRow(
        PageClass.SWAP_CACHED,
        "on swap and in RAM at once (swap cache), not mapped by this process",
        *("k", "magenta", 3, "swap\ncached"),
        holds_ram=True,
        holds_slot=True,
        of_object=True,
    ),
    ClassRow(PageClass.SWAPPED, "on swap only", *("S", "red", 2, "swapped"), holds_slot=True),
    ClassRow(
        PageClass.ON_DISK,
        "not in RAM; the file on disk holds it",
        *("d", "blue", 6, "on\ndisk"),
        of_object=True,
    ),
    ClassRow(
        PageClass.PREALLOCATED,
        "memory or swap is set aside (fallocate), never written",
        *("a", "yellow", 5, "pre-\nalloc"),
        holds_ram=True,
        of_object=True,
    ),
    ClassRow(
        PageClass.NONE,
        "never allocated, or given back: reads as zeros, costs nothing",
        *(".", "bright_black", 12, "none"),
    ),
    ClassRow(
        PageClass.GUARD,
        "guard region (MADV_GUARD_INSTALL): any access faults by design",
        *("G", "bright_yellow", 8, "guard"),
    ),
    ClassRow(
        PageClass.POISONED,
        "hardware or userfaultfd poison: access is SIGBUS",
        *("X", "bright_red", 0, "poi-\nsoned"),
    ),
    ClassRow(
        PageClass.BEYOND_END,
        "past the end of the object: access is SIGBUS",
        *("e", "bright_black", 7, "beyond\nend"),
        of_object=True,
    ),
    ClassRow(
        PageClass.DEVICE,
        "device or kernel memory mapped in ([vvar], rings, PFN maps): "
        "not part of RAM accounting",
        *("D", "bright_blue", 10, "device"),
    ),
    ClassRow(
        PageClass.UNKNOWN,
        "cannot be known with what this reader may open; the reason is always given",
        *("?", "bright_magenta", 1, "unknown"),
    ),
)
CLASS_OF = {kind.label: kind for kind in PageClass}


class Entry(IntEnum):
    """
    What a page table holds for a page.

    ``FILE_PAGE`` is one of a page with ``PM_FILE``, which without an object is the huge
    zero page; ``TRANSIT`` one of a page on the move, or of one that the kernel took
    away; ``HIDDEN`` one of swap, poison or migration whose area the reader may not
    see.
    """

    EMPTY = 0
    PRESENT = 1
    ZERO = 2
    SWAP = 3
    GUARD = 4
    WP_MARKER = 5
    POISON = 6
    TRANSIT = 7
    HIDDEN = 8
    HIDDEN_WP = 9
    MAYBE_ZERO = 10
    OUTSIDE = 11
    FILE_PAGE = 12


class Evidence(IntFlag):
    """
    What an object answered about a page; a question not asked sets no bit.

    ``DATA`` or ``HOLE`` from SEEK_DATA; ``RESIDENT`` or ``ABSENT`` from mincore;
    ``CACHE``, ``EVICTED`` or ``NEITHER`` from cachestat; ``PAST_END`` from its size.
    """

    DATA = 1
    HOLE = 2
    RESIDENT = 4
    ABSENT = 8
    CACHE = 16
    EVICTED = 32
    NEITHER = 64
    PAST_END = 128


class Verdict(IntEnum):
    """
    A ``PageClass`` (0 to 12), or what must be done or said instead of one.

    From ``ASK`` on: open questions.  From ``FIRST_REASON`` on: reasons of ``UNKNOWN``,
    which are indexes of ``REASONS``.
    """

    ASK = 16
    AGAIN = 17
    HIDDEN = 18
    HIDDEN_WP = 19
    MAYBE_ZERO = 20
    FIRST_REASON = 32


REASONS = (
    "changing: no two looks agreed",
    "page in migration, or an entry of hardware poison or device memory",
    "the swap area is hidden from this reader: swap, or a marker, or a page in migration",
    "the zero page or a page shared after fork: PFNs are hidden from this reader",
    "a swap entry in a shared mapping",
    "in the page cache, written or only preallocated: needs SEEK_DATA or mincore",
    "on swap, perhaps with a copy in RAM: needs mincore",
    "in the page cache or in the swap cache: needs cachestat",
    "never allocated or preallocated: needs cachestat",
    "on swap, in RAM or never allocated: needs cachestat, or SEEK_DATA with mincore",
    "on disk or a hole: needs SEEK_DATA",
    "in RAM or not: needs cachestat, or mincore where no block is smaller than a page",
    "hugetlbfs does not say which of its unmapped pages it holds",
    "mincore and cachestat do not answer for a file that the reader may not write",
    "an overlay file that may have been copied up since it was mapped",
    "an overlay file with some pages on swap: the kernel does not say which",
    "the object cannot be opened",
    "memory of the kernel that is not mapped here",
    "not scanned: stopped early",
    "the mapping changed during the scan",
)


class Reason(IntEnum):
    """Names of the rows of ``REASONS``, as run values."""

    CHANGING = 32
    TRANSIT = 33
    HIDDEN = 34
    MAYBE_ZERO = 35
    SHARED_SWAP = 36
    CACHED_OR_PREALLOCATED = 37
    SWAPPED_OR_SWAP_CACHED = 38
    CACHED_OR_SWAP_CACHED = 39
    NONE_OR_PREALLOCATED = 40
    NO_CACHESTAT = 41
    DISK_OR_HOLE = 42
    RAM_OR_NOT = 43
    HUGETLB = 44
    NOT_HONEST = 45
    COPIED_UP = 46
    OVERLAY_SWAP = 47
    NOT_OPENED = 48
    KERNEL_MEMORY = 49
    STOPPED = 50
    MAPPING_CHANGED = 51


class EntryRow(NamedTuple):
    """
    What a page-table entry means.

    :param entry: the entry.
    :param kinds: kinds of mapping it holds for: ``anonymous``, ``private`` or ``shared``
        (of an object), ``special`` (a driver's), ``kernel`` ([vdso] and its like).
    :param verdict: what follows.
    """

    entry: Entry
    kinds: tuple[str, ...]
    verdict: int


ANY = ("anonymous", "private", "shared", "special", "kernel")
OF_OBJECT = ("private", "shared")
OF_KERNEL = ("special", "kernel")
ENTRY_TABLE = (
    EntryRow(Entry.OUTSIDE, ANY, PageClass.DEVICE),
    EntryRow(Entry.ZERO, ANY, PageClass.ZERO),
    EntryRow(Entry.PRESENT, ANY, PageClass.PRESENT),
    EntryRow(Entry.FILE_PAGE, ("anonymous",), PageClass.ZERO),
    EntryRow(Entry.FILE_PAGE, (*OF_OBJECT, *OF_KERNEL), PageClass.PRESENT),
    EntryRow(Entry.MAYBE_ZERO, ANY, Verdict.MAYBE_ZERO),
    EntryRow(Entry.GUARD, ANY, PageClass.GUARD),
    EntryRow(Entry.POISON, ANY, PageClass.POISONED),
    # A write-protect marker says nothing of the page: the object has it, or nobody.
    EntryRow(Entry.WP_MARKER, ("anonymous",), PageClass.NONE),
    EntryRow(Entry.WP_MARKER, OF_OBJECT, Verdict.ASK),
    EntryRow(Entry.TRANSIT, ANY, Verdict.AGAIN),
    EntryRow(Entry.SWAP, ("anonymous", "private"), PageClass.SWAPPED),
    EntryRow(Entry.SWAP, ("shared", *OF_KERNEL), Reason.SHARED_SWAP),
    # A shared page that is swapped out leaves an empty entry, so these are markers.
    EntryRow(Entry.HIDDEN, ("shared",), PageClass.POISONED),
    EntryRow(Entry.HIDDEN_WP, ("shared",), Verdict.ASK),
    EntryRow(Entry.HIDDEN, ("anonymous", "private", *OF_KERNEL), Verdict.HIDDEN),
    EntryRow(Entry.HIDDEN_WP, ("anonymous", "private", *OF_KERNEL), Verdict.HIDDEN_WP),
    EntryRow(Entry.EMPTY, ("anonymous",), PageClass.NONE),
    EntryRow(Entry.EMPTY, OF_OBJECT, Verdict.ASK),
    EntryRow(Entry.EMPTY, ("special",), Reason.KERNEL_MEMORY),
    EntryRow(Entry.WP_MARKER, ("special",), Reason.KERNEL_MEMORY),
    # The kernel holds these pages whether or not they were ever faulted in.
    EntryRow(Entry.EMPTY, ("kernel",), PageClass.DEVICE),
    EntryRow(Entry.WP_MARKER, ("kernel",), PageClass.DEVICE),
)


class ObjectRow(NamedTuple):
    """
    What the answers of an object mean.

    :param kinds: kinds of object it holds for.
    :param all_of: evidence that must all be there.
    :param verdict: what follows.
    :param is_odd: whether a race gives this evidence too, so that a second look must
        give the same.
    """

    kinds: tuple[str, ...]
    all_of: Evidence
    verdict: int
    is_odd: bool = False


_E = Evidence
SHMEM = ("shmem",)
EVERY = ("shmem", "ramfs", "hugetlb", "overlay", "block", "file")
OBJECT_TABLE = (
    # Asked first: a huge page keeps RAM beyond the end of a short file.
    ObjectRow(EVERY, _E.PAST_END, PageClass.BEYOND_END),
    ObjectRow(SHMEM, _E.CACHE | _E.DATA, PageClass.CACHED),
    ObjectRow(SHMEM, _E.CACHE | _E.HOLE, PageClass.PREALLOCATED, is_odd=True),
    # A page that was never written is not up to date, which mincore calls not resident.
    ObjectRow(SHMEM, _E.CACHE | _E.RESIDENT, PageClass.CACHED),
    ObjectRow(SHMEM, _E.CACHE | _E.ABSENT, PageClass.PREALLOCATED, is_odd=True),
    ObjectRow(SHMEM, _E.CACHE, Reason.CACHED_OR_PREALLOCATED),
    ObjectRow(SHMEM, _E.EVICTED | _E.RESIDENT, PageClass.SWAP_CACHED, is_odd=True),
    ObjectRow(SHMEM, _E.EVICTED | _E.HOLE | _E.ABSENT, PageClass.SWAPPED, is_odd=True),
    ObjectRow(SHMEM, _E.EVICTED | _E.ABSENT, PageClass.SWAPPED),
    ObjectRow(SHMEM, _E.EVICTED, Reason.SWAPPED_OR_SWAP_CACHED),
    ObjectRow(SHMEM, _E.NEITHER | _E.DATA, Verdict.AGAIN),
    ObjectRow(SHMEM, _E.NEITHER | _E.RESIDENT, Verdict.AGAIN),
    ObjectRow(SHMEM, _E.NEITHER, PageClass.NONE),
    ObjectRow(SHMEM, _E.DATA | _E.ABSENT, PageClass.SWAPPED),
    ObjectRow(SHMEM, _E.DATA | _E.RESIDENT, Reason.CACHED_OR_SWAP_CACHED),
    ObjectRow(SHMEM, _E.HOLE | _E.RESIDENT, Verdict.AGAIN),
    ObjectRow(SHMEM, _E.HOLE, Reason.NONE_OR_PREALLOCATED),
    ObjectRow(SHMEM, _E(0), Reason.NO_CACHESTAT),
    # SEEK_DATA calls everything on ramfs data.
    ObjectRow(("ramfs",), _E.CACHE, PageClass.CACHED),
    ObjectRow(("ramfs",), _E.RESIDENT, PageClass.CACHED),
    ObjectRow(("ramfs",), _E.NEITHER, PageClass.NONE),
    ObjectRow(("ramfs",), _E.ABSENT, PageClass.NONE),
    ObjectRow(("ramfs",), _E(0), Reason.RAM_OR_NOT),
    # On disk an evicted page is only remembered, so EVICTED says no more than NEITHER.
    ObjectRow((*ON_DISK, "overlay"), _E.CACHE, PageClass.CACHED),
    ObjectRow((*ON_DISK, "overlay"), _E.RESIDENT, PageClass.CACHED),
    ObjectRow((*ON_DISK, "overlay"), _E.DATA | _E.EVICTED, PageClass.ON_DISK),
    ObjectRow((*ON_DISK, "overlay"), _E.DATA | _E.NEITHER, PageClass.ON_DISK),
    ObjectRow((*ON_DISK, "overlay"), _E.DATA | _E.ABSENT, PageClass.ON_DISK),
    ObjectRow((*ON_DISK, "overlay"), _E.HOLE | _E.EVICTED, PageClass.NONE),
    ObjectRow((*ON_DISK, "overlay"), _E.HOLE | _E.NEITHER, PageClass.NONE),
    ObjectRow((*ON_DISK, "overlay"), _E.HOLE | _E.ABSENT, PageClass.NONE),
    ObjectRow((*ON_DISK, "overlay"), _E.EVICTED, Reason.DISK_OR_HOLE),
    ObjectRow((*ON_DISK, "overlay"), _E.NEITHER, Reason.DISK_OR_HOLE),
    ObjectRow((*ON_DISK, "overlay"), _E.ABSENT, Reason.DISK_OR_HOLE),
    ObjectRow((*ON_DISK, "overlay"), _E(0), Reason.RAM_OR_NOT),
    ObjectRow(("hugetlb",), _E.CACHE, PageClass.CACHED),
    ObjectRow(("hugetlb",), _E.NEITHER, PageClass.NONE),
    ObjectRow(("hugetlb",), _E(0), Reason.HUGETLB),
)


def verdict_class(verdict: int) -> PageClass:
    """Return the class that a settled verdict stands for."""
    return PageClass(verdict) if verdict < len(PageClass) else PageClass.UNKNOWN


def entry_verdicts(kind: str) -> NDArray[np.uint8]:
    """
    Return the verdict for every ``Entry`` in a mapping of one kind.

    >>> int(entry_verdicts("anonymous")[Entry.SWAP]) == PageClass.SWAPPED
    True

    :param kind: one of ``ANY``.
    :return: ``(len(Entry),)`` uint8, to be indexed by entries.
    """
    table = np.empty(len(Entry), np.uint8)
    for entry in Entry:
        table[entry] = next(
            row.verdict for row in ENTRY_TABLE if row.entry == entry and kind in row.kinds
        )
    return table


@lru_cache
def object_verdicts(kind: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """
    Return what every combination of evidence means for an object of one kind.

    >>> verdicts, is_odd = object_verdicts("shmem")
    >>> PageClass(verdicts[Evidence.EVICTED | Evidence.DATA | Evidence.ABSENT]).label
    'swapped'

    :return: verdicts, ``(256,)`` uint8, and whether they need a second look, ``(256,)``
        bool; both to be indexed by ``Evidence``.
    """
    verdicts = np.empty(256, np.uint8)
    is_odd = np.zeros(256, bool)
    # Plain integers: operations on an IntFlag are a hundred times slower.
    rows = [(int(row.all_of), row) for row in OBJECT_TABLE if kind in row.kinds]
    for evidence in range(256):
        row = next(row for mask, row in rows if evidence & mask == mask)
        verdicts[evidence] = row.verdict
        is_odd[evidence] = row.is_odd or row.verdict == Verdict.AGAIN
    return verdicts, is_odd


def counts_by_name(counts: NDArray[np.int64]) -> dict[str, int]:
    """
    Return ``{"present": 4, ...}`` without the zeros.

    >>> counts_by_name(np.array([4] + [0] * 12))
    {'present': 4}
    """
    return {kind.label: int(counts[kind]) for kind in PageClass if counts[kind]}
