"""
The answers about the pages of a process: its map, and one page explained.

Nothing here reads anything, so that every view also works on a saved report.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import CLASS_OF, CLASSES, PageClass
from memlens.pages.decode import Words
from memlens.pages.runs import EMPTY, Runs, decode_runs
from memlens.pages.slotruns import SlotRuns
from memlens.record import Table, column, columns_of, record
from memlens.report import Report, section, table


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    The kernel that answered.

    :param release: as ``uname -r`` says.
    :param page_size_bytes: size of a base page.
    """

    release: str
    page_size_bytes: int


@record("map.process", help="A process, by more than its PID, which is reused.")
class Process:
    """A process, by more than its PID, which is reused."""

    pid: int = column("PID", key=True, help="as seen in the /proc that was read")
    name: str = column("name", help="the kernel's comm, raw")
    cmdline: str = column(
        "command", unit="name", help="arguments, raw, as a shell would read them; may be empty"
    )
    started_at: str = column("started", help="ISO 8601, UTC, with Z")


_KEY = "address of its mapping, in pages"
_FIRST = "number of the page from the start of the mapping"


def _pages_of(kind: PageClass) -> Any:
    row = CLASSES[kind]
    return column(row.title, unit="pages", metric="gauge", help=row.meaning)


@record("map.mappings", help="One mapping of a process, and its pages in each class.")
class MappingTotals:
    """
    One mapping of a process, and its pages in each class.

    With a range asked for, the addresses are the mapping's own, and only pages in the range
    are counted.
    """

    start_page: int = column("start", key=True, help="first address, in pages")
    stop_page: int = column("stop", help="address after the last, in pages")
    permissions: str = column("perm", help="four letters as in /proc/PID/maps, rw-s")
    offset_bytes: int = column("offset", unit="bytes", help="of the start, in the object")
    device: str = column("device", help="major:minor in hexadecimal")
    inode: int = column("inode", help="of the object, 0 if there is none")
    object: str = column(
        "object", help="anonymous, shmem, hugetlb, file (ramfs too), device or special"
    )
    path: str = column("mapping", unit="name", metric="label", help="raw, may be empty")
    present_pages: int = _pages_of(PageClass.PRESENT)
    zero_pages: int = _pages_of(PageClass.ZERO)
    cached_pages: int = _pages_of(PageClass.CACHED)
    swap_cached_pages: int = _pages_of(PageClass.SWAP_CACHED)
    swapped_pages: int = _pages_of(PageClass.SWAPPED)
    on_disk_pages: int = _pages_of(PageClass.ON_DISK)
    preallocated_pages: int = _pages_of(PageClass.PREALLOCATED)
    none_pages: int = _pages_of(PageClass.NONE)
    guard_pages: int = _pages_of(PageClass.GUARD)
    poisoned_pages: int = _pages_of(PageClass.POISONED)
    beyond_end_pages: int = _pages_of(PageClass.BEYOND_END)
    device_pages: int = _pages_of(PageClass.DEVICE)
    unknown_pages: int = _pages_of(PageClass.UNKNOWN)
    note: str = column("note", default="", help="what happened to it during the scan")

    def counts(self) -> NDArray[np.int64]:
        """Return the pages in each class, ``(len(PageClass),)`` int64."""
        return np.array([getattr(self, name) for name in COUNTS], np.int64)


COUNTS = tuple(f"{row.label}_pages" for row in CLASSES)


@record("map.runs", help="Consecutive pages of a mapping in one class.", compact=True)
class MapRun:
    """Consecutive pages of a mapping in one class."""

    start_page: int = column("mapping", key=True, help=_KEY)
    first_page: int = column("first", key=True, help=_FIRST)
    pages: int = column("size", unit="pages", help="that the run has")
    page_class: str = column("class", help="name of the class")


@record("map.unknown", help="Consecutive pages of a mapping that stay unknown.", compact=True)
class UnknownRun:
    """Consecutive pages of a mapping that stay ``unknown``, and why."""

    start_page: int = column("mapping", key=True, help=_KEY)
    first_page: int = column("first", key=True, help=_FIRST)
    pages: int = column("size", unit="pages", help="that the run has")
    reason: str = column("reason", unit="name", help="why they stay unknown")


