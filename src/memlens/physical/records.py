"""Records of ``memlens flags``, ``huge``, ``cgroup`` and ``files``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.folios import HugeTally
from memlens.record import column, record
from memlens.report import Report, section, table


@dataclass(slots=True)
class HugeFigures:
    """
    Pages of a mapping, a process, or several.

    :param tally: transparent huge pages that PTEs map.
    :param pmd_pages: pages that PMDs map, by kind, ``(2,)`` int64.
    :param anon_pages: anonymous pages of Rss, what shares are shares of.
    :param file_pages: the other pages of Rss.
    :param hugetlb_pages: base pages in hugetlb pages, by size in bytes.
    :param ksm_pages: mapped pages that KSM has merged.
    :param zero_pages: pages that map the zero page of one base page.
    :param huge_zero_pages: base pages that map the huge zero page; thpmaps, and so
        ``tally``, has those of mappings with memory among the file pages.
    :param moved_pages: pages that changed at every look, in no other number.
    :param node_pages: pages of transparent huge pages by NUMA node, however mapped; empty
        where there is only one node.
    """

    tally: HugeTally = field(default_factory=HugeTally)
    pmd_pages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    anon_pages: int = 0
    file_pages: int = 0
    hugetlb_pages: dict[int, int] = field(default_factory=dict)
    ksm_pages: int = 0
    zero_pages: int = 0
    huge_zero_pages: int = 0
    moved_pages: int = 0
    node_pages: dict[int, int] = field(default_factory=dict)

    def add(self, other: "HugeFigures") -> None:
        """Add the figures of another."""
        self.tally.merge(other.tally)
        self.pmd_pages = self.pmd_pages + other.pmd_pages
        for size, pages in other.hugetlb_pages.items():
            self.hugetlb_pages[size] = self.hugetlb_pages.get(size, 0) + pages
        for node, pages in other.node_pages.items():
            self.node_pages[node] = self.node_pages.get(node, 0) + pages
        self.anon_pages += other.anon_pages
        self.file_pages += other.file_pages
        self.ksm_pages += other.ksm_pages
        self.zero_pages += other.zero_pages
        self.huge_zero_pages += other.huge_zero_pages
        self.moved_pages += other.moved_pages


@dataclass(frozen=True, slots=True)
class HugeMapping:
    """One mapping, as a line of /proc/PID/maps gives it, and its figures."""

    start: int
    stop: int
    permissions: str
    path: str
    figures: HugeFigures


@dataclass(frozen=True, slots=True)
class HugeProcess:
    """
    One process.

    :param ksm_profit_bytes: what KSM saves less what it costs, as the kernel reckons it;
        None if it does not say.
    """

    pid: int
    name: str
    mappings: Sequence[HugeMapping]
    figures: HugeFigures
    ksm_profit_bytes: int | None


@dataclass(frozen=True, slots=True)
class HugeResult:
    """
    All processes that were asked about.

    :param figures: their sum: a page that two of them map counts twice.
    :param block_orders: the ``--cont`` sizes, as powers of two of pages.
    :param ksm_frames: distinct frames behind ``ksm_pages``.
    :param missed: processes that could not be read, and why.
    :param is_hidden: whether frames or their flags are hidden from this reader: what PTEs
        map, blocks and merged pages are not known then, and 0 in ``figures``.
    """

    page_size_bytes: int
    pmd_order: int
    processes: tuple[HugeProcess, ...]
    figures: HugeFigures
    block_orders: tuple[int, ...]
    ksm_frames: int
    missed: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    is_hidden: bool = False


# Codes of kinds, from 1; 0 is no page of the cgroup.
KINDS = ("anonymous", "shmem", "file", "hugetlb", "kernel")

# What becomes of a page of a kind: mapped by any process, only cached, kept twice, or given
# back as part of a huge page that is not split yet.
STATES = ("present", "cached", "swap_cached", "unmapped")


@record("cgroup.kinds", help="Charged pages of one kind and state.")
class KindPages:
    """
    Charged pages of one kind and state.

    ``present``: a page table maps it; ``cached``: in the page cache and mapped by none;
    ``swap_cached``: it has a slot on swap, too; ``unmapped``: private memory that nobody maps,
    as the rest of a huge page of which a part was given back.
    """

    kind: str = column("kind", key=True, help="anonymous, shmem, file, hugetlb or kernel")
    state: str = column("state", key=True, help="present, cached, swap_cached or unmapped")
    pages: int = column("size", unit="pages", metric="gauge", help="frames in RAM")
    dirty_pages: int = column(
        "dirty", unit="pages", rank=1, help="of these, newer than what is on disk"
    )


@record("cgroup.files", help="Charged pages of one file.")
class FileCharge:
    """Charged pages of one file; each page is in one row only, of a file or of a process."""

    pages: int = column("size", unit="pages", metric="gauge", help="frames in RAM")
    mapped_pages: int = column("mapped", unit="pages", help="of these, mapped by a process")
    path: str = column("file", unit="name", key=True, help="raw")


@record("cgroup.processes", help="Charged private pages that a process maps.")
class ProcessCharge:
    """Charged pages of no file that a process maps, the first of several."""

    pages: int = column("size", unit="pages", metric="gauge", help="in no row before")
    mapped_pages: int = column(
        "mapped", unit="pages", help="all that it maps of what is charged"
    )
    pid: int = column("PID", key=True)
    name: str = column("process (private memory)", unit="name", help="comm, raw")
    cgroup: str = column("cgroup", rank=1, help="of the process")


@record("cgroup.elsewhere", help="Pages charged to one cgroup, mapped by processes of another.")
class ElsewherePages:
    """Pages that are charged in one cgroup and mapped by processes of another."""

    pages: int = column("size", unit="pages", metric="gauge")
    cgroup: str = column("cgroup", unit="name", key=True, help="the other one")


@record("cgroup.stat", help="A figure of memory.stat beside what was found.")
class StatLine:
    """A figure of memory.stat beside what was found."""

    name: str = column("memory.stat", key=True)
    stat_pages: int = column("says", unit="pages")
    found_pages: int = column("found", unit="pages")
    difference_pages: int = column(
        "difference", unit="pages", help="what memory.stat says more than was found"
    )


@record("cgroup.total", help="A cgroup with those below it.")
class CgroupTotal:
    """A cgroup with those below it."""

    path: str = column("cgroup", unit="name", key=True, help="as /proc/PID/cgroup has it")
    version: int = column("version", help="of the hierarchy, 1 or 2")
    cgroups: int = column("cgroups", help="how many these are")
    charged_pages: int = column("charged", unit="pages", metric="gauge", help="frames in RAM")
    unowned_pages: int = column(
        "unowned", unit="pages", help="no process maps them, and no file was found for them"
    )
    only_elsewhere_pages: int = column(
        "elsewhere", unit="pages", help="mapped by processes of other cgroups alone"
    )
    moved_pages: int = column(
        "moved", unit="pages", help="changed hands while they were read; in no other number"
    )


class CgroupPages(Report, schema="memlens.cgroup/2"):
    """What a cgroup, with those below it, is charged."""

    files = table(FileCharge)
    processes = table(ProcessCharge)
    kinds = table(KindPages)
    used_elsewhere = table(ElsewherePages)
    charged_elsewhere = table(ElsewherePages)
    stat = table(StatLine)
    total = section(CgroupTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and nothing changed hands."""
        return super().is_all_known and not (self.total and self.total.moved_pages)


