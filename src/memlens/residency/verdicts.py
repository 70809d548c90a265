"""What page-table entries mean for a mapping; an object answers what they leave open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.kernel.mapstable import MapsTable
from memlens.objects.opener import KERNEL_NAMES, ObjectFacts
from memlens.pages.arrays import distinct
from memlens.pages.classes import REASONS, Entry, Reason, Verdict, entry_verdicts
from memlens.pages.runs import Runs, merge_runs, select_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns
from memlens.residency.records import UnknownRun
from memlens.residency.totals import Settler
from memlens.units import format_size

# Of hugetlbfs, watched by userfaultfd, where only words are to be had: poison reads as an
# empty word, and only PAGEMAP_SCAN calls it a swap entry.
WATCHED = {kind: f"{kind}, watched" for kind in ("private", "shared")}
_KINDS = ("anonymous", "private", "shared", "special", "kernel")
KINDS = (*_KINDS, *WATCHED.values())

# Verdicts by number of the kind of mapping, and entry.
VERDICTS = np.stack([entry_verdicts(kind.partition(",")[0]) for kind in KINDS])
VERDICTS[len(_KINDS) :, Entry.EMPTY] = Reason.TRANSIT


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
