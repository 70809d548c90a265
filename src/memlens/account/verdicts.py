"""What page-table entries mean for a mapping; an object answers what they leave open."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.kernel.opening import KERNEL_NAMES, ObjectFacts
from memlens.pages.classes import Entry, PageClass, Reason, Verdict, entry_verdicts
from memlens.pages.dense import blend, look_up
from memlens.pages.runs import Runs, clip_runs, fill_runs, merge_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns

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


def mapping_kind(mapping: Mapping, facts: ObjectFacts) -> str:
    """Return which column of ``ENTRY_TABLE`` holds for a mapping."""
    if facts.kind == "anonymous":
        return "anonymous"
    if facts.kind in ("special", "device"):
        return "kernel" if mapping.path in KERNEL_NAMES else "special"
    return "shared" if mapping.is_shared else "private"


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


def is_object_class(verdict: int) -> bool:
    """Return whether a verdict can only have come from the object."""
    return verdict in (
        PageClass.CACHED,
        PageClass.SWAP_CACHED,
        PageClass.ON_DISK,
        PageClass.PREALLOCATED,
        PageClass.BEYOND_END,
    )