@record("cgroup.cgroups", help="A cgroup of the overview, without those below it.")
class CgroupRow:
    """One cgroup of the overview, without those below it."""

    charged_pages: int = column("charged", unit="pages", metric="gauge", help="frames in RAM")
    anonymous_pages: int = column("anon", unit="pages", metric="gauge", rank=1)
    shmem_pages: int = column("shmem", unit="pages", metric="gauge", rank=1)
    file_pages: int = column("file", unit="pages", metric="gauge", rank=1)
    hugetlb_pages: int = column("hugetlb", unit="pages", metric="gauge", rank=1)
    kernel_pages: int = column("kernel", unit="pages", metric="gauge", rank=1)
    inode: int = column("inode", key=True, rank=2, help="what the kernel charges a page to")
    path: str | None = column(
        "cgroup", unit="name", help="not known if it is in no directory that this reader sees"
    )


class CgroupList(Report, schema="memlens.cgroups/2"):
    """Every cgroup that is charged for a frame in RAM, most pages first."""

    cgroups = table(CgroupRow)


# Figures that are pages, in the order of the JSON.
PAGE_FIGURES = (
    "cached_pages",
    "dirty_pages",
    "writeback_pages",
    "evicted_pages",
    "recently_evicted_pages",
    "mapped_pages",
)


