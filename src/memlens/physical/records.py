"""Records of ``memlens flags``, ``huge``, ``cgroup`` and ``files``."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.folios import HugeTally
from memlens.report import Cost, Missed


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
    mappings: tuple[HugeMapping, ...]
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


@dataclass(frozen=True, slots=True)
class KindPages:
    """
    Charged pages of one kind and state.

    :param kind: ``anonymous``, ``shmem``, ``file``, ``hugetlb`` or ``kernel``.
    :param state: ``present``: a page table maps it; ``cached``: in the page cache and
        mapped by none; ``swap_cached``: it has a slot on swap, too; ``unmapped``: private
        memory that nobody maps, as the rest of a huge page of which a part was given back.
    :param dirty_pages: of these, newer than what is on disk.
    """

    kind: str
    state: str
    pages: int
    dirty_pages: int


@dataclass(frozen=True, slots=True)
class OwnerPages:
    """
    Charged pages that belong to a file, or that a process maps.

    :param name: path of the file, or the process's comm; raw.
    :param pid: of the process, 0 for a file.
    :param cgroup: of the process, "" for a file.
    :param pages: each page in one row only: of a file, or else of the first process.
    :param mapped_pages: all that the process maps of what is charged.
    """

    name: str
    pid: int
    cgroup: str
    pages: int
    mapped_pages: int


@dataclass(frozen=True, slots=True)
class ElsewherePages:
    """Pages that are charged in one cgroup and mapped by processes of another."""

    cgroup: str
    pages: int


@dataclass(frozen=True, slots=True)
class StatLine:
    """
    A figure of memory.stat beside what was found.

    :param difference_pages: what memory.stat says more than was found.
    """

    name: str
    stat_pages: int
    found_pages: int

    @property
    def difference_pages(self) -> int:
        """Return what the kernel counts and was not found."""
        return self.stat_pages - self.found_pages


@dataclass(frozen=True, slots=True)
class CgroupPages:
    """
    What a cgroup, with those below it, is charged.

    :param path: as /proc/PID/cgroup has it.
    :param version: of the hierarchy, 1 or 2.
    :param cgroups: how many that are.
    :param charged_pages: frames in RAM.
    :param kinds: their sums by kind and state.
    :param files: by file, those that a process maps; most pages first.
    :param processes: by process, private pages.
    :param unowned_pages: frames that no process maps.
    :param used_elsewhere: of the charged ones, mapped by processes of other cgroups.
    :param only_elsewhere_pages: of the charged ones, mapped by such processes alone.
    :param charged_elsewhere: mapped by processes of this cgroup, charged to others.
    :param stat: memory.stat beside these.
    :param moved_pages: changed hands while they were read; in no other number.
    """

    path: str
    version: int
    page_size_bytes: int
    cgroups: int
    charged_pages: int
    kinds: tuple[KindPages, ...]
    files: tuple[OwnerPages, ...]
    processes: tuple[OwnerPages, ...]
    unowned_pages: int
    used_elsewhere: tuple[ElsewherePages, ...]
    only_elsewhere_pages: int
    charged_elsewhere: tuple[ElsewherePages, ...]
    stat: tuple[StatLine, ...]
    moved_pages: int
    is_complete: bool
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class CgroupRow:
    """
    One cgroup of the overview, without those below it.

    :param path: None if it is in no directory that this reader sees.
    :param pages: by ``KINDS``.
    """

    path: str | None
    inode: int
    pages: tuple[int, ...]

    @property
    def charged_pages(self) -> int:
        """Return the sum over all kinds."""
        return sum(self.pages)


@dataclass(frozen=True, slots=True)
class CgroupList:
    """Every cgroup that is charged for a frame in RAM, most pages first."""

    version: int
    page_size_bytes: int
    rows: tuple[CgroupRow, ...]
    is_complete: bool
    cost: Cost


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