@record("map.slots", help="Consecutive pages at consecutive slots of swap.", compact=True)
class MapSlots:
    """Consecutive pages of a mapping at consecutive slots of a swap area."""

    start_page: int = column("mapping", key=True, help=_KEY)
    first_page: int = column("first", key=True, help=_FIRST)
    pages: int = column("size", unit="pages", help="that are in a row")
    area: int = column("area", help="number of the swap area")
    slot: int = column("slot", help="of the first page")


@record("map.words", help="A raw pagemap word that is not zero.", compact=True)
class MapWord:
    """A raw pagemap word that is not zero."""

    start_page: int = column("mapping", key=True, help=_KEY)
    page: int = column("first", key=True, help=_FIRST)
    word: int = column("word", help="as the kernel gave it; bit 63 is the sign")


@record("map.nodes", help="Present pages of a mapping on one NUMA node.")
class NodePages:
    """Present pages of a mapping on one NUMA node, where there are several."""

    start_page: int = column("mapping", key=True, help=_KEY)
    node: int = column("node", key=True, help="number of the NUMA node")
    pages: int = column("size", unit="pages", metric="gauge", help="on it")


@record("map.evidence", help="A source of evidence, and whether it was used.")
class Evidence:
    """A source of evidence, and whether it was used."""

    name: str = column("interface", key=True, help="name of the interface")
    is_available: bool = column("available", help="whether it could be used")
    is_used: bool = column("used", help="whether there was a need for it")


@record("map.scope", help="What a map is of.")
class Scope:
    """What a map is of: a range of addresses."""

    start_page: int = column("start", help="first address that was asked for, in pages")
    stop_page: int = column("stop", help="address after the last, in pages")


@dataclass(frozen=True, slots=True)
class MappingPages(MappingTotals):
    """
    One mapping of a process and where each of its pages is.

    :param page_size_bytes: size of a page.
    :param runs: a ``PageClass`` for every page, page numbers from the start; those in the
        range that was asked for.
    :param unknown: the runs of class ``UNKNOWN`` with the reason of each.
    :param words: the raw words, None unless asked for.
    :param slots: area and slot of pages on swap, None unless words were asked for; pages
        whose place is not known are in none.
    :param node_pages: pages of class ``PRESENT`` by NUMA node; empty where there is one
        node, or frames are hidden.
    """

    page_size_bytes: int = 0
    runs: Runs = EMPTY
    unknown: tuple[UnknownRun, ...] = ()
    words: Words | None = None
    slots: SlotRuns | None = None
    node_pages: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def start(self) -> int:
        """Return the first address, in bytes."""
        return self.start_page * self.page_size_bytes

    @property
    def stop(self) -> int:
        """Return the address after the last, in bytes."""
        return self.stop_page * self.page_size_bytes

    @property
    def pages(self) -> int:
        """Return the length of the mapping in pages."""
        return self.stop_page - self.start_page

    def classes(self) -> NDArray[np.uint8]:
        """
        Return the ``PageClass`` of every page, ``(pages,)`` uint8.

        Pages outside the range that was asked for are ``UNKNOWN``.
        """
        return decode_runs(self.runs, self.pages, fill=PageClass.UNKNOWN)


class Grouped(NamedTuple):
    """
    Rows of a table by mapping.

    :param rows: in the order of their mappings.
    :param keys: their ``start_page``, ``(n,)`` int64.
    """

    rows: Table[Any]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Table[Any]) -> "Grouped":
        """Bring the rows of a table into the order of their mappings."""
        keys = rows.column("start_page")
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys, kind="stable")
            rows, keys = rows[order], keys[order]
        return cls(rows, keys)

    def places(self, start_page: NDArray[np.int64]) -> Iterator[slice]:
        """Yield which rows are of each of several mappings."""
        low = np.searchsorted(self.keys, start_page).tolist()
        high = np.searchsorted(self.keys, start_page, side="right").tolist()
        return map(slice, low, high)

    def place(self, start_page: int) -> slice:
        """Return which rows are of a mapping."""
        return next(self.places(np.array([start_page])))

    def of_mapping(self, start_page: int) -> Table[Any]:
        """Return the rows of a mapping."""
        return self.rows[self.place(start_page)]


