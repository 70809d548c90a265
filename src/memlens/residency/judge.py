"""One mapping: what its page table leaves open, its object answers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.maps import Mapping, MapsTable, Place
from memlens.kernel.pagemap import KERNEL_HALF, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.objects.opener import (
    REPLACED,
    SHMEM,
    SPECIAL,
    VANISHED,
    ObjectFacts,
    Opener,
    device_text,
    internal_device,
)
from memlens.objects.overlay import is_maybe_copied_up
from memlens.pages.arrays import blend, distinct, join_ranges, look_up
from memlens.pages.classes import Entry, PageClass, Reason, Verdict
from memlens.pages.endtoend import EndToEnd
from memlens.pages.parts import part_of, replace_parts
from memlens.pages.runs import (
    Runs,
    clip_runs,
    concat_runs,
    encode_runs,
    fill_runs,
    join_runs,
    merge_runs,
    one_run,
    pick_runs,
    replace_runs,
    restrict_runs,
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
from memlens.residency.answers import PIECE, TRIES, ObjectReader
from memlens.residency.entries import WINDOW_PAGES, PageTable
from memlens.residency.overlays import LayerSettler, MappingWalk
from memlens.residency.sharedanswers import SharedAnswers
from memlens.residency.totals import Settler
from memlens.residency.verdicts import (
    KINDS,
    VERDICT_OF,
    VERDICTS,
    WATCHED,
    Verdicts,
    judge_crumbs,
    judge_entries,
    mapping_kind,
    replace_value,
)
from memlens.residency.walk import Walking
from memlens.scan.machine import Machine, Stopped

# Open pages closer than this are asked about together: a call costs as much as asking about
# some thousand pages more.
JOIN_PAGES = 4096

# Below this there is little to be gained by knowing that an object holds little.
_SPARSE_PAGES = 1 << 16


@dataclass(slots=True)
class MappingReader:
    """
    Reads the mappings of one process.

    :param table: its page table.
    :param opener: opens its objects.
    :param settler: settles by totals.
    :param machine: says which interfaces may be used, and when to stop.
    :param walking: the page-cache walk.
    :param shared: what objects said to others within this scan, None for a scan of one.
    """

    table: PageTable
    opener: Opener
    settler: Settler
    machine: Machine
    walking: Walking
    shared: SharedAnswers | None = None
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
            self._layers = LayerSettler(process, self.settler, self.walking)
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
        kind = mapping_kind(mapping.path, mapping.is_shared, facts)
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
        return MappingWalk(self.walking, self.opener.process.tid, is_overlay)

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
            reader = ObjectReader(backing, self.machine, self.walking)
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

    def read_sparse(self, mapping: Mapping, first: int, stop: int) -> Verdicts | None:
        """
        Read a large range of shared memory that holds little; None if it is not like that.

        What this costs is bounded by what there is.  Where a slot may be, or a page that is
        not mapped here, the walk tells, and the page table is read after it, as for crumbs.
        """
        facts = self.opener.facts(mapping)
        is_shared = mapping.is_shared and facts.kind == "shmem"
        if not is_shared or stop - first < _SPARSE_PAGES or self._is_asked_by_runs(facts):
            return None
        reader = self.open_object(mapping, facts)
        if isinstance(reader, str):
            return None
        pgoff = mapping.offset_bytes // self._size
        inside = pgoff + first, pgoff + stop
        try:
            held = reader.count_sparse(inside[1])
            if held is None:
                return None
            if not self.walking.has_swap():
                runs = self._look_again(mapping, "shared", first, stop)
                mapped = int(runs.pages[runs.value == PageClass.PRESENT].sum())
                is_all = mapped == held == reader.count_sparse(inside[1])
                # All that it holds, in RAM or on swap, is mapped here: the rest is nowhere.
                if is_all and reader.is_within(*inside):
                    runs = replace_value(runs, _ASK, PageClass.NONE)
                    return Verdicts(facts, self.until_steady(mapping, facts, runs))
            answers = reader.walked_verdicts(*inside)
        except OSError:
            return None
        if answers is None:
            return None
        runs = self._look_again(mapping, "shared", first, stop)
        asked = select_runs(runs, runs.value == _ASK)
        runs = replace_runs(runs, restrict_runs(shift_runs(answers, -pgoff), asked))
        return Verdicts(facts, self.until_steady(mapping, facts, runs))

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
    machine: Machine,
    *,
    opener: Opener | None = None,
    keep_words: bool = False,
    shared: SharedAnswers | None = None,
) -> MappingReader:
    """
    Return a reader of a process's mappings; the caller closes it.

    :param machine: says which interfaces may be used, and when to stop.
    :param opener: opens the objects, one of its own if None.
    :param keep_words: whether to keep the raw pagemap words.
    :param shared: what objects said to others within this scan.
    """
    table = PageTable(pagemap, machine, zero_pfn=features.zero_pfn(), keep_words=keep_words)
    return MappingReader(
        table=table,
        opener=opener or Opener(process, None if shared is None else shared.facts),
        settler=Settler(process, machine),
        walking=Walking(machine, keep_words),
        machine=machine,
        shared=shared,
    )


# Many small mappings at once: their pages are laid end to end and looked at as one.
#
# A process may have ten thousand mappings of a few pages each.  Asked one by one, what each
# costs is calls and calculations on a handful of numbers; asked together, the page table is
# read in few calls, and each object answers once for all mappings of it.


# A batch goes through all reads before the next begins: mappings up to so many pages together.
_BATCH_PAGES = 1 << 18
_BATCH_MAPPINGS = 1 << 14

# A gap between mappings up to this is cheaper to scan over than to skip by another call;
# where words are read, each page of a gap costs.
_GAP_PAGES = 1 << 18
_GAP_WORDS = 1 << 9
_ASK, _AGAIN, _EMPTY = int(Verdict.ASK), int(Verdict.AGAIN), int(Entry.EMPTY)
_GONE = (VANISHED, REPLACED)


@dataclass(frozen=True, slots=True)
class Spans:
    """
    Pages ``[first, stop)`` of each of some mappings; a single one is a sequence of one.

    :param mappings: the mappings, in the order of the lines of maps.
    :param first: first page, from the start of the mapping, ``(n,)`` int64.
    :param stop: page after the last, ``(n,)`` int64.
    """

    mappings: MapsTable
    first: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def pages(self) -> NDArray[np.int64]:
        """Return how many pages each is."""
        return self.stop - self.first

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Spans":
        """Return some of them."""
        return Spans(self.mappings.take(rows), self.first[rows], self.stop[rows])


def batches(spans: Spans) -> Iterator[Spans]:
    """
    Yield spans that are to be read together: in the order of their addresses, and apart.

    The kernel lets go of the mappings every 4 KiB of maps, so that a line may overlap those
    before it when mappings were joined meanwhile.
    """
    table = spans.mappings
    apart = np.append(np.flatnonzero(table.start[1:] < table.stop[:-1]) + 1, len(spans))
    held = np.cumsum(spans.pages)
    first = 0
    while first < len(spans):
        before = int(held[first - 1]) if first else 0
        full = int(np.searchsorted(held, before + _BATCH_PAGES, side="right"))
        stop = min(full, first + _BATCH_MAPPINGS, int(apart[np.searchsorted(apart, first + 1)]))
        stop = max(stop, first + 1)
        yield spans.take(slice(first, stop))
        first = stop


def find_facts(opener: Opener, mappings: MapsTable) -> list[ObjectFacts]:
    """
    Return what backs each place of a table; ``SPECIAL`` for one where nothing is mapped.

    It is asked of the first mapping of it that is still there.
    """
    found: list[ObjectFacts] = [SPECIAL] * len(mappings.places)
    if not len(mappings):
        return found
    order = np.argsort(mappings.place, kind="stable")
    edges = np.flatnonzero(np.diff(mappings.place[order])) + 1
    rows, stops = order.tolist(), [*edges.tolist(), len(order)]
    # Nothing else is on the file system of memfds and anonymous shared memory.
    internal = device_text(internal_device())
    first = 0
    for stop in stops:
        number = int(mappings.place[rows[first]])
        if mappings.places[number].device == internal:
            found[number] = SHMEM
            opener.know(mappings.places[number], SHMEM)
            first = stop
            continue
        for row in rows[first:stop]:
            found[number] = opener.facts(mappings[row])
            if found[number].refusal not in _GONE:
                break
        first = stop
    return found


def are_plain(
    reader: MappingReader, spans: Spans, facts: Sequence[ObjectFacts]
) -> NDArray[np.bool_]:
    """
    Return which spans can be read together with others.

    :param facts: what backs each place.
    """
    if reader.table.keep_words or reader.walking.is_eager:
        return np.zeros(len(spans), bool)
    is_plain = np.array([one.kind not in ("overlay", "hugetlb") for one in facts], bool)
    table = spans.mappings
    return is_plain[table.place] & (table.start < np.uint64(KERNEL_HALF))


@dataclass(slots=True)
class Batch:
    """
    Reads several spans together.

    :param reader: of the process.
    :param spans: plain ones, in the order of their addresses.
    :param facts: what backs each place of their table.
    :param is_stopped: whether the caller wanted an end; what is left is ``STOPPED``.
    :param refusals: why the object of a span could not be asked, by its number.
    """

    reader: MappingReader
    spans: Spans
    facts: Sequence[ObjectFacts]
    is_stopped: bool = False
    refusals: dict[int, str] = field(default_factory=dict)
    _kinds: NDArray[np.int64] = field(init=False)
    _row: EndToEnd = field(init=False)
    _shifts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        size = np.uint64(self.reader.table.pagemap.page_size_bytes)
        spans, table = self.spans, self.spans.mappings
        self._kinds = _kind_numbers(table, self.facts)
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
        runs = one_run(0, int(self._row.begins[-1]), Reason.STOPPED)
        if self.is_stopped:
            return self._split(runs)
        try:
            runs = self._look(self._addresses(runs, _GAP_PAGES))
            asked = select_runs(runs, runs.value == _ASK)
            if len(asked):
                # A page that was mapped meanwhile is what the page table says now: that was
                # true at some moment, while the object's answer may be of before or after.
                found = self._ask(self._row.cut(asked))
                now = self._look(self._addresses(asked, JOIN_PAGES))
                moved = select_runs(now, now.value != _ASK)
                runs = replace_runs(runs, found)
                runs = replace_runs(runs, restrict_runs(moved, asked))
        except Stopped:
            self.is_stopped = True
        return self._split(runs)

    def _addresses(self, places: Runs, gap_pages: int) -> list[tuple[int, int]]:
        """Return ranges of address space that cover some places, and no wider gaps."""
        row = self._row
        cut = row.cut(places)
        number = row.range_of(cut.first)
        first = row.first[number] + cut.first - row.begins[number]
        ranges = zip(first.tolist(), (first + cut.pages).tolist(), strict=True)
        most = _GAP_PAGES if self.reader.table.use_scan else _GAP_WORDS
        return list(join_ranges(ranges, min(gap_pages, most)))

    def _look(self, ranges: Sequence[tuple[int, int]]) -> Runs:
        """Return what the page table says of all places in ranges of address space."""
        table, row = self.reader.table, self._row
        parts = []
        for first, stop in ranges:
            begin, end = row.places(np.array([first, stop])).tolist()
            entries = row.lay(table.read_entries(first, stop))
            parts.append(fill_runs(entries, begin, end, _EMPTY))
        entries = row.cut(concat_runs(parts))
        kinds = self._kinds[row.range_of(entries.first)]
        return merge_runs(Runs(entries.first, entries.pages, VERDICTS[kinds, entries.value]))

    def _ask(self, asked: Runs) -> Runs:
        """Return what the objects say, each asked once; ``asked`` is cut by ranges."""
        span = self._row.range_of(asked.first)
        objects = self._objects()[span]
        order = np.argsort(objects, kind="stable")
        edges = np.flatnonzero(np.diff(objects[order])) + 1
        parts = []
        for mine in np.split(order, edges):
            runs = Runs(asked.first[mine], asked.pages[mine], asked.value[mine])
            parts.append(self._ask_object(span[mine], runs))
        return sort_runs(join_runs(parts))

    def _objects(self) -> NDArray[np.int64]:
        """Return a number for the object of each span, the same for the same object."""
        return self.spans.mappings.place.astype(np.int64)

    def _ask_object(self, span: NDArray[np.int64], asked: Runs) -> Runs:
        """
        Return what one object says of runs of places.

        :param span: number of the span of each run.
        """
        shift = self._shifts[span]
        first = asked.first + shift
        windows = _windows(first, asked)
        place = self.spans.mappings.places[self.spans.mappings.place[span[0]]]
        shared = self.reader.shared
        found = None if shared is None else shared.find(place, windows)
        if found is None:
            reader = self._open(span)
            if isinstance(reader, str):
                return self._refuse(span, asked, reader)
            try:
                found = _verdicts(reader, windows, place, shared)
            except OSError as error:
                return self._refuse(span, asked, f"asking the object: {error.strerror}")
        if len(asked) == 1:
            return Runs(found.first - shift, found.pages, found.value)
        number, picked = pick_runs(found, first, asked.pages)
        return Runs(picked.first - shift[number], picked.pages, picked.value)

    def _open(self, span: NDArray[np.int64]) -> ObjectReader | str:
        """Open an object by the first of its mappings that is still there."""
        opened: ObjectReader | str = VANISHED
        for number in dict.fromkeys(span.tolist()):
            mapping = self.spans.mappings[number]
            facts = self.facts[self.spans.mappings.place[number]]
            opened = self.reader.open_object(mapping, facts)
            if opened not in _GONE:
                break
        return opened

    def _refuse(self, span: NDArray[np.int64], asked: Runs, refusal: str) -> Runs:
        self.refusals.update(dict.fromkeys(span.tolist(), refusal))
        value = np.full(len(asked), Reason.NOT_OPENED, np.uint8)
        return Runs(asked.first, asked.pages, value)

    def _split(self, runs: Runs) -> tuple[Runs, NDArray[np.int64]]:
        """Return the runs span by span; what is on the move in one is read again."""
        runs = self._row.cut(runs)
        number = self._row.range_of(runs.first)
        before = self.spans.first - self._row.begins[:-1]
        runs = Runs(runs.first + before[number], runs.pages, runs.value)
        edges = np.searchsorted(number, np.arange(len(self.spans) + 1))
        moving = number[(runs.value == _ASK) | (runs.value == _AGAIN)]
        rows = list(dict.fromkeys(moving.tolist()))
        if not rows:
            return runs, edges
        return replace_parts(runs, edges, {row: self._steady(row, runs, edges) for row in rows})

    def _steady(self, row: int, runs: Runs, edges: NDArray[np.int64]) -> Runs:
        table, mine = self.spans.mappings, part_of(runs, edges[row], edges[row + 1])
        return self._settled(table[row], self.facts[table.place[row]], mine)

    def _settled(self, mapping: Mapping, facts: ObjectFacts, runs: Runs) -> Runs:
        if not self.is_stopped:
            try:
                return self.reader.until_steady(mapping, facts, runs)
            except Stopped:
                self.is_stopped = True
        is_left = (runs.value == _ASK) | (runs.value == _AGAIN)
        value = np.where(is_left, np.uint8(Reason.STOPPED), runs.value)
        return merge_runs(Runs(runs.first, runs.pages, value))


def _verdicts(
    reader: ObjectReader,
    windows: list[tuple[int, int]],
    place: Place,
    shared: SharedAnswers | None,
) -> Runs:
    """Return what an object says of ranges of its pages, and keep it for others."""
    whole = None
    if shared is not None:
        whole = shared.whole(place, reader.backing.size_pages(), windows[-1][1])
    given_at = time.monotonic()
    asked = windows if whole is None else [whole]
    if len(asked) == 1 and asked[0][1] - asked[0][0] <= PIECE:
        [(begin, end)] = asked
        value = reader.dense_verdicts(begin, end)
        if isinstance(value, int):
            found = one_run(begin, end - begin, value)
        else:
            found = encode_runs(value, begin)
    else:
        found = concat_runs([reader.verdicts(begin, end) for begin, end in asked])
        found = Runs(found.first, found.pages, reader.settle(found.value))
    if shared is None or whole is None:
        return found
    shared.keep(place, found, given_at)
    return concat_runs([clip_runs(found, *window) for window in windows])


def _windows(first: NDArray[np.int64], asked: Runs) -> list[tuple[int, int]]:
    """Return ranges that cover runs that begin at other pages, in any order."""
    if len(asked) == 1:
        return [(int(first[0]), int(first[0] + asked.pages[0]))]
    return window_runs(union_runs([Runs(first, asked.pages, asked.value)]), JOIN_PAGES)


def _kind_numbers(table: MapsTable, facts: Sequence[ObjectFacts]) -> NDArray[np.int64]:
    """Return by which row of ``VERDICTS`` to judge each mapping."""
    numbers = np.zeros((2, len(table.places)), np.int64)
    for number in distinct(table.place).tolist():
        path, one = table.places[number].path, facts[number]
        for is_shared in (False, True):
            kind = mapping_kind(path, is_shared, one)
            numbers[int(is_shared), number] = KINDS.index(kind)
    is_mode_shared = np.array([mode[3:4] == "s" for mode in table.modes], np.int64)
    found: NDArray[np.int64] = numbers[is_mode_shared[table.mode], table.place]
    return found
