"""One mapping: what its page table leaves open, its object answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.objects import PIECE, TRIES, ObjectReader
from memlens.account.overlaywalk import OverlayWalk
from memlens.account.pagetable import PageTable
from memlens.account.settle import Settler, settle_preallocated
from memlens.account.walking import Walking
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import KERNEL_NAMES, ObjectFacts, Opener
from memlens.kernel.overlay import is_maybe_copied_up
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
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
    concat_runs,
    decode_runs,
    encode_runs,
    fill_runs,
    merge_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    shift_runs,
    window_runs,
)
from memlens.pages.slotruns import (
    NO_SLOTS,
    SlotRuns,
    concat_slots,
    restrict_slots,
    shift_slots,
    without_pages,
)

# Above this address is the kernel's half, which no page table of a process covers.
KERNEL_HALF = 1 << 63
# Open pages closer than this are asked about together: a call costs as much as asking about
# some thousand pages more.
_JOIN_PAGES = 4096
# From so many runs on, shorter than this on average, pages are taken one by one.
_CRUMBS = 256
_CRUMB_PAGES = 64
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
    :param slots: where the object has swapped pages, if slots are wanted; page numbers
        from the start of the mapping.
    """

    facts: ObjectFacts
    runs: Runs
    refusal: str = ""
    slots: SlotRuns = NO_SLOTS


@dataclass(slots=True)
class MappingReader:
    """
    Reads the mappings of one process.

    :param table: its page table.
    :param opener: opens its objects.
    :param settler: settles by totals.
    :param disabled: interfaces that may not be used.
    :param has_cachestat: whether the kernel has cachestat.
    :param walking: the page-cache walk.
    """

    table: PageTable
    opener: Opener
    settler: Settler
    disabled: frozenset[str]
    has_cachestat: bool
    walking: Walking
    _last: tuple[tuple[object, ...], ObjectReader] | None = None
    _slots: SlotRuns = NO_SLOTS

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
        self._slots = NO_SLOTS
        runs = self._entry_verdicts(mapping, kind, first, stop, entries)
        runs, refusal = self._ask_object(mapping, facts, kind, runs)
        for _ in range(TRIES):
            again = select_runs(runs, runs.value == Verdict.AGAIN)
            if not len(again):
                break
            runs = self._read_again(mapping, facts, kind, runs, again)
        runs = _replace_value(runs, Verdict.AGAIN, Reason.TRANSIT)
        return Verdicts(facts, runs, refusal, self._slots)

    def settle(self, mapping: Mapping, verdicts: Verdicts) -> Runs:
        """
        Return the runs with what only totals of the mapping can settle settled.

        :param verdicts: of consecutive pages, of the whole mapping if they are to help.
        """
        covered = int(verdicts.runs.stop[-1] - verdicts.runs.first[0]) * self._size
        is_whole = covered == mapping.stop - mapping.start
        runs = self.settler.settle(mapping, verdicts.facts.kind, verdicts.runs, is_whole)
        on_swap_perhaps = select_runs(runs, runs.value == Reason.OVERLAY_SWAP)
        if not len(on_swap_perhaps):
            return runs
        found = self._overlay_walk().verdicts(mapping, on_swap_perhaps, is_absent=True)
        return replace_runs(runs, found)

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
        parts = []
        for first, stop in window_runs(again, _JOIN_PAGES):
            fresh = self._entry_verdicts(mapping, kind, first, stop, None)
            parts.append(self._ask_object(mapping, facts, kind, fresh)[0])
        return replace_runs(runs, restrict_runs(concat_runs(parts), again))

    def _ask_object(
        self, mapping: Mapping, facts: ObjectFacts, kind: str, runs: Runs
    ) -> tuple[Runs, str]:
        """Replace ``ASK`` by what the object says."""
        asked = select_runs(runs, runs.value == Verdict.ASK)
        if not len(asked):
            return runs, ""
        if facts.kind == "overlay" and is_maybe_copied_up(self.opener.process, mapping):
            runs = replace_runs(runs, self._overlay_walk().verdicts(mapping, asked))
            return _replace_value(runs, Verdict.ASK, Reason.COPIED_UP), ""
        reader = self._reader(mapping, facts)
        if isinstance(reader, str):
            return _replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), reader
        try:
            if _is_crumbled(runs):
                answered = self._ask_densely(mapping, kind, reader, runs)
            else:
                answered = self._ask_windows(mapping, kind, reader, runs, asked)
            if facts.kind == "shmem" and "seek_data" not in self.disabled:
                answered = settle_preallocated(reader.backing, answered)
        except OSError as error:
            refusal = f"asking the object: {error.strerror}"
            return _replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), refusal
        if reader.walk is not None:
            again = without_pages(self._slots, asked)
            pgoff = mapping.offset_bytes // self._size
            found = restrict_slots(shift_slots(reader.walk.take_slots(), -pgoff), asked)
            self._slots = concat_slots([again, found])
        return answered, ""

    def _overlay_walk(self) -> OverlayWalk:
        return OverlayWalk(self.walking, self.opener.process.pid, self._size)

    def _reader(self, mapping: Mapping, facts: ObjectFacts) -> ObjectReader | str:
        """Open an object, or go on with the one of the mapping before if it is the same."""
        key = (mapping.device, mapping.inode, mapping.path, facts.kind)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self.close()
        backing = self.opener.open(mapping)
        if isinstance(backing, str):
            return backing
        try:
            reader = ObjectReader(
                backing,
                self.disabled,
                self.has_cachestat,
                self.table.check_stop,
                self.walking,
            )
        except OSError as error:
            backing.close()
            return f"asking the object: {error.strerror}"
        self._last = key, reader
        return reader

    def close(self) -> None:
        """Close the object that was asked last."""
        if self._last is not None:
            self._last[1].backing.close()
            self._last = None

    def _ask_windows(
        self, mapping: Mapping, kind: str, reader: ObjectReader, runs: Runs, asked: Runs
    ) -> Runs:
        # The page of the object is pgoff + (address - start), never the address.
        pgoff = mapping.offset_bytes // self._size
        windows = window_runs(asked, _JOIN_PAGES)
        found = concat_runs(
            [
                shift_runs(reader.verdicts(pgoff + first, pgoff + stop), -pgoff)
                for first, stop in windows
            ]
        )
        runs = replace_runs(runs, restrict_runs(found, asked))
        # A page that was mapped meanwhile is what the page table says now: that was true at
        # some moment of the scan, while the object's answer may be of before or after.
        now = concat_runs(
            [self._entry_verdicts(mapping, kind, first, stop, None) for first, stop in windows]
        )
        moved = select_runs(now, now.value != Verdict.ASK)
        return replace_runs(runs, restrict_runs(moved, asked))

    def _ask_densely(
        self, mapping: Mapping, kind: str, reader: ObjectReader, runs: Runs
    ) -> Runs:
        """Do the same page by page, where runs are so short that they do not pay."""
        pgoff = mapping.offset_bytes // self._size
        parts = []
        for first in range(int(runs.first[0]), int(runs.stop[-1]), PIECE):
            stop = min(first + PIECE, int(runs.stop[-1]))
            verdicts = _dense(clip_runs(runs, first, stop), first, stop)
            is_asked = verdicts == Verdict.ASK
            if is_asked.any():
                answers = reader.dense_verdicts(pgoff + first, pgoff + stop)
                now = self._entry_verdicts(mapping, kind, first, stop, None)
                later = _dense(now, first, stop)
                is_moved = later != Verdict.ASK
                verdicts[is_asked] = np.where(is_moved, later, answers)[is_asked]
            parts.append(encode_runs(verdicts, first))
        return concat_runs(parts)