class FileCache(NamedTuple):
    """
    One file; None is not known, and ``reason`` says why.

    :param path: as it was reached, raw.
    :param kind: ``file``, ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``btrfs``, or ""
        if it could not be opened.
    :param cached_pages: in the page cache.
    :param dirty_pages: of these, newer than what is on disk.
    :param writeback_pages: of these, being written.
    :param evicted_pages: no more in the cache, but remembered; of shmem: on swap.
    :param recently_evicted_pages: of these, so lately that memory seems short.
    :param mapped_pages: of the cached ones, those in the page table of a process that
        could be looked at, each once.
    """

    path: str
    kind: str
    size_bytes: int | None
    cached_pages: int | None
    dirty_pages: int | None
    writeback_pages: int | None
    evicted_pages: int | None
    recently_evicted_pages: int | None
    mapped_pages: int | None
    reason: str = ""


@dataclass(slots=True)
class FileTotals:
    """
    Sums over files.

    :param files: looked at, each once however many names it has.
    :param other_names: names of files that were counted already.
    :param unknown: files of which nothing is known.
    :param pages: pages of all files.
    :param sums: by the names of ``PAGE_FIGURES``.
    :param shmem_evicted_pages: of the evicted ones, those of shared memory: on swap.
    """

    files: int = 0
    other_names: int = 0
    unknown: int = 0
    pages: int = 0
    size_bytes: int = 0
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PAGE_FIGURES, 0))
    shmem_evicted_pages: int = 0

    def add(self, row: FileCache, page_size_bytes: int) -> None:
        """Count a file."""
        self.files += 1
        if row.cached_pages is None:
            self.unknown += 1
        if row.size_bytes:
            self.size_bytes += row.size_bytes
            self.pages += -(-row.size_bytes // page_size_bytes)
        if row.cached_pages or row.evicted_pages:
            sums = self.sums
            # Written out, for a tree may hold millions of files.
            if row.cached_pages:
                sums["cached_pages"] += row.cached_pages
            if row.dirty_pages:
                sums["dirty_pages"] += row.dirty_pages
            if row.writeback_pages:
                sums["writeback_pages"] += row.writeback_pages
            if row.evicted_pages:
                sums["evicted_pages"] += row.evicted_pages
            if row.recently_evicted_pages:
                sums["recently_evicted_pages"] += row.recently_evicted_pages
            if row.mapped_pages:
                sums["mapped_pages"] += row.mapped_pages
        if row.kind == "shmem" and row.evicted_pages:
            self.shmem_evicted_pages += row.evicted_pages


class StripCell(NamedTuple):
    """A part of a file: its pages, those cached, those evicted (None: not known)."""

    pages: int
    cached: int
    evicted: int | None


@dataclass(frozen=True, slots=True)
class FlagCounts:
    """
    Pages by what kpageflags, and for processes pagemap, say of them.

    :param page_size_bytes: size of a page.
    :param words: joined words as ``pages.flags.join_words`` makes them, ``(n,)`` uint64.
    :param pages: how many pages have each word, ``(n,)`` int64.
    :param frames: distinct page frames among them, None if they were not told apart.
    :param swapped_pages: pages in swap: they have no frame, and no flags but ``swap``.
    :param marker_pages: entries that look like swap and are none: guards, poison, pages
        in migration.
    :param moved_pages: pages that changed at every look; they are in no other number.
    :param hidden_pages: pages whose frame this reader may not see, or whose entry may be
        swap or a marker for all that it may see.
    :param node_pages: pages of each NUMA node, empty where there is only one.
    :param is_complete: False if it was stopped early.
    :param notes: what limits the numbers, one line each.
    """

    page_size_bytes: int
    words: NDArray[np.uint64]
    pages: NDArray[np.int64]
    frames: int | None = None
    swapped_pages: int = 0
    marker_pages: int = 0
    moved_pages: int = 0
    hidden_pages: int = 0
    node_pages: dict[int, int] = field(default_factory=dict)
    is_complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def total_pages(self) -> int:
        """Return the sum over all words."""
        return int(self.pages.sum())


class PageRange(NamedTuple):
    """
    Consecutive pages that are alike.

    :param place: address or offset in pages, -1 for pages that are listed by frame.
    :param pfn: the first frame; of swapped pages the first slot; None if it is hidden.
    :param joined: joined word, see ``pages.flags.join_words``.
    :param map_count: page tables that map each, None if it is not known.
    :param cgroup: inode of the cgroup that is charged, 0 if none is, None if not known.
    """

    place: int
    pages: int
    pfn: int | None
    joined: int
    map_count: int | None
    cgroup: int | None
