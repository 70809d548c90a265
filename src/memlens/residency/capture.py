"""
The order of reads for one process; what changed meanwhile is read again.

    mappings -> in batches: page table -> objects of what it leaves open -> page table
    -> mappings again; those that changed are read anew, a few times
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError, ProcessGone
from memlens.kernel import features
from memlens.kernel.maps import Mapping, MapsTable, overlaps, parse_maps_table
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import NodeRange, read_node_ranges
from memlens.objects.opener import ANONYMOUS, ObjectFacts, Opener
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.classes import PageClass
from memlens.pages.parts import part_of
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    decode_runs,
    merge_runs,
    select_runs,
    shift_runs,
    window_runs,
)
from memlens.record import Table
from memlens.residency.judge import Batch, Judge
from memlens.residency.objects import Objects
from memlens.residency.places import mapping_slots
from memlens.residency.records import Evidence, NodePages, ProcessMap, Scope, UnknownRun
from memlens.residency.spans import Spans, batches, find_facts, groups
from memlens.residency.tables import (
    Found,
    MappingRows,
    join_rows,
    map_tables,
    process_of,
    sum_pages,
    with_rows,
    without_object,
)
from memlens.residency.verdicts import Verdicts, explain_unknown, object_label
from memlens.scan.machine import Machine, Progress, Stop
from memlens.scan.pagetable import PageTable

# Times that mappings which changed under the scan are read anew.
_ROUNDS = 3
_UNKNOWN = int(PageClass.UNKNOWN)


def map_process(
    pid: int,
    *,
    start: int | None = None,
    stop: int | None = None,
    words: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> ProcessMap:
    """
    Return where every page of a process is.

    >>> import os
    >>> result = map_process(os.getpid())
    >>> sum(mapping.pages for mapping in result.each) == int(result.counts().sum())
    True

    :param pid: a live process, as ``proc`` numbers it.
    :param start: first address to look at, in bytes; rounded down to a page.
    :param stop: address after the last, in bytes; rounded up to a page.
    :param words: whether to keep the raw pagemap words, and slots.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends early.
    :param on_progress: called with pages done and pages in all.
    :param should_stop: asked between pieces; True ends the scan, and the rest is
        ``unknown``.
    :raises ProcessGone: if there is no such process, or it ends or executes another
        program meanwhile.
    :raises AccessDenied: if this user may not read it.
    :raises Unsupported: for a kernel thread, or if ``proc`` is none.
    :raises ValueError: if the range is empty or MEMLENS_DISABLE is malformed.

    Each verdict was true at some moment of the scan, not all at one moment.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    return _map(pid, start, stop, words, machine)


def map_processes(
    pids: Iterable[int], *, proc: str = "/proc", should_stop: Stop | None = None
) -> Iterator[ProcessMap | MemlensError]:
    """
    Yield where every page of each process is, or why that cannot be told.

    >>> import os
    >>> [result.process.pid == os.getpid() for result in map_processes([os.getpid()])]
    [True]

    :param pids: processes, as ``proc`` numbers them.
    :param proc: root of the /proc to read.
    :param should_stop: asked between pieces; True ends the scan.
    :raises ValueError: if MEMLENS_DISABLE is malformed.

    As ``map_process`` of each, but an object is asked once a second for all that map it.
    """
    objects = Objects(is_shared=True)
    for pid in pids:
        # What a map costs is counted for each.
        machine = Machine(proc, should_stop=should_stop)
        if machine.is_over():
            return
        try:
            yield _map(pid, None, None, False, machine, objects)
        except MemlensError as error:
            yield error


def _map(
    pid: int,
    start: int | None,
    stop: int | None,
    words: bool,
    machine: Machine,
    objects: Objects | None = None,
) -> ProcessMap:
    size = machine.page_size_bytes
    low, high = (start or 0) // size, -(-(stop if stop is not None else 1 << 64) // size)
    if low >= high:
        raise ValueError("empty range of addresses")
    with ProcessDir(pid, machine) as process:
        # Before the mappings: a program executed in between leaves this table empty.
        table = PageTable.open(process, machine, keep_words=words)
        try:
            return _Capture(process, table, machine, objects or Objects()).run(low, high)
        except (ProcessGone, EOFError) as error:
            raise process.gone_error() from error
        finally:
            table.close()


