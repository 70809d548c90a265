"""
Verdicts that only smaps can settle: all pages of a question are one thing, or none.

smaps is read at most once for a process, and only if a question needs it, since the
kernel walks every page table for it.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.maps import Mapping
from memlens.kernel.process import ProcessDir
from memlens.kernel.smaps import MappingFigures, read_smaps
from memlens.objects.backing import Backing
from memlens.objects.overlay import is_maybe_on_swap
from memlens.pages.classes import PageClass, Reason, Verdict
from memlens.pages.runs import Runs, count_runs, merge_runs
from memlens.scan.machine import Machine

_VALUES = 256
Counts = NDArray[np.int64]
Table = NDArray[np.uint8]


@dataclass(slots=True)
class Settler:
    """
    Answers from /proc/PID/smaps for one process.

    :param process: the process.
    :param machine: says whether smaps may be used.
    """

    process: ProcessDir
    machine: Machine
    _figures: dict[Mapping, MappingFigures] | None = field(default=None)

    def figures(self, mapping: Mapping) -> MappingFigures | None:
        """Return the smaps figures of a mapping, None if there are none."""
        if not self.machine.may("smaps"):
            return None
        if self._figures is None:
            try:
                self._figures = {row.mapping: row for row in read_smaps(self.process)}
                self.machine.meter.used.add("smaps")
            except MemlensError:
                self._figures = {}
        return self._figures.get(mapping)

    def pages(self, mapping: Mapping, name: str) -> int | None:
        """Return a figure of a mapping in pages, None if it is not known."""
        row = self.figures(mapping)
        if row is None or name not in row.size_bytes:
            return None
        return row.size_bytes[name] // self.machine.page_size_bytes

    def settle(self, mapping: Mapping, kind: str, runs: Runs, is_whole: bool) -> Runs:
        """
        Replace open questions of a mapping by verdicts where its totals decide.

        :param kind: kind of the object, as ``ObjectFacts`` has it.
        :param runs: runs of verdicts.
        :param is_whole: whether the runs cover the whole mapping, without which its
            totals say little.
        """
        if runs.value.max() < Verdict.ASK:
            return runs
        counts = count_runs(runs, _VALUES)
        table = np.arange(_VALUES, dtype=np.uint8)
        if counts[Verdict.HIDDEN] or counts[Verdict.HIDDEN_WP]:
            self._settle_hidden(mapping, kind, counts, table, is_whole)
        if counts[Verdict.MAYBE_ZERO]:
            self._settle_zero(mapping, counts, table, is_whole)
        if counts[Reason.KERNEL_MEMORY]:
            row = self.figures(mapping)
            if row is not None and "pf" in row.vm_flags:
                table[Reason.KERNEL_MEMORY] = PageClass.DEVICE
        # Swap counts what is on swap, with a copy in RAM or without.
        if (
            counts[Reason.CACHED_OR_SWAP_CACHED]
            and is_whole
            and mapping.is_shared
            and self.pages(mapping, "Swap") == counts[PageClass.SWAPPED]
        ):
            table[Reason.CACHED_OR_SWAP_CACHED] = PageClass.CACHED
        return merge_runs(Runs(runs.first, runs.pages, table[runs.value]))

    def _settle_hidden(
        self, mapping: Mapping, kind: str, counts: Counts, table: Table, is_whole: bool
    ) -> None:
        table[Verdict.HIDDEN] = table[Verdict.HIDDEN_WP] = Reason.HIDDEN
        swap = self.pages(mapping, "Swap")
        if swap is None or (swap and self._may_count_object(mapping, kind)):
            return
        hidden = int(counts[Verdict.HIDDEN] + counts[Verdict.HIDDEN_WP])
        if swap == 0 and kind == "anonymous":
            table[Verdict.HIDDEN_WP] = PageClass.NONE
        elif is_whole and swap == hidden:
            table[Verdict.HIDDEN] = table[Verdict.HIDDEN_WP] = PageClass.SWAPPED

    def _may_count_object(self, mapping: Mapping, kind: str) -> bool:
        """Return whether Swap of smaps may count pages of the object, as it does of shmem."""
        is_overlay = kind == "overlay"
        return kind == "shmem" or (is_overlay and is_maybe_on_swap(self.process, mapping))

    def _settle_zero(
        self, mapping: Mapping, counts: Counts, table: Table, is_whole: bool
    ) -> None:
        table[Verdict.MAYBE_ZERO] = Reason.MAYBE_ZERO
        figures = self.figures(mapping)
        if figures is not None and figures.is_hugetlb:
            # There is no huge page of zeroes for hugetlb, and these are in no Rss.
            table[Verdict.MAYBE_ZERO] = PageClass.PRESENT
            return
        rss = self.pages(mapping, "Rss")
        if rss is None or not is_whole:
            return
        # Rss leaves the zero page out.
        if rss == counts[PageClass.PRESENT] + counts[Verdict.MAYBE_ZERO]:
            table[Verdict.MAYBE_ZERO] = PageClass.PRESENT
        elif rss == counts[PageClass.PRESENT]:
            table[Verdict.MAYBE_ZERO] = PageClass.ZERO


def settle_preallocated(backing: Backing, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """
    Tell holes from preallocated pages without cachestat, if the object has none of these.

    Every page that shmem owns counts in st_blocks, but only written ones are data.

    :param values: verdicts of runs or pages.
    """
    is_open = values == Reason.NONE_OR_PREALLOCATED
    if not is_open.any():
        return values
    extents = backing.data_extents(0, backing.size_pages())
    if int((extents[:, 1] - extents[:, 0]).sum()) != backing.allocated_pages():
        return values
    return np.where(is_open, np.uint8(PageClass.NONE), values)
