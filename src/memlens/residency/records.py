"""
The results of a capture: frozen dataclasses over numpy arrays.

Nothing here reads anything, so that every view also works on a saved capture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.mapstable import MapsTable, join_tables
from memlens.pages.arrays import distinct
from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.parts import part_of, replace_parts, take_parts
from memlens.pages.runs import Runs, count_runs, decode_runs, join_runs
from memlens.pages.slotruns import SlotRuns
from memlens.report import Cost
from memlens.units import escape_text, format_size


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    The kernel that answered.

    :param release: as ``uname -r`` says.
    :param page_size_bytes: size of a base page.
    """

    release: str
    page_size_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process, by more than its PID, which is reused.

    :param pid: as seen in the /proc that was read.
    :param name: the kernel's ``comm``, raw.
    :param cmdline: arguments, raw; empty if they are not in RAM.
    :param started_at: start time, UTC.
    """

    pid: int
    name: str
    cmdline: tuple[str, ...]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class UnknownRun:
    """Consecutive pages of a mapping that stay ``unknown``, and why."""

    first: int
    pages: int
    reason: str


@dataclass(frozen=True, slots=True)
class Words:
    """
    Raw pagemap words; pages not listed read zero.

    :param page: number of the page from the mapping's start, ``(n,)`` int64.
    :param word: the word the kernel gave, ``(n,)`` uint64.
    """

    page: NDArray[np.int64]
    word: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class MappingPages:
    """
    One mapping of a process and where each of its pages is.

    :param start: first address, in bytes.
    :param stop: address after the last, in bytes.
    :param permissions: four letters as in /proc/PID/maps, ``rw-s``.
    :param offset_bytes: offset of ``start`` in the object.
    :param device: ``major:minor`` in hexadecimal, as in /proc/PID/maps.
    :param inode: inode number of the object, 0 if there is none.
    :param path: last field of the line, raw; "" if there is none.
    :param object: ``anonymous``, ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``block``,
        ``file``, ``device`` or ``special``.
    :param page_size_bytes: size of a page.
    :param runs: a ``PageClass`` for every page, page numbers from the start.
    :param unknown: the runs of class ``UNKNOWN`` with the reason of each.
    :param words: the raw words, None unless asked for.
    :param slots: area and slot of pages on swap, None unless words were asked for; pages
        whose place is not known are in none.
    :param notes: what happened to this mapping during the scan.
    :param node_pages: pages of class ``PRESENT`` by NUMA node; empty where there is one
        node, or frames are hidden.

    With a range asked for, ``start`` and ``stop`` are the mapping's own and ``runs``
    cover only the pages in the range.
    """

    start: int
    stop: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    path: str
    object: str
    page_size_bytes: int
    runs: Runs
    unknown: tuple[UnknownRun, ...] = ()
    words: Words | None = None
    slots: SlotRuns | None = None
    notes: tuple[str, ...] = ()
    node_pages: dict[int, int] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        """Return the length of the mapping in pages."""
        return (self.stop - self.start) // self.page_size_bytes

    def counts(self) -> NDArray[np.int64]:
        """Return the pages in each class, ``(len(PageClass),)`` int64."""
        return count_runs(self.runs, len(PageClass))

    def classes(self) -> NDArray[np.uint8]:
        """
        Return the ``PageClass`` of every page, ``(pages,)`` uint8.

        Pages outside the range that was asked for are ``UNKNOWN``.
        """
        return decode_runs(self.runs, self.pages, fill=PageClass.UNKNOWN)


@dataclass(frozen=True, slots=True)
class MappingRows(Sequence[MappingPages]):
    """
    Mappings as columns; a row is made when it is read.

    :param maps: their lines of maps, in order.
    :param labels: what ``MappingPages`` calls the object of each place of ``maps``.
    :param page_size_bytes: size of a page.
    :param runs: the runs of all mappings, one after the other.
    :param edges: number of the first run of each, and of runs in all, ``(n + 1,)`` int64.
    :param special: rows that have more to say than their runs, by number.
    """

    maps: MapsTable
    labels: Sequence[str]
    page_size_bytes: int
    runs: Runs
    edges: NDArray[np.int64]
    special: Mapping[int, MappingPages]

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, row: int) -> MappingPages: ...
    @overload
    def __getitem__(self, row: slice) -> list[MappingPages]: ...
    def __getitem__(self, row: int | slice) -> MappingPages | list[MappingPages]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        if row in self.special:
            return self.special[row]
        line = self.maps[row]
        return MappingPages(
            start=line.start,
            stop=line.stop,
            permissions=line.permissions,
            offset_bytes=line.offset_bytes,
            device=line.device,
            inode=line.inode,
            path=line.path,
            object=self.labels[self.maps.place[row]],
            page_size_bytes=self.page_size_bytes,
            runs=part_of(self.runs, self.edges[row], self.edges[row + 1]),
        )

    def counts(self) -> NDArray[np.int64]:
        """Return the pages of each mapping in each class, ``(n, len(PageClass))`` int64."""
        classes = len(PageClass)
        number = np.repeat(np.arange(len(self)) * classes, np.diff(self.edges))
        found = np.bincount(
            number + self.runs.value, weights=self.runs.pages, minlength=len(self) * classes
        )
        return found.astype(np.int64).reshape(-1, classes)

    def sorted(self) -> "MappingRows":
        """Return the same in the order of addresses."""
        start = self.maps.start
        if (start[1:] >= start[:-1]).all():
            return self
        return self.take(np.argsort(start, kind="stable"))

    def take(self, rows: NDArray[np.int64]) -> "MappingRows":
        """Return some of the rows, in any order."""
        runs, edges = take_parts(self.runs, self.edges, rows)
        special: dict[int, MappingPages] = {}
        if self.special:
            kept = enumerate(rows.tolist())
            special = {new: self.special[old] for new, old in kept if old in self.special}
        maps = self.maps.take(rows)
        return MappingRows(maps, self.labels, self.page_size_bytes, runs, edges, special)


def join_rows(parts: Sequence[MappingRows]) -> MappingRows:
    """Return the rows of all of some tables, one after the other."""
    if len(parts) == 1:
        return parts[0]
    maps = join_tables([part.maps for part in parts])
    # A part may name places that only others have.
    names = {
        part.maps.places[number]: part.labels[number]
        for part in parts
        for number in distinct(part.maps.place).tolist()
    }
    starts = np.cumsum([0, *[len(part.runs) for part in parts]])
    edges = [part.edges[:-1] + start for part, start in zip(parts, starts, strict=False)]
    special: dict[int, MappingPages] = {}
    before = 0
    for part in parts:
        special |= {before + row: result for row, result in part.special.items()}
        before += len(part)
    return MappingRows(
        maps,
        [names.get(place, "") for place in maps.places],
        parts[0].page_size_bytes,
        join_runs([part.runs for part in parts]),
        np.append(np.concatenate(edges), starts[-1]),
        special,
    )


def with_rows(table: MappingRows, rows: Mapping[int, MappingPages]) -> MappingRows:
    """Return a table with other rows in place of some, by number."""
    if not rows:
        return table
    parts = {number: row.runs for number, row in rows.items()}
    runs, edges = replace_parts(table.runs, table.edges, parts)
    return replace(table, runs=runs, edges=edges, special={**table.special, **rows})


@dataclass(frozen=True, slots=True)
class ProcessMap:
    """
    Where every page of one process is.

    :param evidence: name of each interface, and whether it could be used.
    :param used: names of the interfaces that were used.
    :param is_complete: False if the scan was stopped early.
    :param notes: what happened during the scan, one line each.
    """

    kernel: Kernel
    process: Process
    evidence: dict[str, bool]
    mappings: Sequence[MappingPages]
    cost: Cost
    is_complete: bool = True
    notes: tuple[str, ...] = ()
    used: tuple[str, ...] = ()

    def counts(self) -> NDArray[np.int64]:
        """Return the pages of the process in each class, ``(len(PageClass),)`` int64."""
        if isinstance(self.mappings, MappingRows):
            return count_runs(self.mappings.runs, len(PageClass))
        total = np.zeros(len(PageClass), np.int64)
        for mapping in self.mappings:
            total += mapping.counts()
        return total

    def node_pages(self) -> dict[int, int]:
        """Return the present pages of the process by NUMA node, as those of a mapping."""
        total: dict[int, int] = {}
        rows = self.mappings
        for mapping in rows.special.values() if isinstance(rows, MappingRows) else rows:
            for node, pages in mapping.node_pages.items():
                total[node] = total.get(node, 0) + pages
        return dict(sorted(total.items()))


# THE table of what is told of a mapping: name, title, unit, kind of metric, how to read it.
#
# Text, JSON and CSV all read it, so that a column is one row here.


Value = int | str
Unit = Literal["address", "bytes", "pages", "number", "text"]
Metric = Literal["label", "gauge"]


class Row(NamedTuple):
    """A mapping and its pages in each class, ``(len(PageClass),)`` int64."""

    mapping: MappingPages
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, mapping: MappingPages) -> "Row":
        """Return the row of a mapping."""
        return cls(mapping, mapping.counts())


@dataclass(frozen=True, slots=True)
class Column:
    r"""
    One thing that is told of a mapping.

    :param name: in JSON, CSV and metrics; ends in its unit where that is not plain.
    :param title: for people; ``\n`` where a heading may break.
    :param unit: what its numbers count; says how text shows them.
    :param metric: ``label`` names a mapping, ``gauge`` measures it.
    :param read: takes the value from a row.
    """

    name: str
    title: str
    unit: Unit
    metric: Metric
    read: Callable[[Row], Value]


@dataclass(frozen=True, slots=True)
class ClassColumn(Column):
    """The pages of one class."""

    page_class: PageClass


MAPPING_COLUMNS = (
    Column("start", "address", "address", "label", lambda row: row.mapping.start),
    Column("stop", "end", "address", "label", lambda row: row.mapping.stop),
    Column("permissions", "perm", "text", "label", lambda row: row.mapping.permissions),
    Column("offset_bytes", "offset", "bytes", "label", lambda row: row.mapping.offset_bytes),
    Column("device", "device", "text", "label", lambda row: row.mapping.device),
    Column("inode", "inode", "number", "label", lambda row: row.mapping.inode),
    Column("path", "mapping", "text", "label", lambda row: row.mapping.path),
    Column("object", "object", "text", "label", lambda row: row.mapping.object),
)
_CLASS_TITLES = {
    PageClass.SWAP_CACHED: "swap\ncached",
    PageClass.ON_DISK: "on\ndisk",
    PageClass.PREALLOCATED: "pre-\nalloc",
    PageClass.POISONED: "poi-\nsoned",
    PageClass.BEYOND_END: "beyond\nend",
}


def _class_column(kind: PageClass) -> ClassColumn:
    return ClassColumn(
        name=kind.label,
        title=_CLASS_TITLES.get(kind, kind.label),
        unit="pages",
        metric="gauge",
        read=lambda row: int(row.counts[kind]),
        page_class=kind,
    )


CLASS_COLUMNS = tuple(_class_column(kind) for kind in PageClass)


def format_value(unit: Unit, value: Value, page_size_bytes: int) -> str:
    """
    Return a value as text shows it; no pages are nothing to see.

    >>> [format_value("pages", 4, 4096), format_value("pages", 0, 4096)]
    ['16K', '']
    >>> format_value("address", 4096, 4096)
    '1000'
    """
    if unit == "text" or isinstance(value, str):
        return escape_text(str(value))
    if unit == "address":
        return f"{value:x}"
    if unit == "bytes":
        return format_size(value)
    if unit == "pages":
        return format_size(value * page_size_bytes) if value else ""
    return str(value)


@dataclass(frozen=True, slots=True)
class SwapPlace:
    """
    Where a page is on swap.

    :param area: number of the swap area.
    :param slot: slot in it, in pages.
    :param path: the area's device or file, "" if the kernel does not say for certain.
    """

    area: int
    slot: int
    path: str


@dataclass(frozen=True, slots=True)
class Folio:
    """
    The folio of the page cache that a page is in.

    :param order: it is of ``1 << order`` pages.
    :param cgroup_id: the memory cgroup that is charged, 0 if none is.
    :param cgroup: its path, "" if that is not known.
    """

    order: int
    is_uptodate: bool
    is_dirty: bool
    is_writeback: bool
    cgroup_id: int
    cgroup: str


def folio_text(folio: Folio) -> str:
    """
    Return a folio as text.

    >>> folio_text(Folio(9, True, False, False, 1, "/"))
    '512 pages (order 9), up to date, charged to cgroup /'
    """
    pages = "1 page" if not folio.order else f"{1 << folio.order} pages"
    parts = [f"{pages} (order {folio.order})"]
    parts.append("up to date" if folio.is_uptodate else "never filled")
    parts += ["dirty"] if folio.is_dirty else []
    parts += ["being written"] if folio.is_writeback else []
    if folio.cgroup_id:
        parts.append(f"charged to cgroup {folio.cgroup or f'ID {folio.cgroup_id}'}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class PageHolder:
    """
    A mapping of an object's page.

    :param pid: the process.
    :param name: its comm, raw.
    :param address: where it has the page.
    :param permissions: of the mapping, ``rw-s``.
    :param is_present: whether a page is mapped there now, None if this reader may not know.
    :param is_private_copy: whether what it has there is a copy of its own, in RAM or on
        swap, and not the object's page.
    """

    pid: int
    name: str
    address: int
    permissions: str
    is_present: bool | None
    is_private_copy: bool


@dataclass(frozen=True, slots=True)
class Holders:
    """
    Every mapping of an object's page that could be found.

    :param rows: in the order of PIDs and addresses.
    :param missed: processes that this reader may not look at.
    """

    rows: tuple[PageHolder, ...] = ()
    missed: int = 0


@dataclass(frozen=True, slots=True)
class PageObject:
    """
    The object that backs a page.

    :param kind: ``shmem``, ``file``, ``hugetlb``, ``device`` or ``special``.
    :param path: as the mapping names it, raw.
    :param device: ``major:minor``, hexadecimal.
    :param inode: inode number.
    :param offset_bytes: offset of the page in the object.
    """

    kind: str
    path: str
    device: str
    inode: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """
    One question to the kernel.

    :param asked: which file or call was asked, and what.
    :param answer: what it answered, raw as far as text can be.
    :param meaning: what follows.
    """

    asked: str
    answer: str
    meaning: str


@dataclass(frozen=True, slots=True)
class PageExplanation:
    """
    One page of a process, explained.

    :param process: whose page it is.
    :param address: the first address of the page.
    :param page_size_bytes: its size.
    :param start: first address of its mapping.
    :param stop: address after the last of its mapping.
    :param permissions: of the mapping.
    :param steps: what was asked, in order.
    :param verdict: what the page is.
    :param reason: why it is ``UNKNOWN``, "" otherwise.
    :param object: what backs it, None for private anonymous memory.
    :param word: the raw pagemap word, None beyond the page table.
    :param pfn: page frame number, None if there is none or it is hidden.
    :param swap: where it is on swap, None if it is not or that is not known; a shared
        page's place needs the page-cache walk.
    :param folio: the folio of the object's page cache that it is in, None if there is none
        or that is not known.
    :param attributes: what else is known of the page, by name.
    :param kpage_flags: names of the frame's flags in /proc/kpageflags; empty if there is no
        frame or this reader may not know.
    :param holders: processes that map the same page of the object, this one too.
    :param missed_holders: processes that could not be looked at for it.
    :param notes: what happened meanwhile.
    """

    process: Process
    address: int
    page_size_bytes: int
    start: int
    stop: int
    permissions: str
    steps: tuple[Step, ...]
    verdict: PageClass
    reason: str = ""
    object: PageObject | None = None
    word: int | None = None
    pfn: int | None = None
    swap: SwapPlace | None = None
    folio: Folio | None = None
    attributes: tuple[str, ...] = ()
    kpage_flags: tuple[str, ...] = ()
    holders: tuple[PageHolder, ...] = ()
    missed_holders: int = 0
    notes: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """Return what the verdict means, one sentence."""
        return CLASSES[self.verdict].meaning
