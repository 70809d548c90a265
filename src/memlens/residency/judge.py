"""One mapping: what its page table leaves open, its object answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import KERNEL_HALF, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.objects.opener import REPLACED, VANISHED, ObjectFacts, Opener
from memlens.objects.overlay import is_maybe_copied_up
from memlens.pages.arrays import blend, join_ranges, look_up
from memlens.pages.classes import Entry, Reason, Verdict
from memlens.pages.endtoend import EndToEnd, lay_end_to_end
from memlens.pages.runs import (
    Runs,
    concat_runs,
    encode_runs,
    fill_runs,
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
from memlens.residency.answers import TRIES, ObjectReader
from memlens.residency.entries import WINDOW_PAGES, PageTable
from memlens.residency.overlays import LayerSettler, MappingWalk
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


@dataclass(slots=True)
class MappingReader:
    """
    Reads the mappings of one process.

    :param table: its page table.
    :param opener: opens its objects.
    :param settler: settles by totals.
    :param machine: says which interfaces may be used, and when to stop.
    :param walking: the page-cache walk.
    """

    table: PageTable
    opener: Opener
    settler: Settler
    machine: Machine
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
) -> MappingReader:
    """
    Return a reader of a process's mappings; the caller closes it.

    :param machine: says which interfaces may be used, and when to stop.
    :param opener: opens the objects, one of its own if None.
    :param keep_words: whether to keep the raw pagemap words.
    """
    table = PageTable(pagemap, machine, zero_pfn=features.zero_pfn(), keep_words=keep_words)
    return MappingReader(
        table=table,
        opener=opener or Opener(process),
        settler=Settler(process, machine),
        walking=Walking(machine, keep_words),
        machine=machine,
    )


# Many small mappings at once: their pages are laid end to end and looked at as one.
#
# A process may have ten thousand mappings of a few pages each.  Asked one by one, what each
# costs is calls and calculations on a handful of numbers; asked together, the page table is
# read in few calls, and each object answers once for all mappings of it.


# A batch goes through all reads before the next begins: mappings up to so many pages together.
_BATCH_PAGES = 1 << 18
_BATCH_MAPPINGS = 2000

# A gap between mappings up to this is cheaper to scan over than to skip by another call;
# where words are read, each page of a gap costs.
_GAP_PAGES = 1 << 18
_GAP_WORDS = 1 << 9
_ASK, _AGAIN, _EMPTY = int(Verdict.ASK), int(Verdict.AGAIN), int(Entry.EMPTY)
_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_GONE = (VANISHED, REPLACED)


class Span(NamedTuple):
    """Pages ``[first, stop)`` of a mapping."""

    mapping: Mapping
    first: int
    stop: int


def batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """
    Yield spans that are to be read together: in the order of their addresses, and apart.

    The kernel lets go of the mappings every 4 KiB of maps, so that a line may overlap those
    before it when mappings were joined meanwhile.
    """
    batch: list[Span] = []
    pages = 0
    for span in spans:
        length = span.stop - span.first
        is_full = pages + length > _BATCH_PAGES or len(batch) >= _BATCH_MAPPINGS
        if batch and (is_full or span.mapping.start < batch[-1].mapping.stop):
            yield batch
            batch, pages = [], 0
        batch.append(span)
        pages += length
    if batch:
        yield batch


def is_plain(reader: MappingReader, span: Span, facts: ObjectFacts) -> bool:
    """Return whether a span can be read together with others."""
    is_asked_alone = reader.table.keep_words or reader.walking.is_eager
    is_user_half = span.mapping.start < KERNEL_HALF
    return is_user_half and not is_asked_alone and facts.kind not in ("overlay", "hugetlb")


@dataclass(slots=True)
class Batch:
    """
    Reads several spans together.

    :param reader: of the process.
    :param spans: plain ones, in the order of their addresses.
    :param facts: what backs each.
    :param is_stopped: whether the caller wanted an end; what is left is ``STOPPED``.
    """

    reader: MappingReader
    spans: Sequence[Span]
    facts: Sequence[ObjectFacts]
    is_stopped: bool = False
    _kinds: NDArray[np.int64] = field(init=False)
    _row: EndToEnd = field(init=False)
    _shifts: NDArray[np.int64] = field(init=False)
    _refusals: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.reader.table.pagemap.page_size_bytes
        self._kinds = np.array(
            [
                _KIND_NUMBERS[mapping_kind(span.mapping, facts)]
                for span, facts in zip(self.spans, self.facts, strict=True)
            ]
        )
        pages = [span.mapping.start // size for span in self.spans]
        self._row = lay_end_to_end(
            [(a + one.first, a + one.stop) for a, one in zip(pages, self.spans, strict=True)]
        )
        # The page of the object is pgoff + (address - start), never the address.
        begins = [one.mapping.offset_bytes // size + one.first for one in self.spans]
        self._shifts = np.array(begins) - self._row.begins[:-1]

    def read(self) -> Iterator[Verdicts]:
        """
        Yield the verdicts of one span after the other.

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
        return sort_runs(_join(parts))

    def _objects(self) -> NDArray[np.int64]:
        """Return a number for the object of each span, the same for the same object."""
        numbers: dict[tuple[object, ...], int] = {}
        return np.array(
            [
                numbers.setdefault((one.device, one.inode, one.path, facts.kind), len(numbers))
                for one, facts in zip(
                    (span.mapping for span in self.spans), self.facts, strict=True
                )
            ]
        )

    def _ask_object(self, span: NDArray[np.int64], asked: Runs) -> Runs:
        """
        Return what one object says of runs of places.

        :param span: number of the span of each run.
        """
        reader = self._open(span)
        if isinstance(reader, str):
            return self._refuse(span, asked, reader)
        shift = self._shifts[span]
        first = asked.first + shift
        try:
            found = concat_runs(
                [reader.verdicts(begin, end) for begin, end in _windows(first, asked)]
            )
            found = Runs(found.first, found.pages, reader.settle(found.value))
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
            opened = self.reader.open_object(self.spans[number].mapping, self.facts[number])
            if opened not in _GONE:
                break
        return opened

    def _refuse(self, span: NDArray[np.int64], asked: Runs, refusal: str) -> Runs:
        self._refusals.update(dict.fromkeys(span.tolist(), refusal))
        value = np.full(len(asked), Reason.NOT_OPENED, np.uint8)
        return Runs(asked.first, asked.pages, value)

    def _split(self, runs: Runs) -> Iterator[Verdicts]:
        """Yield the runs of each span; what is on the move there is read again."""
        runs = self._row.cut(runs)
        number = self._row.range_of(runs.first)
        before = np.array([span.first for span in self.spans]) - self._row.begins[:-1]
        runs = Runs(runs.first + before[number], runs.pages, runs.value)
        edges = np.searchsorted(number, np.arange(len(self.spans) + 1)).tolist()
        is_open = np.logical_or.reduceat(runs.value >= _ASK, edges[:-1]).tolist()
        for index, span in enumerate(self.spans):
            low, high = edges[index], edges[index + 1]
            part = slice(low, high)
            mine = Runs(runs.first[part], runs.pages[part], runs.value[part])
            if is_open[index]:
                mine = self._settled(span.mapping, self.facts[index], mine)
            elif high - low == 1:
                mine = _shared_run(span.first, span.stop - span.first, int(mine.value[0]))
            yield Verdicts(self.facts[index], mine, self._refusals.get(index, ""))

    def _settled(self, mapping: Mapping, facts: ObjectFacts, runs: Runs) -> Runs:
        if not self.is_stopped:
            try:
                return self.reader.until_steady(mapping, facts, runs)
            except Stopped:
                self.is_stopped = True
        is_left = (runs.value == _ASK) | (runs.value == _AGAIN)
        value = np.where(is_left, np.uint8(Reason.STOPPED), runs.value)
        return merge_runs(Runs(runs.first, runs.pages, value))


def _windows(first: NDArray[np.int64], asked: Runs) -> list[tuple[int, int]]:
    """Return ranges that cover runs that begin at other pages, in any order."""
    if len(asked) == 1:
        return [(int(first[0]), int(first[0] + asked.pages[0]))]
    return window_runs(union_runs([Runs(first, asked.pages, asked.value)]), JOIN_PAGES)


def _join(parts: Sequence[Runs]) -> Runs:
    """Put runs together that are in no order."""
    return Runs(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.value for part in parts]),
    )


@lru_cache(maxsize=1024)
def _shared_run(first: int, pages: int, value: int) -> Runs:
    """Return one run, the same object each time: of small mappings many are alike."""
    runs = one_run(first, pages, value)
    for column in (runs.first, runs.pages, runs.value):
        column.flags.writeable = False
    return runs