def make_reader(
    process: ProcessDir,
    pagemap: Pagemap,
    disabled: frozenset[str],
    *,
    opener: Opener | None = None,
    keep_words: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> MappingReader:
    """
    Return a reader of a process's mappings; the caller closes it.

    :param disabled: interfaces that may not be used.
    :param opener: opens the objects, one of its own if None.
    :param keep_words: whether to keep the raw pagemap words.
    :param should_stop: asked between pieces; True ends the scan.
    """
    size = pagemap.page_size_bytes
    table = PageTable(
        pagemap,
        use_scan="pagemap_scan" not in disabled and features.has_pagemap_scan(),
        zero_pfn=features.zero_pfn(),
        keep_words=keep_words,
        should_stop=should_stop,
    )
    return MappingReader(
        table=table,
        opener=opener or Opener(process, disabled, size),
        settler=Settler(process, size, "smaps" not in disabled),
        disabled=disabled,
        has_cachestat="cachestat" not in disabled and features.has_cachestat(),
        walking=Walking(process.meter, "cachewalk" not in disabled, keep_words, process.proc),
    )


def _mapping_kind(mapping: Mapping, facts: ObjectFacts) -> str:
    """Return which column of ``ENTRY_TABLE`` holds for a mapping."""
    if facts.kind == "anonymous":
        return "anonymous"
    if facts.kind in ("special", "device"):
        return "kernel" if mapping.path in KERNEL_NAMES else "special"
    return "shared" if mapping.is_shared else "private"


def _is_crumbled(runs: Runs) -> bool:
    return len(runs) > _CRUMBS and int(runs.stop[-1] - runs.first[0]) < len(runs) * _CRUMB_PAGES


def _dense(runs: Runs, first: int, stop: int) -> NDArray[np.uint8]:
    return decode_runs(shift_runs(runs, -first), stop - first)


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
