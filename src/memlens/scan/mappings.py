"""Which mapping a page belongs to, and whether it counts in RSS."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.maps import KERNEL_HALF, Mapping
from memlens.kernel.pagemap import PAGE_IS_FILE
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import FileMapping
from memlens.objects.opener import Opener
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT
from memlens.pages.runs import (
    Runs,
    clip_runs,
    union_runs,
)
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable


@dataclass(frozen=True, slots=True)
class FoundPages:
    """
    Pages that count in RSS, ``(n,)`` each.

    :param index: number of the word.
    :param place: number of the mapping.
    :param pfn: frame.
    :param is_file: whether it is of a file or of shared memory.
    """

    index: NDArray[np.int64]
    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    is_file: NDArray[np.bool_]

    def select(self, is_kept: NDArray[np.bool_]) -> "FoundPages":
        """Return some of them."""
        return FoundPages(
            self.index[is_kept], self.place[is_kept], self.pfn[is_kept], self.is_file[is_kept]
        )


class MappingTable:
    """
    The mappings of a process, to find that of a page.

    :param directory: the process.
    """

    def __init__(self, directory: ProcessDir, machine: Machine) -> None:
        opener = Opener(directory)
        self.mappings = [m for m in directory.read_maps() if m.start < KERNEL_HALF]
        starts = [mapping.start // machine.page_size_bytes for mapping in self.mappings]
        self._starts = np.array(starts, np.int64)
        # Huge pages of hugetlb are not in RSS.
        self._is_counted = np.array([_is_counted(opener, m) for m in self.mappings], bool)
        # Of no file, and yet with that bit: only the huge zero page is.
        kinds = ["" if m.has_object else opener.facts(m).kind for m in self.mappings]
        self._is_anonymous = np.array([kind == "anonymous" for kind in kinds], bool)

    def attribute(
        self, words: NDArray[np.uint64], pages: NDArray[np.int64], zero_pfn: int
    ) -> FoundPages:
        """
        Return the pages that count in RSS, and what they belong to.

        :param words: pagemap words, ``(n,)`` uint64.
        :param pages: addresses divided by the page size, ``(n,)`` int64.
        :param zero_pfn: frame of the zero page.
        """
        is_wanted = ((words & PM_PRESENT) != 0) & ((words & PM_PFN) != zero_pfn)
        index = np.flatnonzero(is_wanted)
        if not len(index) or not len(self._starts):
            empty = np.empty(0, np.int64)
            return FoundPages(empty, empty, empty, np.empty(0, bool))
        kept = words[index]
        place = np.searchsorted(self._starts, pages[index], side="right") - 1
        is_file = (kept & PM_FILE) != 0
        is_counted = (place >= 0) & self._is_counted[place]
        is_counted &= ~(is_file & self._is_anonymous[place])
        pfn = (kept & PM_PFN).view(np.int64)
        return FoundPages(
            index[is_counted], place[is_counted], pfn[is_counted], is_file[is_counted]
        )


def _is_counted(opener: Opener, mapping: Mapping) -> bool:
    # hugetlbfs has no device number of its own: major 0.
    has_object = mapping.inode != 0 and mapping.device.startswith("00:")
    return not has_object or opener.facts(mapping).kind != "hugetlb"


# Page tables that stay open, for many files are mapped by the same processes.
_OPEN_AT_MOST = 128


@dataclass(slots=True)
class PageTables:
    """
    Page tables of processes that stay open, for many things are mapped by the same ones.

    :param machine: whose processes they are.
    """

    machine: Machine
    _open: dict[int, PageTable | None] = field(default_factory=dict, init=False)
    _denied: set[int] = field(default_factory=set, init=False)

    @property
    def denied(self) -> int:
        """Return of how many processes they may not be read."""
        return len(self._denied)

    def close(self) -> None:
        """Close them."""
        for table in self._open.values():
            if table is not None:
                table.close()
        self._open.clear()

    def of(self, pid: int, start_ticks: int | None = None) -> PageTable | None:
        """
        Return the page table of a process, None if it cannot be had.

        :param start_ticks: when the process began that is meant, None for whichever it is.
        """
        if pid not in self._open:
            if len(self._open) >= _OPEN_AT_MOST:
                self.close()
            self._open[pid] = self._open_one(pid, start_ticks)
        return self._open[pid]

    def _open_one(self, pid: int, start_ticks: int | None) -> PageTable | None:
        try:
            with ProcessDir(pid, self.machine) as process:
                if start_ticks in (None, process.stat.start_ticks):
                    return PageTable.open(process, self.machine)
        except AccessDenied:
            self._denied.add(pid)
        except MemlensError:
            pass
        return None


class MappedPages(PageTables):
    """Counts mapped pages of one file after the other."""

    def count(self, mappings: Iterable[FileMapping], pages: int) -> int:
        """
        Return how many pages of a file any of its mappings has in a page table.

        :param mappings: of this file alone.
        :param pages: up to the end of the file.
        """
        return int(self.runs(mappings, pages).pages.sum())

    def runs(self, mappings: Iterable[FileMapping], pages: int) -> Runs:
        """Return which pages these are, as runs of value 1."""
        parts = []
        for mapping in mappings:
            table = self.of(mapping.pid)
            if table is None:
                continue
            try:
                parts.append(self._read(table, mapping))
            except MemlensError:
                # Ended meanwhile: it maps nothing any more.
                continue
        return clip_runs(union_runs(parts), 0, pages)

    def _read(self, table: PageTable, mapping: FileMapping) -> Runs:
        first, stop = mapping.start // table.size, mapping.stop // table.size
        runs = table.mapped(first, stop, PAGE_IS_FILE)
        ones = np.ones(len(runs), np.uint8)
        return Runs(runs.first - first + mapping.offset // table.size, runs.pages, ones)