def runs_of(rows: Table[MapRun]) -> Runs:
    """Return rows as arrays; a class of a later version is unknown here."""
    labels = rows.column("page_class").tolist()
    value = (CLASS_OF.get(label, PageClass.UNKNOWN) for label in labels)
    return Runs(
        rows.column("first_page"),
        rows.column("pages"),
        np.fromiter(value, np.uint8, len(labels)),
    )


def cut_runs(runs: Runs, part: slice) -> Runs:
    """Return some of the runs."""
    return Runs(runs.first[part], runs.pages[part], runs.value[part])


class MappingList(Sequence[MappingPages]):
    """
    The mappings of a process with their runs; each is made when it is read.

    :param found: the map.
    """

    def __init__(self, found: "ProcessMap") -> None:
        self._map = found
        names = ("runs", "unknown", "words", "slots", "nodes")
        self._parts = {name: Grouped.of(found.table(name)) for name in names}
        self._runs = runs_of(self._parts["runs"].rows)

    def __len__(self) -> int:
        return len(self._map.mappings)

    @overload
    def __getitem__(self, place: int) -> MappingPages: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[MappingPages]: ...
    def __getitem__(self, place: int | slice) -> MappingPages | Sequence[MappingPages]:
        if isinstance(place, slice):
            return [self._make(row) for row in self._map.mappings[place]]
        return self._make(self._map.mappings[place])

    def __iter__(self) -> Iterator[MappingPages]:
        return map(self._make, self._map.mappings)

    def __repr__(self) -> str:
        return f"<{len(self)} mappings of {self._map!r}>"

    def _make(self, row: MappingTotals) -> MappingPages:
        key = row.start_page
        part = self._parts["runs"].place(key)
        return MappingPages(
            **{one.name: getattr(row, one.name) for one in columns_of(MappingTotals)},
            page_size_bytes=self._map.page_size_bytes,
            runs=cut_runs(self._runs, part),
            unknown=tuple(self._parts["unknown"].of_mapping(key)),
            words=self._words(key),
            slots=self._slots(key),
            node_pages={one.node: one.pages for one in self._parts["nodes"].of_mapping(key)},
        )

    def _words(self, key: int) -> Words | None:
        if "words" not in self._map.tables:
            return None
        rows = self._parts["words"].of_mapping(key)
        return Words(rows.column("page"), rows.column("word").view(np.uint64))

    def _slots(self, key: int) -> SlotRuns | None:
        if "slots" not in self._map.tables:
            return None
        rows = self._parts["slots"].of_mapping(key)
        first, pages, area, slot = (
            rows.column(name) for name in ("first_page", "pages", "area", "slot")
        )
        return SlotRuns(first, pages, area.astype(np.uint8), slot)


