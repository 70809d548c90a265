"""The results of a look at huge pages: dataclasses; nothing here reads anything."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.pages.folios import HugeTally


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
