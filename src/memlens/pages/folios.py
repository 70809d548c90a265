"""
How transparent huge pages are mapped: which size, aligned or not, whole or in part.

A folio is what the kernel handles as one: ``1 << order`` pages, consecutive in physical
memory.  The rules are those of the kernel's thpmaps, for its counters by PTE.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.flags import KPF_ANON, KPF_HEAD, KPF_THP

KINDS = ("anon", "file")
ANON, FILE = range(2)
FITS = ("aligned", "unaligned")
ALIGNED, UNALIGNED = range(2)
ORDERS = 32

# Below, there is no transparent huge page of anonymous memory, and thpmaps shows none.
_LEAST_ORDER = 2
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HugePages:
    """
    Present pages of transparent huge pages, in the order of their addresses.

    :param vfn: address divided by the page size, ``(n,)`` int64.
    :param pfn: page frame, ``(n,)`` int64.
    :param flags: words of kpageflags, ``(n,)`` uint64.
    """

    vfn: _Ints
    pfn: _Ints
    flags: NDArray[np.uint64]

    @property
    def kind(self) -> _Ints:
        """Return ``ANON`` or ``FILE`` for each page, ``(n,)`` int64."""
        return np.where((self.flags & KPF_ANON) != 0, ANON, FILE)

    @property
    def is_head(self) -> NDArray[np.bool_]:
        """Return which pages are the first of their folio, ``(n,)`` bool."""
        is_head: NDArray[np.bool_] = (self.flags & KPF_HEAD) != 0
        return is_head

    def ranges(self) -> tuple[_Ints, _Ints]:
        """Return where ranges consecutive in address and frame start and stop."""
        if not len(self.vfn):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        breaks = np.flatnonzero((np.diff(self.vfn) != 1) | (np.diff(self.pfn) != 1)) + 1
        return np.append(0, breaks), np.append(breaks, len(self.vfn))

    def slice(self, begin: int, end: int) -> "HugePages":
        """Return the pages ``[begin, end)``."""
        return HugePages(self.vfn[begin:end], self.pfn[begin:end], self.flags[begin:end])


def select_huge(vfn: _Ints, pfn: _Ints, flags: NDArray[np.uint64]) -> HugePages:
    """Return the pages that are of transparent huge pages."""
    is_huge = (flags & KPF_THP) != 0
    return HugePages(vfn[is_huge], pfn[is_huge], flags[is_huge])


def join_huge(one: HugePages, other: HugePages) -> HugePages:
    """Return the pages of both; ``other`` follows."""
    if not len(one.vfn):
        return other
    return HugePages(
        np.concatenate((one.vfn, other.vfn)),
        np.concatenate((one.pfn, other.pfn)),
        np.concatenate((one.flags, other.flags)),
    )


def find_cut(huge: HugePages, stop_vfn: int, block_pages: int) -> int:
    """
    Return from where on pages must wait for those that follow them.

    :param stop_vfn: the page after the last that was read.
    :param block_pages: size of the largest block to be counted, a power of two.

    Only a range that reaches the end can go on.  It is cut before its last folio, or, if
    it is inside one folio, where no aligned block is cut.
    """
    starts, stops = huge.ranges()
    if not len(starts) or int(huge.vfn[-1]) + 1 != stop_vfn:
        return len(huge.vfn)
    start, stop = int(starts[-1]), int(stops[-1])
    heads = np.flatnonzero(huge.is_head[start:stop])
    if len(heads):
        return start + int(heads[-1])
    beyond = int(huge.vfn[-1]) % block_pages + 1
    return max(start, stop - beyond)


@dataclass(slots=True)
class HugeTally:
    """
    Pages of transparent huge pages, by how they are mapped.

    :param whole: pages of folios mapped whole, by kind, fit and order, ``(2, 2, 32)``.
    :param partial: pages of folios mapped in part, by kind, ``(2,)``.
    :param blocks: pages in contiguous blocks of each order asked for, by kind.
    """

    whole: _Ints = field(default_factory=lambda: np.zeros((2, 2, ORDERS), np.int64))
    partial: _Ints = field(default_factory=lambda: np.zeros(2, np.int64))
    blocks: dict[int, _Ints] = field(default_factory=dict)

    def add(self, huge: HugePages, ends_in_tail: NDArray[np.bool_]) -> None:
        """
        Count pages.

        :param ends_in_tail: for each of ``huge.ranges()``, whether the frame after it
            belongs to the range's last folio.
        """
        if not len(huge.vfn):
            return
        self._add_folios(huge, ends_in_tail)
        for order in self.blocks:
            self._add_blocks(huge, order)

    def merge(self, other: "HugeTally") -> None:
        """Add what another has counted."""
        self.whole += other.whole
        self.partial += other.partial
        for order, pages in other.blocks.items():
            self.blocks[order] = self.blocks.get(order, np.zeros(2, np.int64)) + pages

    def _add_folios(self, huge: HugePages, ends_in_tail: NDArray[np.bool_]) -> None:
        starts, stops = huge.ranges()
        kind = huge.kind
        heads = np.flatnonzero(huge.is_head)
        low, high = np.searchsorted(heads, starts), np.searchsorted(heads, stops)
        has_head = high > low
        first_heads = np.append(heads, 0)[low]
        # Before the first head are the tails of a folio whose head is not mapped here.
        front = np.where(has_head, first_heads - starts, stops - starts)
        np.add.at(self.partial, kind[starts], front)
        is_cut = has_head & ends_in_tail
        cut_heads = heads[high[is_cut] - 1]
        np.add.at(self.partial, kind[cut_heads], stops[is_cut] - cut_heads)
        is_whole = np.ones(len(heads), bool)
        is_whole[high[is_cut] - 1] = False
        # A folio ends at the next head, or with its range.
        ends = np.append(heads[1:], 0)
        ends[high[has_head] - 1] = stops[has_head]
        self._add_whole(huge, heads[is_whole], (ends - heads)[is_whole])

    def _add_whole(self, huge: HugePages, heads: _Ints, lengths: _Ints) -> None:
        orders = np.frexp(lengths)[1] - 1
        pages = np.left_shift(1, orders)
        fit = np.where(huge.vfn[heads] % pages == 0, ALIGNED, UNALIGNED)
        np.add.at(self.whole, (huge.kind[heads], fit, orders), pages)

    def _add_blocks(self, huge: HugePages, order: int) -> None:
        """Count aligned blocks inside one folio; they may be a part of it."""
        pages = 1 << order
        starts, stops = huge.ranges()
        lengths = stops - starts
        is_level = np.repeat((huge.vfn[starts] - huge.pfn[starts]) % pages == 0, lengths)
        fits = np.arange(len(huge.vfn)) + pages <= np.repeat(stops, lengths)
        begins = np.flatnonzero((huge.vfn % pages == 0) & is_level & fits)
        heads_before = np.append(0, np.cumsum(huge.is_head))
        is_one = heads_before[begins + pages] == heads_before[begins + 1]
        counted = np.bincount(huge.kind[begins[is_one]], minlength=2) * pages
        self.blocks[order] = self.blocks[order] + counted


class NamedPages(NamedTuple):
    """What it is a share of, its name, and pages."""

    kind: str
    name: str
    pages: int


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
    hugetlb_pages: Counter[int] = field(default_factory=Counter)
    ksm_pages: int = 0
    zero_pages: int = 0
    huge_zero_pages: int = 0
    moved_pages: int = 0
    node_pages: Counter[int] = field(default_factory=Counter)

    def add(self, other: "HugeFigures") -> None:
        """Add the figures of another."""
        self.tally.merge(other.tally)
        self.pmd_pages = self.pmd_pages + other.pmd_pages
        self.hugetlb_pages.update(other.hugetlb_pages)
        self.node_pages.update(other.node_pages)
        self.anon_pages += other.anon_pages
        self.file_pages += other.file_pages
        self.ksm_pages += other.ksm_pages
        self.zero_pages += other.zero_pages
        self.huge_zero_pages += other.huge_zero_pages
        self.moved_pages += other.moved_pages

    @property
    def thp_pages(self) -> int:
        """Return the pages in transparent huge pages, the huge zero page left out."""
        tally = self.tally
        every = self.pmd_pages.sum() + tally.whole.sum() + tally.partial.sum()
        return int(every) - self.huge_zero_pages

    @property
    def has_any(self) -> bool:
        """Return whether there is a huge, merged or zero page."""
        return bool(
            self.hugetlb_pages
            or self.ksm_pages
            or self.zero_pages
            or self.huge_zero_pages
            or self.pmd_pages.any()
            or self.tally.whole.any()
            or self.tally.partial.any()
        )

    def counters(
        self, page_kib: int, pmd_order: int, *, is_hidden: bool
    ) -> Iterator[NamedPages]:
        """
        Yield the counters of the kernel's thpmaps, then hugetlb pages and NUMA nodes.

        :param page_kib: size of a page in KiB.
        :param is_hidden: whether what PTEs map is not known.
        """
        for kind, name in enumerate(KINDS):
            pmd = int(self.pmd_pages[kind])
            yield NamedPages(name, f"{name}-thp-pmd-aligned-{page_kib << pmd_order}kB", pmd)
            if not is_hidden:
                yield from self._of_ptes(kind, name, page_kib, pmd_order)
        for size, pages in sorted(self.hugetlb_pages.items()):
            yield NamedPages("hugetlb", f"hugetlb-{size >> 10}kB", pages)
        for node, pages in sorted(self.node_pages.items()):
            yield NamedPages("node", f"thp-node-{node}", pages)

    def _of_ptes(
        self, kind: int, name: str, page_kib: int, pmd_order: int
    ) -> Iterator[NamedPages]:
        for fit, label in enumerate(FITS):
            for order in range(1, pmd_order + 1):
                pages = int(self.tally.whole[kind, fit, order])
                if order >= _LEAST_ORDER or pages:
                    yield NamedPages(
                        name, f"{name}-thp-pte-{label}-{page_kib << order}kB", pages
                    )
        yield NamedPages(name, f"{name}-thp-pte-partial", int(self.tally.partial[kind]))
        for order, blocks in self.tally.blocks.items():
            size_kib = page_kib << order
            pmd = int(self.pmd_pages[kind])
            yield NamedPages(name, f"{name}-cont-pmd-aligned-{size_kib}kB", pmd)
            yield NamedPages(name, f"{name}-cont-pte-aligned-{size_kib}kB", int(blocks[kind]))