class ProcessMap(Report, schema="memlens.map/2"):
    """
    Where every page of one process is.

    Tables of runs, words and slots are there if they were asked for; ``each`` joins them.
    """

    mappings = table(MappingTotals)
    runs = table(MapRun)
    unknown = table(UnknownRun)
    nodes = table(NodePages)
    slots = table(MapSlots)
    words = table(MapWord)
    evidence = table(Evidence)
    process = section(Process)
    scope = section(Scope)

    @cached_property
    def each(self) -> MappingList:
        """Return every mapping with its runs, in the order of the table."""
        return MappingList(self)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and no page unknown."""
        return super().is_all_known and not self.sums.get("pages", {}).get("unknown_pages")

    def counts(self) -> NDArray[np.int64]:
        """Return the pages of the process in each class, ``(len(PageClass),)`` int64."""
        sums = [self.mappings.column(name).sum() for name in COUNTS]
        return np.array(sums, np.int64)

    def node_pages(self) -> dict[int, int]:
        """Return the present pages of the process by NUMA node."""
        total: dict[int, int] = {}
        for row in self.nodes:
            total[row.node] = total.get(row.node, 0) + row.pages
        return dict(sorted(total.items()))


def counts_of(mappings: Table[MappingTotals]) -> NDArray[np.int64]:
    """Return the pages of every mapping in each class, ``(n, len(PageClass))`` int64."""
    return np.stack([mappings.column(name) for name in COUNTS], axis=1)


@record("page.swap", help="Where a page is on swap.")
class SwapPlace:
    """Where a page is on swap."""

    area: int = column("area", help="number of the swap area")
    slot: int = column("slot", help="slot in it, in pages")
    path: str = column(
        "path", unit="name", help="the area's device or file, empty if that is not certain"
    )


@record("page.folio", help="The folio of the page cache that a page is in.")
class Folio:
    """The folio of the page cache that a page is in."""

    order: int = column("order", help="it is of 1 << order pages")
    is_uptodate: bool = column("up to date", help="whether it was ever filled")
    is_dirty: bool = column("dirty")
    is_writeback: bool = column("writeback")
    cgroup_id: int = column("cgroup ID", help="of the cgroup that is charged, 0 if none is")
    cgroup: str = column("cgroup", unit="name", help="its path, empty if that is not known")


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


@record("page.holders", help="A mapping of an object's page.")
class PageHolder:
    """A mapping of an object's page."""

    pid: int = column("PID", key=True, help="the process, as this /proc numbers it")
    name: str = column("name", help="its comm, raw")
    page: int = column("page", key=True, help="address at which it has the page, in pages")
    permissions: str = column("perm", help="of the mapping, rw-s")
    is_present: bool | None = column("mapped", help="whether a page is mapped there now")
    is_private_copy: bool = column(
        "private copy", help="whether what it has is its own, in RAM or on swap"
    )


@record("page.object", help="The object that backs a page.")
class PageObject:
    """The object that backs a page."""

    kind: str = column("kind", help="shmem, file, hugetlb, device or special")
    path: str = column("path", unit="name", help="as the mapping names it, raw")
    device: str = column("device", help="major:minor, hexadecimal")
    inode: int = column("inode")
    offset_bytes: int = column("offset", unit="bytes", help="of the page in the object")


@record("page.steps", help="One question to the kernel.")
class Step:
    """One question to the kernel."""

    asked: str = column("asked", help="which file or call was asked, and what")
    answer: str = column("answer", help="what it answered, raw as far as text can be")
    meaning: str = column("meaning", unit="name", help="what follows")


@record("page.verdict", help="What a page is.")
class PageVerdict:
    """What a page is, and what else the kernel says of it."""

    page: int = column("page", key=True, help="its address, in pages")
    start_page: int = column("start", help="first address of its mapping, in pages")
    stop_page: int = column("stop", help="address after the last of its mapping, in pages")
    permissions: str = column("perm", help="of the mapping")
    page_class: str = column("class", help="name of the class")
    meaning: str = column("meaning", help="of the class, one sentence")
    reason: str = column("reason", help="why it is unknown, empty if it is not")
    word: int | None = column(
        "word", help="the raw pagemap word, bit 63 is the sign; none beyond the page table"
    )
    pfn: int | None = column("PFN", help="page frame, none if there is none or it is hidden")
    attributes: str = column("also", help="what else is known of it, by name, with commas")
    kpage_flags: str = column("flags", help="of the frame in kpageflags, by name, with commas")
    missed_holders: int = column("missed", help="processes that could not be looked at")


class PageExplanation(Report, schema="memlens.page/2"):
    """
    One page of a process, explained.

    ``swap`` is where it is on swap, if that is known: a shared page's place needs the
    page-cache walk; ``folio`` the folio of the object's page cache that it is in; ``object``
    what backs it, None for private anonymous memory; ``holders`` who maps the same page of
    the object, this process too.
    """

    steps = table(Step)
    holders = table(PageHolder)
    process = section(Process)
    verdict = section(PageVerdict)
    object = section(PageObject)
    swap = section(SwapPlace)
    folio = section(Folio)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and the page is not unknown."""
        found = self.verdict
        is_known = found is not None and found.page_class != PageClass.UNKNOWN.label
        return super().is_all_known and is_known
