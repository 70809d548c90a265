"""One mapping: what its page table leaves open, its object answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.layers import LayerSettler
from memlens.account.mappingwalk import MappingWalk
from memlens.account.objects import TRIES, ObjectReader
from memlens.account.pagetable import WINDOW_PAGES, PageTable
from memlens.account.settle import Settler
from memlens.account.verdicts import (
    VERDICT_OF,
    WATCHED,
    Verdicts,
    judge_crumbs,
    judge_entries,
    mapping_kind,
    replace_value,
)
from memlens.account.walking import Walking
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import REPLACED, ObjectFacts, Opener
from memlens.kernel.overlay import is_maybe_copied_up
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
from memlens.pages.classes import Entry, Reason, Verdict
from memlens.pages.dense import blend, look_up
from memlens.pages.runs import (
    Runs,
    concat_runs,
    encode_runs,
    one_run,
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
JOIN_PAGES = 4096
# Members of enumerations are slow to come by.
_ASK, _AGAIN = int(Verdict.ASK), int(Verdict.AGAIN)


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
    _layers: LayerSettler | None = None

    def read(self, mapping: Mapping, first: int, stop: int) -> Verdicts:
        """
        Return a verdict for every page of ``[first, stop)`` of a mapping.

        :param first: first page, from the start of the mapping.
        :param stop: page after the last.
        """
        parts = []
        while first < stop:
            parts.append(self.read_part(mapping, first, stop))
            first = int(parts[-1].runs.stop[-1])
        return Verdicts(
            parts[0].facts,
            concat_runs([part.runs for part in parts]),
            next((part.refusal for part in parts if part.refusal), ""),
            concat_slots([part.slots for part in parts]),
        )

    def read_part(self, mapping: Mapping, first: int, stop: int) -> Verdicts:
        """
        Do the same for as much of its beginning as one calculation is for.

        Where the runs end is where to go on.
        """
        facts = self.opener.facts(mapping)
        kind = self._kind(mapping, facts)
        self._slots = NO_SLOTS
        if mapping.start >= KERNEL_HALF:
            verdict = int(VERDICT_OF[kind][Entry.OUTSIDE])
            return Verdicts(facts, one_run(first, stop - first, verdict))
        base = mapping.start // self._size
        if self.table.is_crumbled and kind == "shared" and not self._is_asked_by_runs(facts):
            verdicts = self._read_object_first(mapping, facts, first, stop)
            if verdicts is not None:
                return verdicts
        entries, end = self.table.read_some(base + first, base + stop)
        if isinstance(entries, Runs):
            runs = judge_entries(kind, shift_runs(entries, -base), first, end - base)
            runs, refusal = self._ask_object(mapping, facts, kind, runs)
        else:
            runs, refusal = self._ask_densely(mapping, facts, kind, first, entries)
        return Verdicts(facts, self.until_steady(mapping, facts, runs), refusal, self._slots)

    def until_steady(self, mapping: Mapping, facts: ObjectFacts, runs: Runs) -> Runs:
        """Read pages on the move again, a few times."""
        kind = self._kind(mapping, facts)
        for _ in range(TRIES):
            again = select_runs(runs, runs.value == _AGAIN)
            if not len(again):
                return runs
            runs = self._read_again(mapping, facts, kind, runs, again)
        return replace_value(runs, _AGAIN, Reason.TRANSIT)

    def settle(self, mapping: Mapping, verdicts: Verdicts) -> Runs:
        """
        Return the runs with what only totals of the mapping can settle settled.

        What could not be opened is left to the page-cache walk, which opens nothing.

        :param verdicts: of consecutive pages, of the whole mapping if they are to help.
        """
        facts, runs = verdicts.facts, verdicts.runs
        covered = int(runs.stop[-1] - runs.first[0]) * self._size
        is_whole = covered == mapping.stop - mapping.start
        if facts.kind == "overlay":
            runs = self._settle_layer(mapping, facts, runs, is_whole)
        if runs.value.max() < _ASK:
            return runs
        runs = self.settler.settle(mapping, facts.kind, runs, is_whole)
        refused = select_runs(runs, runs.value == Reason.NOT_OPENED)
        return self._walk_refused(mapping, facts, runs, refused) if len(refused) else runs

    def _settle_layer(
        self, mapping: Mapping, facts: ObjectFacts, runs: Runs, is_whole: bool
    ) -> Runs:
        if self._layers is None:
            process = self.opener.process
            self._layers = LayerSettler(process, self.settler, self.walking, self._size)
        if not self._layers.is_asked(mapping, runs):
            return runs
        reader = self.open_object(mapping, facts)
        if isinstance(reader, str):
            return runs
        return self._layers.settle(mapping, runs, reader.backing, is_whole)

    def _walk_refused(
        self, mapping: Mapping, facts: ObjectFacts, runs: Runs, refused: Runs
    ) -> Runs:
        found = self._mapping_walk(facts).verdicts(mapping, refused)
        if not len(found):
            return runs
        kind = self._kind(mapping, facts)
        windows = window_runs(found, JOIN_PAGES)
        now = concat_runs([self._look_again(mapping, kind, *window) for window in windows])
        # As for every object: what was mapped meanwhile is what the page table says now.
        moved = restrict_runs(select_runs(now, now.value < _ASK), found)
        return replace_runs(replace_runs(runs, found), moved)

    @property
    def _size(self) -> int:
        return self.table.pagemap.page_size_bytes

    def _kind(self, mapping: Mapping, facts: ObjectFacts) -> str:
        """Return by which column of ``VERDICT_OF`` to judge a mapping, as it is read here."""
        kind = mapping_kind(mapping, facts)
        if facts.kind != "hugetlb" or kind not in WATCHED:
            return kind
        # Words, which are faster where runs are short, do not show poison of huge pages.
        self.table.is_crumbled = False
        if self.table.use_scan:
            return kind
        figures = self.settler.figures(mapping)
        return WATCHED[kind] if figures is None or figures.is_watched else kind

    def _look_again(self, mapping: Mapping, kind: str, first: int, stop: int) -> Runs:
        """Return the verdicts of what the page table says now."""
        base = mapping.start // self._size
        entries = self.table.read_entries(base + first, base + stop)
        return judge_entries(kind, shift_runs(entries, -base), first, stop)

    def _read_again(
        self, mapping: Mapping, facts: ObjectFacts, kind: str, runs: Runs, again: Runs
    ) -> Runs:
        parts = []
        for first, stop in window_runs(again, JOIN_PAGES):
            fresh = self._look_again(mapping, kind, first, stop)
            parts.append(self._ask_object(mapping, facts, kind, fresh)[0])
        return replace_runs(runs, restrict_runs(concat_runs(parts), again))

    def _ask_object(
        self, mapping: Mapping, facts: ObjectFacts, kind: str, runs: Runs
    ) -> tuple[Runs, str]:
        """Replace ``ASK`` by what the object says."""
        asked = select_runs(runs, runs.value == _ASK)
        if not len(asked):
            return runs, ""
        if facts.kind == "overlay" and is_maybe_copied_up(self.opener.process, mapping):
            runs = replace_runs(runs, self._mapping_walk(facts).verdicts(mapping, asked))
            return replace_value(runs, Verdict.ASK, Reason.COPIED_UP), ""
        reader = self.open_object(mapping, facts)
        if isinstance(reader, str):
            return replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), reader
        try:
            answered = self._ask_windows(mapping, kind, reader, runs, asked)
        except OSError as error:
            refusal = f"asking the object: {error.strerror}"
            return replace_value(runs, Verdict.ASK, Reason.NOT_OPENED), refusal
        if reader.walk is not None:
            again = without_pages(self._slots, asked)
            pgoff = mapping.offset_bytes // self._size
            found = restrict_slots(shift_slots(reader.walk.take_slots(), -pgoff), asked)
            self._slots = concat_slots([again, found])
        return answered, ""

    def _mapping_walk(self, facts: ObjectFacts) -> MappingWalk:
        is_overlay = facts.kind == "overlay"
        return MappingWalk(self.walking, self.opener.process.tid, self._size, is_overlay)

    def open_object(self, mapping: Mapping, facts: ObjectFacts) -> ObjectReader | str:
        """Open an object, or go on with the last one if it is the same; or say why not."""
        key = (mapping.device, mapping.inode, mapping.path, facts.kind)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self.close()
        backing = self.opener.open(mapping)
        if isinstance(backing, str):
            return backing
        if backing.kind != facts.kind:
            backing.close()
            return REPLACED
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
        windows = window_runs(asked, JOIN_PAGES)
        found = concat_runs(
            [
                shift_runs(reader.verdicts(pgoff + first, pgoff + stop), -pgoff)
                for first, stop in windows
            ]
        )
        found = Runs(found.first, found.pages, reader.settle(found.value))
        runs = replace_runs(runs, restrict_runs(found, asked))
        # A page that was mapped meanwhile is what the page table says now: that was true at
        # some moment of the scan, while the object's answer may be of before or after.
        now = concat_runs(
            [self._look_again(mapping, kind, first, stop) for first, stop in windows]
        )
        moved = select_runs(now, now.value != _ASK)
        return replace_runs(runs, restrict_runs(moved, asked))

    def _is_asked_by_runs(self, facts: ObjectFacts) -> bool:
        return facts.kind in ("overlay", "hugetlb") or self.walking.is_eager

    def _ask_densely(
        self,
        mapping: Mapping,
        facts: ObjectFacts,
        kind: str,
        first: int,
        entries: NDArray[np.uint8],
    ) -> tuple[Runs, str]:
        """Do all of the above page by page, where runs are so short that they do not pay."""
        verdicts = look_up(VERDICT_OF[kind], entries)
        is_asked = verdicts == _ASK
        if self._is_asked_by_runs(facts) or not is_asked.any():
            return self._ask_object(mapping, facts, kind, encode_runs(verdicts, first))
        answers: int | NDArray[np.uint8] = int(Reason.NOT_OPENED)
        later, refusal = entries, ""
        reader = self.open_object(mapping, facts)
        if isinstance(reader, str):
            refusal = reader
        else:
            pgoff = mapping.offset_bytes // self._size + first
            base = mapping.start // self._size + first
            try:
                answers = reader.dense_verdicts(pgoff, pgoff + len(entries))
                later = self.table.read_densely(base, base + len(entries))
            except OSError as error:
                refusal = f"asking the object: {error.strerror}"
        answered = judge_crumbs(kind, later, answers)
        return encode_runs(blend(is_asked, answered, verdicts), first), refusal

    def _read_object_first(
        self, mapping: Mapping, facts: ObjectFacts, first: int, stop: int
    ) -> Verdicts | None:
        """
        Ask the object about crumbs that a shared mapping has left open before, then read on.

        The page table need not be read before as well: of these classes only a page in the
        page cache can be mapped, and one that was and is not any more was in the page cache
        and not mapped when it was taken away.  A private copy would be another page.
        """
        reader = self.open_object(mapping, facts)
        if isinstance(reader, str):
            return None
        stop = min(stop, first + WINDOW_PAGES)
        pgoff = mapping.offset_bytes // self._size
        base = mapping.start // self._size
        try:
            answers = reader.dense_verdicts(pgoff + first, pgoff + stop)
        except OSError:
            return None
        entries = self.table.read_window(base + first, base + stop)
        found = judge_crumbs("shared", entries, answers)
        runs = self.until_steady(mapping, facts, encode_runs(found, first))
        return Verdicts(facts, runs)


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
