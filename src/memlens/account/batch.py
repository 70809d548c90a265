"""
Many small mappings at once: their pages are laid end to end and looked at as one.

A process may have ten thousand mappings of a few pages each.  Asked one by one, what each
costs is calls and calculations on a handful of numbers; asked together, the page table is
read in few calls, and each object answers once for all mappings of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.follow import Stopped
from memlens.account.mapping import JOIN_PAGES, KERNEL_HALF, MappingReader
from memlens.account.objects import ObjectReader
from memlens.account.stretches import join_ranges
from memlens.account.verdicts import KINDS, VERDICTS, Verdicts, mapping_kind
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import REPLACED, VANISHED, ObjectFacts
from memlens.pages.classes import Entry, Reason, Verdict
from memlens.pages.endtoend import EndToEnd, lay_end_to_end
from memlens.pages.runs import (
    Runs,
    concat_runs,
    fill_runs,
    merge_runs,
    one_run,
    pick_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    sort_runs,
    union_runs,
    window_runs,
)

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
