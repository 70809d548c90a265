"""Pages of a mapping, a process, or several, as huge pages and their kin are counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.folios import FITS, KINDS, HugeTally
from memlens.scan.machine import Machine

# Below, there is no transparent huge page of anonymous memory, and thpmaps shows none.
_LEAST_ORDER = 2


class Counter(NamedTuple):
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
        self, machine: Machine, pmd_order: int, *, is_hidden: bool
    ) -> Iterator[Counter]:
        """
        Yield the counters of the kernel's thpmaps, then hugetlb pages and NUMA nodes.

        :param is_hidden: whether what PTEs map is not known.
        """
        page_kib = machine.page_size_bytes >> 10
        for kind, name in enumerate(KINDS):
            pmd = int(self.pmd_pages[kind])
            yield Counter(name, f"{name}-thp-pmd-aligned-{page_kib << pmd_order}kB", pmd)
            if not is_hidden:
                yield from self._of_ptes(kind, name, page_kib, pmd_order)
        for size, pages in sorted(self.hugetlb_pages.items()):
            yield Counter("hugetlb", f"hugetlb-{size >> 10}kB", pages)
        for node, pages in sorted(self.node_pages.items()):
            yield Counter("node", f"thp-node-{node}", pages)

    def _of_ptes(
        self, kind: int, name: str, page_kib: int, pmd_order: int
    ) -> Iterator[Counter]:
        for fit, label in enumerate(FITS):
            for order in range(1, pmd_order + 1):
                pages = int(self.tally.whole[kind, fit, order])
                if order >= _LEAST_ORDER or pages:
                    yield Counter(name, f"{name}-thp-pte-{label}-{page_kib << order}kB", pages)
        yield Counter(name, f"{name}-thp-pte-partial", int(self.tally.partial[kind]))
        for order, blocks in self.tally.blocks.items():
            size_kib = page_kib << order
            pmd = int(self.pmd_pages[kind])
            yield Counter(name, f"{name}-cont-pmd-aligned-{size_kib}kB", pmd)
            yield Counter(name, f"{name}-cont-pte-aligned-{size_kib}kB", int(blocks[kind]))
