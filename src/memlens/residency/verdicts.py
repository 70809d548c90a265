"""What page-table entries mean for a mapping; an object answers what they leave open."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.objects.opener import KERNEL_NAMES, ObjectFacts
from memlens.pages.arrays import blend, look_up
from memlens.pages.classes import REASONS, Entry, Reason, Verdict, entry_verdicts
from memlens.pages.runs import Runs, clip_runs, fill_runs, merge_runs, select_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns
from memlens.residency.records import UnknownRun
from memlens.residency.totals import Settler
from memlens.units import format_size

KINDS = ("anonymous", "private", "shared", "special", "kernel")

# Verdicts by number of the kind of mapping and entry, and by its name.
VERDICTS = np.stack([entry_verdicts(kind) for kind in KINDS])
VERDICT_OF = dict(zip(KINDS, VERDICTS, strict=True))

# Of hugetlbfs, watched by userfaultfd, where only words are to be had: poison reads as an
# empty word, and only PAGEMAP_SCAN calls it a swap entry.
WATCHED = {kind: f"{kind}, watched" for kind in ("private", "shared")}
VERDICT_OF |= {name: VERDICT_OF[kind].copy() for kind, name in WATCHED.items()}


for _name in WATCHED.values():
    VERDICT_OF[_name][Entry.EMPTY] = Reason.TRANSIT


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


def judge_entries(kind: str, entries: Runs, first: int, stop: int) -> Runs:
    """Return the verdict of every page of a range; pages in no run are empty."""
    filled = fill_runs(clip_runs(entries, first, stop), first, stop, _EMPTY)
    return merge_runs(Runs(filled.first, filled.pages, VERDICT_OF[kind][filled.value]))


def judge_crumbs(
    kind: str, entries: NDArray[np.uint8], answers: int | NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """
    Return the verdict of each page, with an object's answers for what its entry leaves open.

    :param entries: an ``Entry`` for each page.
    :param answers: a verdict for each page, or for all of them.
    """
    table = VERDICT_OF[kind]
    if isinstance(answers, int):
        return look_up(np.where(table == _ASK, np.uint8(answers), table), entries)
    found = look_up(table, entries)
    return blend(found == _ASK, answers, found)


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