@dataclass(slots=True)
class _Capture:
    process: ProcessDir
    table: PageTable
    machine: Machine
    objects: Objects
    notes: list[str] = field(default_factory=list)
    is_complete: bool = True
    _done: int = 0
    _total: int = 0

    def run(self, low: int, high: int) -> ProcessMap:
        origin = self.machine.origin()
        identity = self.process.identity(self.table.pagemap)
        opener = Opener(self.process, self.objects.facts)
        judge = Judge(self.table, opener, self.objects)
        judge.opener.leases.prefetch()
        try:
            found = self._read_all(judge, low, high)
            nodes = list(node_rows(self.table, found, self._nodes()))
        finally:
            judge.opener.leases.close()
            judge.close()
        tables = map_tables(found, origin, self.table.keep_words)
        # The last page that 64 bits can address.
        scope = Scope(low, min(high, (1 << 64) // origin.page_size_bytes))
        return ProcessMap.at(
            origin,
            tables={
                **tables,
                "nodes": Table.of(NodePages, nodes),
                "evidence": Table.of(Evidence, self._evidence(judge)),
            },
            sections={"process": process_of(identity), "scope": scope},
            sums={"pages": sum_pages(tables["mappings"])},
            cost=self.machine.cost(),
            is_complete=self.is_complete,
            notes=(*self.notes, *dict.fromkeys(judge.walking.notes)),
        )

    def _nodes(self) -> list[NodeRange]:
        """Return the nodes to count by; none after a stop, or where frames are hidden."""
        if not self.is_complete or not features.is_pfn_visible():
            return []
        return read_node_ranges(self.machine)

    def _evidence(self, judge: Judge) -> Iterator[Evidence]:
        sources = {
            "pagemap": True,
            "pagemap_scan": judge.table.use_scan,
            "map_files": judge.opener.has_map_files,
            "seek_data": self.machine.may("seek_data"),
            "cachestat": self.machine.may("cachestat"),
            "mincore": self.machine.may("mincore"),
            "smaps": self.machine.may("smaps"),
            "cachewalk": judge.walking.is_usable(),
            "pfns_visible": features.is_pfn_visible(),
        }
        for name, is_available in sources.items():
            yield Evidence(name, is_available, name in self.machine.meter.used)

    def _read_all(self, judge: Judge, low: int, high: int) -> MappingRows:
        before = self.process.read("maps")
        wanted = self._parse(before)
        kept: list[MappingRows] = []
        for attempt in range(_ROUNDS):
            spans = self._spans(wanted, low, high)
            self._total = self._done + int(spans.pages.sum())
            kept = [join_rows([*kept, *self._read_spans(judge, spans)])]
            if not self.is_complete:
                break
            raw = self.process.read("maps")
            if raw == before:
                break
            before = raw
            self._check_alive(raw, kept[0].maps)
            now = self._parse(raw)
            kept[0], wanted = self._changed(kept[0], now, is_last=attempt == _ROUNDS - 1)
            if not len(wanted):
                break
        return kept[0].sorted()

    def _parse(self, raw: bytes) -> MapsTable:
        table = parse_maps_table(raw, f"{self.process.path}/maps")
        # The kernel lets go of the mappings every 4 KiB: one that was joined meanwhile with
        # those before it comes after them, and begins where one of them does.
        later = np.minimum.accumulate(table.start[::-1])[::-1]
        is_joined = np.append(later[1:] <= table.start[:-1], False)[: len(table)]
        return table.take(~is_joined) if is_joined.any() else table

    def _check_alive(self, raw: bytes, kept: MapsTable) -> None:
        """Raise if the mappings are of no memory, or of another than the page table."""
        if len(kept):
            page = kept[0].start // self.table.size
            if not raw or self.table.word(page) is None:
                raise self.process.gone_error()

    def _changed(
        self, kept: MappingRows, now: MapsTable, is_last: bool
    ) -> tuple[MappingRows, MapsTable]:
        """Drop mappings that are no more and return those that took their place."""
        is_gone = now.find(kept.maps) < 0
        gone = np.flatnonzero(is_gone).tolist()
        what = "kept changing" if is_last else "changed or vanished"
        self.notes += [f"{kept.maps[row].name} {what} during the scan" for row in gone]
        if is_last:
            size = self.table.size
            start = (kept.maps.start // np.uint64(size)).tolist()
            found = {row: without_object(kept.found(row), start[row]) for row in gone}
            return with_rows(kept, found), now.take(slice(0))
        lost = kept.maps.take(is_gone)
        kept = kept.take(np.flatnonzero(~is_gone))
        is_new = kept.maps.find(now) < 0
        return kept, now.take(is_new & overlaps(now, lost))

    def _spans(self, mappings: MapsTable, low: int, high: int) -> Spans:
        size = np.uint64(self.table.size)
        base, end = (
            (column // size).astype(np.int64) for column in (mappings.start, mappings.stop)
        )
        first = np.maximum(low - base, 0)
        stop = np.minimum(high, end) - base
        return Spans(mappings, first, stop).take(first < stop)

    def _read_spans(self, judge: Judge, spans: Spans) -> Iterator[MappingRows]:
        labels = [object_label(ANONYMOUS)] * len(spans.mappings.places)
        none = spans.mappings.take(slice(0))
        yield MappingRows(none, labels, EMPTY, np.zeros(1, np.int64), {})
        is_each_alone = self.table.keep_words
        for several in batches(spans):
            facts = find_facts(judge.opener, several.mappings)
            for group in groups(several, facts, is_each_alone=is_each_alone):
                yield self._read_batch(judge, group, facts)

    def _read_batch(
        self, judge: Judge, spans: Spans, facts: Sequence[ObjectFacts]
    ) -> MappingRows:
        is_stopped = not self.is_complete
        batch = Batch(judge, spans, facts, tell=self._progress, is_stopped=is_stopped)
        runs, edges = batch.read()
        if batch.is_stopped:
            self._stop()
        table = spans.mappings
        is_overlay = np.array([one.kind == "overlay" for one in facts], bool)
        # What only its totals settle, or nothing; of an overlay they may settle more.
        has_more = np.logical_or.reduceat(runs.value >= _UNKNOWN, edges[:-1])
        has_more |= is_overlay[table.place] | self.table.keep_words
        special = {}
        for row in np.flatnonzero(has_more).tolist():
            mine = part_of(runs, edges[row], edges[row + 1])
            refusal = batch.refusals.get(row, "")
            verdicts = Verdicts(facts[table.place[row]], mine, refusal, batch.slots)
            special[row] = self._result(judge, table[row], verdicts)
        labels = [object_label(one) for one in facts]
        return with_rows(MappingRows(table, labels, runs, edges, {}), special)

    def _stop(self) -> None:
        if self.is_complete:
            self.is_complete = False
            self.notes.append("stopped early: the rest was not scanned")

    def _progress(self, pages: int) -> None:
        self._done += pages
        self.machine.tell(self._done, self._total)

    def _result(self, judge: Judge, mapping: Mapping, verdicts: Verdicts) -> Found:
        runs = judge.settle(mapping, verdicts)
        words = slots = None
        if self.table.keep_words:
            base = mapping.start // self.table.size
            first, stop = int(runs.first[0]), int(runs.stop[-1])
            words = judge.table.take_words(base + first, base + stop)
            slots = mapping_slots(runs, words, verdicts.slots)
        unknown: tuple[UnknownRun, ...] = ()
        if runs.value.max() > _UNKNOWN:
            unknown = explain_unknown(judge.settler, mapping, runs, verdicts.refusal)
            value = np.minimum(runs.value, np.uint8(_UNKNOWN))
            runs = merge_runs(Runs(runs.first, runs.pages, value))
        return Found(runs, unknown, words, slots)


# Present pages closer than this are read together: a call costs as much as some pages more.
_JOIN_PAGES = 4096


def node_rows(
    table: PageTable, found: MappingRows, nodes: list[NodeRange]
) -> Iterator[NodePages]:
    """
    Yield the present pages of mappings by node; nothing without nodes.

    :param table: the page table that they were read from.
    :param nodes: frames of each node, in order.

    The words are read again, so that pages which left meanwhile are in no node.
    """
    start = (found.maps.start // np.uint64(table.size)).tolist()
    for row, page in enumerate(start if nodes else ()):
        runs = part_of(found.runs, found.edges[row], found.edges[row + 1])
        for node, pages in count_nodes(table, page, runs, nodes).items():
            yield NodePages(page, node, pages)


def count_nodes(
    table: PageTable, start_page: int, runs: Runs, nodes: list[NodeRange]
) -> dict[int, int]:
    """Return the present pages of a mapping by node; nothing where frames are hidden."""
    counts = np.zeros(len(nodes), np.int64)
    present = select_runs(runs, runs.value == PageClass.PRESENT)
    windows = window_runs(shift_runs(present, start_page), _JOIN_PAGES)
    for page, words in table.words(windows):
        low = page - start_page
        piece = shift_runs(clip_runs(present, low, low + len(words)), -low)
        is_asked = decode_runs(piece, len(words), fill=PageClass.UNKNOWN) == PageClass.PRESENT
        counts += _count_frames(words[is_asked], nodes)
    found: dict[int, int] = {}
    for row, pages in zip(nodes, counts.tolist(), strict=True):
        if pages:
            found[row.node] = found.get(row.node, 0) + pages
    return dict(sorted(found.items()))


def _count_frames(words: NDArray[np.uint64], nodes: list[NodeRange]) -> NDArray[np.int64]:
    """Return how many words map a frame of each range, ``(len(nodes),)`` int64."""
    pfns = (words[(words & PM_PRESENT) != 0] & PM_PFN).astype(np.int64)
    # A frame number of 0 is a hidden one.
    pfns = pfns[pfns != 0]
    index = np.searchsorted([row.first for row in nodes], pfns, side="right") - 1
    stops = np.array([row.stop for row in nodes])
    is_inside = (index >= 0) & (pfns < stops[index])
    return np.bincount(index[is_inside], minlength=len(nodes))
