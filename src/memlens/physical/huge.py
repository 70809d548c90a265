"""
Huge pages of one process: transparent ones of every size, hugetlb, KSM and zero pages.

What the kernel's thpmaps counts is counted by its rules, and smaps gives the pages that
PMDs map.  These are whole by definition, so that their flags are not asked for.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.maps import KERNEL_HALF, Mapping
from memlens.kernel.pagemap import PAGE_IS_HUGE, PAGE_IS_PFNZERO
from memlens.kernel.process import ProcessDir
from memlens.kernel.smaps import MappingFigures, SmapsTable, join_smaps_pieces
from memlens.kernel.zoneinfo import read_node_ranges
from memlens.pages.arrays import distinct, join_ranges
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.flags import KPF_KSM, KPF_TAIL, KPF_THP, KPF_ZERO_PAGE
from memlens.pages.folios import (
    ALIGNED,
    ANON,
    FILE,
    HugeFigures,
    HugePages,
    HugeTally,
    find_cut,
    join_huge,
    select_huge,
)
from memlens.physical.runflags import ReadBuffer, RunFlags
from memlens.scan.jobs import JOB_PAGES, TRIES, count_threads, cut_windows, share
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable, Window

_PMD_FIGURES = {ANON: ("AnonHugePages",), FILE: ("ShmemPmdMapped", "FilePmdMapped")}
_HUGETLB_FIGURES = ("Private_Hugetlb", "Shared_Hugetlb")
_FIGURES = (
    *("KernelPageSize", "Rss", "Anonymous"),
    *(*_PMD_FIGURES[ANON], *_PMD_FIGURES[FILE], *_HUGETLB_FIGURES),
)

# Of larger mappings all is read at once, not first whether there is anything special.
_LARGE_PAGES = 1 << 13

_SPECIAL = KPF_THP | KPF_KSM | KPF_ZERO_PAGE


class SpecialPages(NamedTuple):
    """
    Pages of a range that are part of a transparent huge page, merged, or zero.

    :param stop: page after the range.
    :param vfn: address divided by the page size, ``(n,)`` int64, in order.
    :param pfn: page frame, ``(n,)`` int64.
    :param flags: words of kpageflags, ``(n,)`` uint64.
    :param moved_pages: pages that changed at every look, and are left out.
    """

    stop: int
    vfn: NDArray[np.int64]
    pfn: NDArray[np.int64]
    flags: NDArray[np.uint64]
    moved_pages: int


class SpecialReader:
    """
    Reads ranges of one process with several threads.

    :param table: its page table.
    :param flags: kpageflags, open.
    """

    def __init__(self, table: PageTable, flags: KpageFile) -> None:
        self.table = table
        self.flags = flags
        self._buffers = [ReadBuffer() for _ in range(count_threads())]

    def iter_special(self, window: Window) -> Iterator[SpecialPages]:
        """
        Yield the special pages of a range, piece by piece.

        :raises EOFError: if the process is gone.
        """
        first, stop = window
        pieces = [(page, min(page + JOB_PAGES, stop)) for page in range(first, stop, JOB_PAGES)]
        step = len(self._buffers)
        for number in range(0, len(pieces), step):
            # Each with a buffer of its own.
            batch = list(zip(pieces[number : number + step], self._buffers, strict=False))
            yield from share(batch, lambda item: self._read(*item))

    def find_special(
        self, first: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """
        Return which of some ranges have special pages, or pages that changed meanwhile.

        :param first: first page of each range, in order, ``(n,)`` int64.
        :param stop: page after the last.
        :raises EOFError: if the process is gone.
        """
        found = [np.empty(0, np.int64)]
        for windows in cut_windows(zip(first.tolist(), stop.tolist(), strict=True)):
            words = self.table.read(windows)
            flags = RunFlags.read(words, self.flags, self._buffers[0])
            is_found = self.table.read(windows) != words
            if np.bitwise_or.reduce(flags.words) & _SPECIAL:
                is_found |= (flags.by_page(len(words)) & _SPECIAL) != 0
            if is_found.any():
                vfn = np.concatenate([np.arange(*window) for window in windows])[is_found]
                place = np.searchsorted(first, vfn, side="right") - 1
                found.append(place[(place >= 0) & (vfn < stop[place])])
        return distinct(np.concatenate(found))

    def _read(self, window: Window, buffer: ReadBuffer) -> SpecialPages:
        """Return the special pages of a range, after a look back at the page table."""
        moved = 0
        words = self.table.read([window])
        for _ in range(TRIES):
            found = RunFlags.read(words, self.flags, buffer)
            if self.table.are_same([window], words):
                break
            again = self.table.read([window])
            is_moved = again != words
            words, before = again, words
        else:
            moved = int(np.count_nonzero(is_moved))
            words = np.where(is_moved, np.uint64(0), before)
        if not np.bitwise_or.reduce(found.words) & _SPECIAL:
            empty = np.empty(0, np.int64)
            return SpecialPages(window[1], empty, empty, np.empty(0, np.uint64), moved)
        flags = found.by_page(len(words))
        places = np.flatnonzero(((flags & _SPECIAL) != 0) & (words >= PM_PRESENT))
        pfns = (words[places] & PM_PFN).view(np.int64)
        return SpecialPages(window[1], places + window[0], pfns, flags[places], moved)


class ReadProcess(NamedTuple):
    """
    One process.

    :param mappings: those that have huge, merged or zero pages.
    :param ksm_profit_bytes: what KSM saves less what it costs, as the kernel reckons it;
        None if it does not say.
    """

    pid: int
    name: str
    figures: HugeFigures
    mappings: list[tuple[Mapping, HugeFigures]]
    ksm_profit_bytes: int | None


class HugeReader:
    """
    Reads one process after the other.

    :param block_orders: sizes of contiguous blocks to count.
    :param pmd_order: the size that one PMD maps.

    ``is_stopped`` tells whether the scan was over before all of a process was read,
    ``refusal`` why ``flags`` are hidden.
    """

    def __init__(self, machine: Machine, block_orders: tuple[int, ...], pmd_order: int) -> None:
        self.machine = machine
        self.block_orders = block_orders
        self.pmd_order = pmd_order
        self.page_size_bytes = machine.page_size_bytes
        self.flags, self.refusal = _open_flags(machine)
        self.use_scan = machine.may("pagemap_scan")
        self.node_ranges = read_node_ranges(machine)
        self.is_stopped = False
        self._ksm: list[NDArray[np.int64]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.flags is not None:
            self.flags.close()

    def new_figures(self) -> HugeFigures:
        """Return figures that are all 0."""
        blocks = {order: np.zeros(2, np.int64) for order in self.block_orders}
        return HugeFigures(HugeTally(blocks=blocks))

    def count_ksm_frames(self) -> int:
        """Return how many distinct frames of KSM were met."""
        return len(np.unique(np.concatenate(self._ksm))) if self._ksm else 0

    def read(self, pid: int) -> ReadProcess:
        """
        Return one process; what was read of it, if the scan is over meanwhile.

        :raises MemlensError: as the reads give it.
        """
        with ProcessDir(pid, self.machine) as directory:
            name, profit = directory.stat.name, _read_ksm_profit(directory)
            try:
                with PageTable.open(directory, self.machine) as table:
                    figures, mappings = self._read_mappings(table, directory)
            except EOFError:
                raise directory.gone_error() from None
        return ReadProcess(pid, name, figures, mappings, profit)

    def _read_mappings(
        self, table: PageTable, directory: ProcessDir
    ) -> tuple[HugeFigures, list[tuple[Mapping, HugeFigures]]]:
        """Return the sum, and mappings with anything special: others are not read alone."""
        special = None if self.flags is None else SpecialReader(table, self.flags)
        smaps = join_smaps_pieces(
            directory.iter_read("smaps"), _FIGURES, f"{directory.path}/smaps"
        )
        maps, size = smaps.maps, smaps.size_bytes
        page = self.page_size_bytes
        is_open = np.array([mode[:3] != "---" for mode in maps.modes], bool)[maps.mode]
        is_user = maps.start < np.uint64(KERNEL_HALF)
        is_counted = (size["Rss"] > 0) & is_open & is_user
        anon = np.where(is_counted, size["Anonymous"] // page, 0)
        rss = np.where(is_counted, size["Rss"] // page, 0)
        is_special = self._find_special(table, special, smaps, is_counted) & is_user
        total, mappings = self.new_figures(), []
        total.anon_pages = int(anon[~is_special].sum())
        total.file_pages = int((rss - anon)[~is_special].sum())
        for row in np.flatnonzero(is_special).tolist():
            if self.machine.is_over():
                self.is_stopped = True
                break
            figures = {name: int(column[row]) for name, column in size.items()}
            where = maps[row]
            found = self._read_mapping(table, special, MappingFigures(where, figures))
            total.add(found)
            if found.has_any:
                mappings.append((where, found))
        return total, mappings

    def _find_special(
        self,
        table: PageTable,
        special: SpecialReader | None,
        smaps: SmapsTable,
        is_counted: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return which mappings have, or may have, more than anonymous and file pages."""
        page = np.uint64(self.page_size_bytes)
        first = (smaps.maps.start // page).astype(np.int64)
        stop = (smaps.maps.stop // page).astype(np.int64)
        is_special = np.zeros(len(first), bool)
        for name in (*_HUGETLB_FIGURES, *_PMD_FIGURES[ANON], *_PMD_FIGURES[FILE]):
            is_special |= smaps.size_bytes[name] > 0
        is_user = smaps.maps.start < np.uint64(KERNEL_HALF)
        if self.use_scan:
            # Zero pages are in no Rss.
            ranges = zip(first[is_user].tolist(), stop[is_user].tolist(), strict=True)
            for low, high in join_ranges(ranges):
                for regions in table.regions([(low, high)], PAGE_IS_PFNZERO, 0):
                    begin, end = regions[:, :2].T
                    steps = np.zeros(len(first) + 1, np.int64)
                    np.add.at(steps, np.searchsorted(stop, begin, side="right"), 1)
                    np.add.at(steps, np.searchsorted(first, end), -1)
                    is_special |= np.cumsum(steps[:-1]) > 0
        if special is None:
            return is_special
        # To look twice at a large one would cost more than its figures.
        is_large = stop - first > _LARGE_PAGES
        asked = np.flatnonzero(is_counted & ~is_special & ~is_large)
        found = special.find_special(first[asked], stop[asked])
        is_special[asked[found]] = True
        return is_special | (is_counted & is_large)

    def _read_mapping(
        self, table: PageTable, special: SpecialReader | None, row: MappingFigures
    ) -> HugeFigures:
        found, where = self.new_figures(), row.mapping
        if where.start >= KERNEL_HALF:
            return found
        size = row.size_bytes
        page = self.page_size_bytes
        hugetlb = sum(size.get(name, 0) for name in _HUGETLB_FIGURES)
        if hugetlb:
            found.hugetlb_pages[size["KernelPageSize"]] = hugetlb // page
        if not size.get("Rss", 0) or where.permissions[:3] == "---":
            # As thpmaps does.  Zero pages are in no Rss.
            self._count_zero(table, where, found)
            return found
        found.anon_pages = size.get("Anonymous", 0) // page
        found.file_pages = size["Rss"] // page - found.anon_pages
        for kind, names in _PMD_FIGURES.items():
            found.pmd_pages[kind] = sum(size.get(name, 0) for name in names) // page
        if special is None:
            self._count_zero(table, where, found)
            return found
        windows = [(where.start // page, where.stop // page)]
        skipped = 0
        if self.use_scan and found.pmd_pages.any():
            windows, skipped = self._leave_out_pmds(table, windows[0], found)
        self._count_windows(special, windows, found)
        self._leave_pmds_to_smaps(found, is_scanned=skipped > 0)
        return found

    def _leave_out_pmds(
        self, table: PageTable, window: Window, found: HugeFigures
    ) -> tuple[list[Window], int]:
        """Return the pages that PMDs do not map, and how many they map."""
        windows, place, skipped = [], window[0], 0
        regions = self._scan(table, window, PAGE_IS_HUGE)
        for first, stop, is_zero in regions:
            if first > place:
                windows.append((place, first))
            if is_zero:
                self._add_huge_zero(found, stop - first)
            elif self.node_ranges:
                self._note_pmd_nodes(table, (first, stop), found)
            skipped += stop - first
            place = stop
        if place < window[1]:
            windows.append((place, window[1]))
        return windows, skipped

    def _scan(
        self, table: PageTable, window: Window, any_of: int
    ) -> Iterator[tuple[int, int, bool]]:
        wanted = PAGE_IS_HUGE | PAGE_IS_PFNZERO
        for regions in table.regions([window], any_of, wanted):
            for first, stop, categories in regions.tolist():
                yield first, stop, bool(categories & PAGE_IS_PFNZERO)

    def _count_zero(self, table: PageTable, where: Mapping, found: HugeFigures) -> None:
        """Count the zero pages of a mapping that has nothing else."""
        is_private_memory = not (where.is_shared or where.has_object)
        if not self.use_scan or not is_private_memory:
            return
        size, pmd = self.page_size_bytes, 1 << self.pmd_order
        window = (where.start // size, where.stop // size)
        wanted = PAGE_IS_HUGE | PAGE_IS_PFNZERO
        for regions in table.regions([window], PAGE_IS_PFNZERO, wanted):
            is_huge = (regions[:, 2] & PAGE_IS_HUGE) != 0
            pages = regions[:, 1] - regions[:, 0]
            found.huge_zero_pages += int(pages[is_huge].sum()) // pmd * pmd
            found.zero_pages += int(pages[~is_huge].sum())

    def _add_huge_zero(self, found: HugeFigures, pages: int) -> None:
        """Count the huge zero page where thpmaps does: among the file pages of PTEs."""
        found.huge_zero_pages += pages
        found.tally.whole[FILE, ALIGNED, self.pmd_order] += pages
        for order, counted in found.tally.blocks.items():
            found.tally.blocks[order] = counted + np.array([0, pages])

    def _leave_pmds_to_smaps(self, found: HugeFigures, is_scanned: bool) -> None:
        """Take what PMDs map out of what PTEs map, unless it was never counted."""
        if is_scanned:
            return
        whole = found.tally.whole[:, ALIGNED, self.pmd_order]
        found.tally.whole[:, ALIGNED, self.pmd_order] = np.maximum(whole - found.pmd_pages, 0)
        for order, counted in found.tally.blocks.items():
            found.tally.blocks[order] = np.maximum(counted - found.pmd_pages, 0)

    def _count_windows(
        self, special: SpecialReader, windows: list[Window], found: HugeFigures
    ) -> None:
        for window in windows:
            waiting = select_huge(*(np.empty(0, np.int64),) * 2, np.empty(0, np.uint64))
            for piece in special.iter_special(window):
                found.moved_pages += piece.moved_pages
                huge = join_huge(waiting, self._note_special(piece, found))
                cut = len(huge.vfn)
                if piece.stop < window[1]:
                    cut = find_cut(huge, piece.stop, 1 << self.pmd_order)
                self._count(huge.slice(0, cut), found)
                waiting = huge.slice(cut, len(huge.vfn))

    def _note_special(self, piece: SpecialPages, found: HugeFigures) -> HugePages:
        """Count merged and zero pages, and return the transparent huge ones."""
        pfn, flags = piece.pfn, piece.flags
        is_zero = (flags & KPF_ZERO_PAGE) != 0
        if is_zero.any():
            is_huge_zero = is_zero & ((flags & KPF_THP) != 0)
            found.huge_zero_pages += int(is_huge_zero.sum())
            found.zero_pages += int(is_zero.sum() - is_huge_zero.sum())
        is_merged = (flags & KPF_KSM) != 0
        if is_merged.any():
            found.ksm_pages += int(is_merged.sum())
            self._ksm.append(np.unique(pfn[is_merged]))
        if self.node_ranges:
            self._note_nodes(pfn[((flags & KPF_THP) != 0) & ~is_zero], found)
        return select_huge(piece.vfn, pfn, flags)

    def _note_nodes(self, pfns: NDArray[np.int64], found: HugeFigures) -> None:
        """Count pages of transparent huge pages by NUMA node."""
        for row in self.node_ranges:
            pages = int(((pfns >= row.first) & (pfns < row.stop)).sum())
            if pages:
                found.node_pages[row.node] += pages

    def _note_pmd_nodes(self, table: PageTable, window: Window, found: HugeFigures) -> None:
        words = table.read([window])
        present = words[words >= PM_PRESENT]
        self._note_nodes((present & PM_PFN).view(np.int64), found)

    def _count(self, huge: HugePages, found: HugeFigures) -> None:
        if self.flags is None:
            return
        _, stops = huge.ranges()
        after = huge.pfn[stops - 1] + 1
        order = np.argsort(after)
        flags = np.empty(len(after), np.uint64)
        flags[order] = read_sorted(self.flags, after[order])
        found.tally.add(huge, (flags & KPF_TAIL) != 0)


def _open_flags(machine: Machine) -> tuple[KpageFile | None, str]:
    """Return kpageflags, or why frames or their flags are hidden."""
    try:
        machine.require_frames()
        return KpageFile("kpageflags", machine), ""
    except MemlensError as error:
        return None, str(error)


def _read_ksm_profit(directory: ProcessDir) -> int | None:
    """Return ksm_process_profit of /proc/PID/ksm_stat (commit cb4df4cae4f2, in v6.1)."""
    try:
        raw = directory.read("ksm_stat")
    except MemlensError:
        return None
    for line in raw.splitlines():
        if line.startswith(b"ksm_process_profit"):
            return int(line.split()[1])
    return None
