"""
What page-table entries mean for a mapping, and what sums of the whole mapping settle.

An object answers what entries leave open.  smaps is read at most once for a process, and only
if a question needs it, since the kernel walks every page table for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.maps import Mapping, MapsTable
from memlens.kernel.process import ProcessDir
from memlens.kernel.smaps import MappingFigures, read_smaps
from memlens.objects.opener import KERNEL_NAMES, ObjectFacts
from memlens.objects.overlay import is_maybe_on_swap
from memlens.pages.arrays import distinct
from memlens.pages.classes import REASONS, Entry, PageClass, Reason, Verdict, entry_verdicts
from memlens.pages.runs import Runs, count_runs, merge_runs, select_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns
from memlens.residency.records import UnknownRun
from memlens.scan.machine import Machine
from memlens.units import format_size

# Of hugetlbfs, watched by userfaultfd, where only words are to be had: poison reads as an
# empty word, and only PAGEMAP_SCAN calls it a swap entry.
WATCHED = {kind: f"{kind}, watched" for kind in ("private", "shared")}
_KINDS = ("anonymous", "private", "shared", "special", "kernel")
KINDS = (*_KINDS, *WATCHED.values())

# Verdicts by number of the kind of mapping, and entry.
VERDICTS = np.stack([entry_verdicts(kind.partition(",")[0]) for kind in KINDS])
VERDICTS[len(_KINDS) :, Entry.EMPTY] = Reason.TRANSIT


_VALUES = 256
Counts = NDArray[np.int64]
Table = NDArray[np.uint8]

# Members of enumerations are slow to come by.
_ASK, _EMPTY = int(Verdict.ASK), int(Entry.EMPTY)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """
    What a mapping's pages are.

    :param facts: what backs the mapping.
    :param runs: runs of verdicts, page numbers from the start of the mapping.
    :param refusal: why the object could not be asked, "" if it could.
    :param slots: where the object has swapped pages, if slots are wanted; page numbers
        from the start of the mapping.
    """

    facts: ObjectFacts
    runs: Runs
    refusal: str = ""
    slots: SlotRuns = NO_SLOTS


def mapping_kind(path: str, is_shared: bool, facts: ObjectFacts) -> str:
    """Return which column of ``ENTRY_TABLE`` holds for a mapping of a path."""
    if facts.kind == "anonymous":
        return "anonymous"
    if facts.kind in ("special", "device"):
        return "kernel" if path in KERNEL_NAMES else "special"
    return "shared" if is_shared else "private"


def kind_numbers(
    table: MapsTable, facts: Sequence[ObjectFacts], is_watched: Callable[[Mapping], bool]
) -> NDArray[np.int64]:
    """
    Return by which row of ``VERDICTS`` to judge each mapping.

    :param facts: what backs each place of the table.
    :param is_watched: says of a mapping of hugetlbfs whether words may hide poison there.
    """
    numbers = np.zeros((2, len(table.places)), np.int64)
    for number in distinct(table.place).tolist():
        path, one = table.places[number].path, facts[number]
        for is_shared in (False, True):
            kind = mapping_kind(path, is_shared, one)
            if one.kind == "hugetlb" and is_watched(table[0]):
                kind = WATCHED[kind]
            numbers[int(is_shared), number] = KINDS.index(kind)
    is_mode_shared = np.array([mode[3:4] == "s" for mode in table.modes], np.int64)
    found: NDArray[np.int64] = numbers[is_mode_shared[table.mode], table.place]
    return found


def replace_value(runs: Runs, old: int, new: int) -> Runs:
    """Return runs with one value in place of another."""
    if not (runs.value == old).any():
        return runs
    value = np.where(runs.value == old, np.uint8(new), runs.value)
    return merge_runs(Runs(runs.first, runs.pages, value))


def object_label(facts: ObjectFacts) -> str:
    """Return the kind of object as results name it."""
    if facts.kind in ("ramfs", "overlay", "block"):
        return "file"
    return facts.kind


# What only the sums of smaps can settle: all pages of a question are one thing, or none.


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

    def is_watched(self, mapping: Mapping) -> bool:
        """
        Return whether words may hide poison of a mapping of hugetlbfs.

        Where only they are to be had, it reads as an empty word.
        """
        if self.machine.may("pagemap_scan"):
            return False
        figures = self.figures(mapping)
        return figures is None or figures.is_watched

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


def explain_unknown(
    settler: Settler, mapping: Mapping, runs: Runs, refusal: str
) -> tuple[UnknownRun, ...]:
    """
    Return the runs whose verdict is a ``Reason``, with its text.

    :param runs: runs of verdicts.
    :param refusal: why the object could not be asked.
    """
    start = mapping.start // settler.machine.page_size_bytes
    return tuple(
        UnknownRun(start, first, pages, reason_text(settler, mapping, value, refusal))
        for first, pages, value in select_runs(runs, runs.value >= Verdict.FIRST_REASON)
    )


def reason_text(settler: Settler, mapping: Mapping, value: int, refusal: str) -> str:
    """Return a reason, with what smaps can still say of a mapping that cannot be asked."""
    reason = REASONS[value - Verdict.FIRST_REASON]
    if value == Reason.NOT_OPENED:
        reason = refusal or reason
    if value not in (Reason.NOT_OPENED, Reason.NOT_HONEST, Reason.HIDDEN):
        return reason
    pages = settler.pages(mapping, "Swap")
    if pages is None:
        return reason
    swap = format_size(pages * settler.machine.page_size_bytes)
    return f"{reason} (smaps counts {swap} of swap in this mapping)"
