"""
The only road from mappings to classes.

    found = look(pieces)                           page tables
    found = found.replaced(ask(found.open()))      objects, of what these leave open
    found = found.replaced(look(asked).mapped())   what is mapped by now wins
    sources, one after the other                   of whole mappings: what is still open

Many mappings are looked at as one, their pages laid end to end: asked one by one, ten
thousand of a few pages each cost as many calls and calculations on a handful of numbers.
A lone mapping is a batch of one, and a large one goes in parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.objects.opener import VANISHED, ObjectFacts, Opener
from memlens.pages.arrays import distinct, join_ranges, look_up
from memlens.pages.classes import Entry, PageClass, Reason, Verdict
from memlens.pages.parts import EndToEnd, Piece
from memlens.pages.runs import (
    RunJoiner,
    Runs,
    clip_runs,
    concat_runs,
    fill_runs,
    join_runs,
    merge_runs,
    one_run,
    pick_runs,
    replace_runs,
    select_runs,
    shift_runs,
    sort_runs,
    union_runs,
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
from memlens.residency import overlays
from memlens.residency.answers import TRIES, ObjectReader
from memlens.residency.objects import Objects
from memlens.residency.spans import GONE, Spans
from memlens.residency.verdicts import (
    KINDS,
    VERDICTS,
    Settler,
    Verdicts,
    kind_numbers,
    replace_value,
)
from memlens.residency.walk import Walking
from memlens.scan.machine import Stopped
from memlens.scan.pagetable import WINDOW_PAGES, PageTable

# Open pages closer than this are asked about together: a call costs as much as asking about
# some thousand pages more.
JOIN_PAGES = 4096

# A gap between mappings up to this is cheaper to scan over than to skip by another call;
# where words are read, each page of a gap costs.
_GAP_PAGES = 1 << 18
_GAP_WORDS = 1 << 9

# A large mapping is read so many pages at a time, at first, and at last if it is uniform.
_PART_LEAST = 1 << 18
_PART_MOST = 1 << 24

# Below this there is little to be gained by knowing that an object holds little.
_SPARSE_PAGES = 1 << 16

# Members of enumerations are slow to come by.
_ASK, _AGAIN, _EMPTY = int(Verdict.ASK), int(Verdict.AGAIN), int(Entry.EMPTY)
_SHARED, _NOT_OPENED = KINDS.index("shared"), int(Reason.NOT_OPENED)


@dataclass(slots=True)
class Judge:
    """
    Judges the pages of one process; the caller closes it.

    :param table: its page table.
    :param opener: opens its objects.
    :param objects: what objects said to others within this scan.

    ``settler`` knows the sums of smaps, ``walking`` is the page-cache walk.
    """

    table: PageTable
    opener: Opener
    objects: Objects = field(default_factory=Objects)
    settler: Settler = field(init=False)
    walking: Walking = field(init=False)
    layers: overlays.LayerSettler = field(init=False)

    def __post_init__(self) -> None:
        machine = self.table.machine
        self.settler = Settler(self.opener.process, machine)
        self.walking = Walking(machine, self.table.keep_words)
        self.layers = overlays.LayerSettler(self.settler, self.walking)

    def read(self, mapping: Mapping, first: int, stop: int) -> Verdicts:
        """
        Return a verdict for every page of ``[first, stop)``, from the start of a mapping.

        :raises Stopped: if the scan is to end.
        """
        facts = self.opener.facts(mapping)
        batch = Batch(self, Spans.of(mapping, first, stop), [facts])
        runs, _ = batch.read()
        if batch.is_stopped:
            raise Stopped
        return Verdicts(facts, runs, batch.refusals.get(0, ""), batch.slots)

    def settle(self, mapping: Mapping, verdicts: Verdicts) -> Runs:
        """
        Return the runs with what only a whole mapping can settle settled, source by source.

        :param verdicts: of consecutive pages, of the whole mapping if they are to help.
        """
        runs = verdicts.runs
        covered = int(runs.stop[-1] - runs.first[0]) * self.table.size
        is_whole = covered == mapping.stop - mapping.start
        for source in SOURCES:
            runs = source(self, Asked(mapping, verdicts.facts, runs, is_whole))
        return runs

    def open(self, mapping: Mapping, facts: ObjectFacts) -> ObjectReader | str:
        """Open the object of a mapping; or say why not."""
        return self.objects.open(self.opener, mapping, facts, self.walking)

    def close(self) -> None:
        """Close the object that was asked last."""
        self.objects.close()


@dataclass(slots=True)
class Batch:
    """
    Reads several spans together, or a single one of any kind.

    :param judge: of the process.
    :param spans: in the order of their addresses, plain ones if they are several.
    :param facts: what backs each place of their table.
    :param tell: told how many pages were read, part by part.
    :param is_stopped: whether the caller wanted an end; what is left is ``STOPPED``.
    :param refusals: why the object of a span could not be asked, by its number.
    :param slots: where the object of a single span has swapped pages, if that is wanted.
    """

    judge: Judge
    spans: Spans
    facts: Sequence[ObjectFacts]
    tell: Callable[[int], None] = lambda _pages: None
    is_stopped: bool = False
    refusals: dict[int, str] = field(default_factory=dict)
    slots: SlotRuns = NO_SLOTS
    _kinds: NDArray[np.int64] = field(init=False)
    _row: EndToEnd = field(init=False)
    _shifts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        size = np.uint64(self.judge.table.size)
        spans, table = self.spans, self.spans.mappings
        self._kinds = kind_numbers(table, self.facts, self.judge.settler.is_watched)
        pages = (table.start // size).astype(np.int64)
        begins = np.zeros(len(spans) + 1, np.int64)
        np.cumsum(spans.pages, out=begins[1:])
        self._row = EndToEnd(pages + spans.first, begins)
        # The page of the object is pgoff + (address - start), never the address.
        pgoff = (table.offset_bytes // size).astype(np.int64)
        self._shifts = pgoff + spans.first - begins[:-1]

    def read(self) -> tuple[Runs, NDArray[np.int64]]:
        """
        Return the verdicts of all spans, one after the other, and where those of each begin.

        :return: runs, page numbers from the start of the mapping, and ``(n + 1,)`` int64.
        :raises EOFError: if the page table has vanished.
        """
        total = int(self._row.begins[-1])
        if self.spans.is_of_kernel:
            value = int(VERDICTS[self._kinds[0], Entry.OUTSIDE])
            return self._split(one_run(0, total, value))
        joiner, done, part = RunJoiner(), 0, _PART_LEAST
        try:
            runs = None if self.is_stopped else self._read_sparse()
            while not self.is_stopped and done < total:
                if runs is None:
                    self.judge.table.machine.check_stop()
                    found = self._first_look(done, min(done + part, total))
                    runs = self._steady(self._judged(found, self._ask))
                joiner.add(runs)
                self.tell(int(runs.stop[-1]) - done)
                done, runs = int(runs.stop[-1]), None
                # Vast and uniform mappings go in large parts, others as they come.
                part = min(part * 2, _PART_MOST)
        except Stopped:
            self.is_stopped = True
        if done < total:
            joiner.add(one_run(done, total - done, Reason.STOPPED))
        return self._split(joiner.finish())

    def told(self, runs: Runs, answers: Runs) -> Runs:
        """
        Return the verdicts of a single span with other answers of its object.

        :param runs: page numbers from the start of the mapping, as those of the answers.
        """
        first = int(self.spans.first[0])
        value = np.full(len(answers), _ASK, np.uint8)
        runs = replace_runs(runs, Runs(answers.first, answers.pages, value))
        said, found = shift_runs(answers, -first), Piece(shift_runs(runs, -first))
        return shift_runs(
            self._steady(self._judged(found, lambda asked: asked.told(said))), first
        )

    def _judged(self, found: Piece, ask: Callable[[Piece], Piece]) -> Piece:
        """
        Return a piece with what objects say, but for what is mapped by now.

        That was true at some moment, while the object's answer may be of before or after.
        """
        asked = found.open()
        if asked.is_empty():
            return found
        try:
            found = found.replaced(ask(asked))
            return found.replaced(self._look(asked).mapped())
        except Stopped:
            self.is_stopped = True
            return found

    def _steady(self, found: Piece) -> Runs:
        """Read pages on the move again, a few times."""
        runs = found.runs()
        for _ in range(TRIES):
            again = select_runs(runs, runs.value == _AGAIN)
            if not len(again) or self.is_stopped:
                break
            fresh = self._judged(self._look(Piece(again)), self._ask)
            runs = replace_runs(runs, fresh.runs())
        if self.is_stopped:
            runs = replace_value(runs, _ASK, Reason.STOPPED)
        return replace_value(
            runs, _AGAIN, Reason.STOPPED if self.is_stopped else Reason.TRANSIT
        )

    # Page tables

    def _first_look(self, begin: int, end: int) -> Piece:
        """
        Return what the page table says of places, or of as many of a single span as it can.

        Where a shared mapping is in crumbs its object is asked before, and about everything.
        The page table need not be read before as well: of these classes only a page in the
        page cache can be mapped, and one that was and is not any more was in the page cache
        and not mapped when it was taken away.  A private copy would be another page.
        """
        table = self.judge.table
        if len(self.spans) > 1:
            return self._look(Piece(one_run(begin, end - begin, _ASK)))
        if self.facts[self.spans.mappings.place[0]].kind == "hugetlb":
            # Words, which are faster where runs are short, do not show poison of huge pages.
            table.is_crumbled = False
        kind, shift = int(self._kinds[0]), int(self._row.first[0])
        if table.is_crumbled and kind == _SHARED and not self._is_by_runs():
            return Piece(np.full(min(end - begin, WINDOW_PAGES), _ASK, np.uint8), begin)
        entries, stop = table.read_some(shift + begin, shift + end)
        if isinstance(entries, Runs):
            found = clip_runs(shift_runs(entries, -shift), begin, stop - shift)
            return Piece(self._judge_entries(fill_runs(found, begin, stop - shift, _EMPTY)))
        piece = Piece(look_up(VERDICTS[kind], entries), begin)
        return Piece(piece.runs()) if self._is_by_runs() else piece

    def _look(self, asked: Piece) -> Piece:
        """Return what the page table says now of the places of a piece."""
        table, row = self.judge.table, self._row
        if not isinstance(asked.values, Runs):
            first = int(row.first[0]) + asked.first
            entries = table.read_window(first, first + len(asked.values))
            return asked.told(look_up(VERDICTS[self._kinds[0]], entries))
        places, parts = asked.values, []
        is_all = len(places) == 1 and int(places.pages[0]) == int(row.begins[-1])
        for first, stop in self._addresses(places, _GAP_PAGES if is_all else JOIN_PAGES):
            begin, end = row.places(np.array([first, stop])).tolist()
            laid = row.lay(table.entries([(first, stop)]))
            parts.append(fill_runs(laid, begin, end, _EMPTY))
        found = self._judge_entries(row.cut(concat_runs(parts)))
        return Piece(found) if is_all else asked.told(found)

    def _judge_entries(self, entries: Runs) -> Runs:
        kinds = self._kinds[self._row.range_of(entries.first)]
        value = VERDICTS[kinds, entries.value]
        return merge_runs(Runs(entries.first, entries.pages, value))

    def _addresses(self, places: Runs, gap_pages: int) -> list[tuple[int, int]]:
        """Return ranges of address space that cover some places, and no wider gaps."""
        row = self._row
        cut = row.cut(places)
        number = row.range_of(cut.first)
        first = row.first[number] + cut.first - row.begins[number]
        ranges = zip(first.tolist(), (first + cut.pages).tolist(), strict=True)
        most = _GAP_PAGES if self.judge.table.use_scan else _GAP_WORDS
        return list(join_ranges(ranges, min(gap_pages, most)))

    # Objects

    def _is_by_runs(self) -> bool:
        """Return whether the object of a single span is asked by runs, however short."""
        kind = self.facts[self.spans.mappings.place[0]].kind
        return kind in ("overlay", "hugetlb") or self.judge.walking.is_eager

    def _read_sparse(self) -> Runs | None:
        """
        Read a single large span of shared memory that holds little; None if it is not so.

        What this costs is bounded by what there is.  Where a slot may be, or a page that is
        not mapped here, the walk tells, and the page table is read after it, as for crumbs.
        """
        total, judge = int(self._row.begins[-1]), self.judge
        mapping = self.spans.mappings[0]
        facts = self.facts[self.spans.mappings.place[0]]
        is_shared = mapping.is_shared and facts.kind == "shmem"
        is_large = len(self.spans) == 1 and total >= _SPARSE_PAGES
        if not is_shared or not is_large or self._is_by_runs():
            return None
        reader = judge.open(mapping, facts)
        if isinstance(reader, str):
            return None
        shift = int(self._shifts[0])
        found = Piece(one_run(0, total, _ASK))
        try:
            held = reader.count_sparse(shift + total)
            if held is None:
                return None
            if not judge.walking.has_swap():
                found = self._look(found)
                runs = found.runs()
                mapped = int(runs.pages[runs.value == PageClass.PRESENT].sum())
                is_all = mapped == held == reader.count_sparse(shift + total)
                # All that it holds, in RAM or on swap, is mapped here: the rest is nowhere.
                if is_all and reader.is_within(shift, shift + total):
                    return self._steady(Piece(replace_value(runs, _ASK, PageClass.NONE)))
            said = reader.walked_verdicts(shift, shift + total)
        except OSError:
            return None
        if said is None:
            return None
        answers = shift_runs(said, -shift)
        return self._steady(self._judged(found, lambda asked: asked.told(answers)))

    def _ask(self, asked: Piece) -> Piece:
        """Return what the objects say, each asked once."""
        if not isinstance(asked.values, Runs):
            return self._ask_densely(asked, len(asked.values))
        cut = self._row.cut(asked.values)
        span = self._row.range_of(cut.first)
        objects = self.spans.mappings.place.astype(np.int64)[span]
        order = np.argsort(objects, kind="stable")
        edges = np.flatnonzero(np.diff(objects[order])) + 1
        parts = []
        for mine in np.split(order, edges):
            runs = Runs(cut.first[mine], cut.pages[mine], cut.value[mine])
            parts.append(self._ask_object(span[mine], runs))
        return Piece(sort_runs(join_runs(parts)))

    def _ask_densely(self, asked: Piece, pages: int) -> Piece:
        span = np.zeros(1, np.int64)
        reader, first = self._open(span), int(self._shifts[0]) + asked.first
        value: int | NDArray[np.uint8] = _NOT_OPENED
        if isinstance(reader, str):
            self._refuse(span, reader)
        else:
            try:
                value = reader.dense_verdicts(first, first + pages)
            except OSError as error:
                self._refuse(span, f"asking the object: {error.strerror}")
        return asked.told(np.full(pages, value, np.uint8) if isinstance(value, int) else value)

    def _ask_object(self, span: NDArray[np.int64], asked: Runs) -> Runs:
        """
        Return what one object says of runs of places.

        :param span: number of the span of each run.
        """
        table, judge = self.spans.mappings, self.judge
        place, facts = table.places[table.place[span[0]]], self.facts[table.place[span[0]]]
        if facts.kind == "overlay":
            shift = int(self.spans.first[0])
            pages = shift_runs(asked, shift)
            copied = judge.layers.copied_up(table[0], pages)
            if copied is not None:
                return shift_runs(copied, -shift)
        shift_of = self._shifts[span]
        first = asked.first + shift_of
        windows = _windows(first, asked)
        found = judge.objects.answers(place, windows, lambda: self._open(span))
        if isinstance(found, str):
            self._refuse(span, found)
            return Runs(asked.first, asked.pages, np.full(len(asked), _NOT_OPENED, np.uint8))
        if judge.walking.is_eager:
            self._take_slots(judge.objects.take_slots(), asked)
        if len(asked) == 1:
            return Runs(found.first - shift_of, found.pages, found.value)
        number, picked = pick_runs(found, first, asked.pages)
        return Runs(picked.first - shift_of[number], picked.pages, picked.value)

    def _take_slots(self, found: SlotRuns, asked: Runs) -> None:
        """Keep where pages of the object of a single span are, in place of before."""
        first = int(self.spans.first[0])
        pages = shift_runs(asked, first)
        found = restrict_slots(shift_slots(found, first - int(self._shifts[0])), pages)
        self.slots = concat_slots([without_pages(self.slots, pages), found])

    def _open(self, span: NDArray[np.int64]) -> ObjectReader | str:
        """Open an object by the first of its mappings that is still there."""
        opened: ObjectReader | str = VANISHED
        for number in dict.fromkeys(span.tolist()):
            mapping = self.spans.mappings[number]
            facts = self.facts[self.spans.mappings.place[number]]
            opened = self.judge.open(mapping, facts)
            if opened not in GONE:
                break
        return opened

    def _refuse(self, span: NDArray[np.int64], refusal: str) -> None:
        for number in distinct(span).tolist():
            self.refusals.setdefault(number, refusal)

    def _split(self, runs: Runs) -> tuple[Runs, NDArray[np.int64]]:
        """Return the runs span by span, and where those of each begin."""
        runs = self._row.cut(runs)
        number = self._row.range_of(runs.first)
        before = self.spans.first - self._row.begins[:-1]
        runs = Runs(runs.first + before[number], runs.pages, runs.value)
        return runs, np.searchsorted(number, np.arange(len(self.spans) + 1))


def _windows(first: NDArray[np.int64], asked: Runs) -> list[tuple[int, int]]:
    """Return ranges that cover runs that begin at other pages, in any order."""
    if len(asked) == 1:
        return [(int(first[0]), int(first[0] + asked.pages[0]))]
    return window_runs(union_runs([Runs(first, asked.pages, asked.value)]), JOIN_PAGES)


# Sources are asked about a whole mapping: each settles what it can of what is still open.


class Asked(NamedTuple):
    """Verdicts of consecutive pages of a mapping, or of the whole."""

    mapping: Mapping
    facts: ObjectFacts
    runs: Runs
    is_whole: bool


def _by_layer(judge: Judge, asked: Asked) -> Runs:
    """Settle what an overlay leaves open, or says wrong of a layer on tmpfs."""
    mapping, facts, runs, is_whole = asked
    if facts.kind != "overlay" or not judge.layers.is_asked(mapping, runs):
        return runs
    reader = judge.open(mapping, facts)
    if isinstance(reader, str):
        return runs
    return judge.layers.settle(mapping, runs, reader.backing, is_whole)


def _by_totals(judge: Judge, asked: Asked) -> Runs:
    """Settle what the sums of smaps decide."""
    return judge.settler.settle(asked.mapping, asked.facts.kind, asked.runs, asked.is_whole)


def _by_mapping(judge: Judge, asked: Asked) -> Runs:
    """Walk the page cache of what could not be opened: by the mapping nothing is."""
    mapping, facts, runs, _ = asked
    refused = select_runs(runs, runs.value == Reason.NOT_OPENED)
    if not len(refused):
        return runs
    tid, is_overlay = judge.opener.process.tid, facts.kind == "overlay"
    found = overlays.MappingWalk(judge.walking, tid, is_overlay).verdicts(mapping, refused)
    if not len(found):
        return runs
    spans = Spans.of(mapping, int(runs.first[0]), int(runs.stop[-1]))
    return Batch(judge, spans, [facts]).told(runs, found)


SOURCES: tuple[Callable[[Judge, Asked], Runs], ...] = (_by_layer, _by_totals, _by_mapping)
