"""One mapping: what its page table leaves open, its object answers."""

from dataclasses import dataclass

import numpy as np

from memlens.account.objects import TRIES, ObjectReader
from memlens.account.pagetable import PageTable
from memlens.account.settle import Settler, settle_preallocated
from memlens.kernel.backing import Backing
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import KERNEL_NAMES, ObjectFacts, Opener
from memlens.kernel.overlay import is_maybe_copied_up
from memlens.pages.classes import (
    Entry,
    PageClass,
    Reason,
    Verdict,
    entry_verdicts,
)
from memlens.pages.runs import (
    Runs,
    clip_runs,
    fill_runs,
    merge_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    shift_runs,
    window_runs,
)

# Above this address is the kernel's half, which no page table of a process covers.
KERNEL_HALF = 1 << 63
# Open pages closer than this are asked about together.
_JOIN_PAGES = 512
_VERDICTS = {
    kind: entry_verdicts(kind)
    for kind in ("anonymous", "private", "shared", "special", "kernel")
}


@dataclass(frozen=True, slots=True)
class Verdicts:
    """
    What a mapping's pages are.

    :param facts: what backs the mapping.
    :param runs: runs of verdicts, page numbers from the start of the mapping.
    :param refusal: why the object could not be asked, "" if it could.
    """

    facts: ObjectFacts
    runs: Runs
    refusal: str = ""


@dataclass(slots=True)
class MappingReader:
    """
    Reads the mappings of one process.

    :param table: its page table.
    :param opener: opens its objects.
    :param settler: settles by totals.
    :param disabled: interfaces that may not be used.
    :param has_cachestat: whether the kernel has cachestat.
    """

    table: PageTable
    opener: Opener
    settler: Settler
    disabled: frozenset[str]
    has_cachestat: bool

    def read(self, mapping: Mapping, first: int, stop: int, entries: Runs | None) -> Verdicts:
        """
        Return a verdict for every page of ``[first, stop)`` of a mapping.

        :param first: first page, from the start of the mapping.
        :param stop: page after the last.
        :param entries: what the page table said, page numbers of the address space; None
            to read it now.
        """
        facts = self.opener.facts(mapping)
        kind = _mapping_kind(mapping, facts)
        runs = self._entry_verdicts(mapping, kind, first, stop, entries)
        runs, refusal = self._ask_object(mapping, facts, runs)
        for _ in range(TRIES):
            again = select_runs(runs, runs.value == Verdict.AGAIN)
            if not len(again):
                break
            runs = self._read_again(mapping, facts, kind, runs, again)
        runs = _replace_value(runs, Verdict.AGAIN, Reason.TRANSIT)
        is_whole = (stop - first) * self._size == mapping.stop - mapping.start
        runs = self.settler.settle(mapping, facts.kind, runs, is_whole)
        return Verdicts(facts, runs, refusal)

    @property
    def _size(self) -> int:
        return self.table.pagemap.page_size_bytes

    def _entry_verdicts(
        self, mapping: Mapping, kind: str, first: int, stop: int, entries: Runs | None
    ) -> Runs:
        base = mapping.start // self._size
        if mapping.start >= KERNEL_HALF:
            empty = Runs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
            return fill_runs(empty, first, stop, int(_VERDICTS[kind][Entry.OUTSIDE]))
        if entries is None:
            entries = self.table.read_entries(base + first, base + stop, kind == "anonymous")
        inside = shift_runs(clip_runs(entries, base + first, base + stop), -base)
        filled = fill_runs(inside, first, stop, Entry.EMPTY)
        return merge_runs(Runs(filled.first, filled.pages, _VERDICTS[kind][filled.value]))

    def _read_again(
        self, mapping: Mapping, facts: ObjectFacts, kind: str, runs: Runs, again: Runs
    ) -> Runs:
        for first, stop in window_runs(again, _JOIN_PAGES):
            fresh = self._entry_verdicts(mapping, kind, first, stop, None)
            fresh, _ = self._ask_object(mapping, facts, fresh)
            runs = replace_runs(runs, restrict_runs(fresh, again))
        return runs

    def _ask_object(self, mapping: Mapping, facts: ObjectFacts, runs: Runs) -> tuple[Runs, str]:
        """Replace ``ASK`` by what the object says."""
        asked = select_runs(runs, runs.value == Verdict.ASK)
        if not len(asked):
            return runs, ""
        if facts.kind == "overlay" and is_maybe_copied_up(self.opener.process, mapping):
            return _replace_value(runs, Verdict.ASK, Reason.COPIED_UP), ""
        backing = self.opener.open(mapping)
        if isinstance(backing, str):
            return _replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), backing
        try:
            answers = self._ask_pages(mapping, backing, asked)
        except OSError as error:
            refusal = f"asking the object: {error.strerror}"
            return _replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), refusal
        finally:
            backing.close()
        return self._look_back(mapping, facts, replace_runs(runs, answers), asked), ""

    def _ask_pages(self, mapping: Mapping, backing: Backing, asked: Runs) -> Runs:
        # The page of the object is pgoff + (address - start), never the address.
        pgoff = mapping.offset_bytes // self._size
        reader = ObjectReader(backing, self.disabled, self.has_cachestat, self.table.check_stop)
        answers = asked
        for first, stop in window_runs(asked, _JOIN_PAGES):
            found = shift_runs(reader.verdicts(pgoff + first, pgoff + stop), -pgoff)
            answers = replace_runs(answers, restrict_runs(found, asked))
        if backing.kind == "shmem" and "seek_data" not in self.disabled:
            answers = settle_preallocated(backing, answers)
        return answers

    def _look_back(self, mapping: Mapping, facts: ObjectFacts, runs: Runs, asked: Runs) -> Runs:
        """
        Read the page table of the asked pages again.

        A page that was mapped meanwhile is what the page table says now: that was true
        at some moment of the scan, while the object's answer may be of before or after.
        """
        kind = _mapping_kind(mapping, facts)
        for first, stop in window_runs(asked, _JOIN_PAGES):
            now = self._entry_verdicts(mapping, kind, first, stop, None)
            now = select_runs(now, now.value != Verdict.ASK)
            runs = replace_runs(runs, restrict_runs(now, asked))
        return runs


def _mapping_kind(mapping: Mapping, facts: ObjectFacts) -> str:
    """Return which column of ``ENTRY_TABLE`` holds for a mapping."""
    if facts.kind == "anonymous":
        return "anonymous"
    if facts.kind in ("special", "device"):
        return "kernel" if mapping.path in KERNEL_NAMES else "special"
    return "shared" if mapping.is_shared else "private"


def _replace_value(runs: Runs, old: int, new: int) -> Runs:
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
