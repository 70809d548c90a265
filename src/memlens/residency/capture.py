"""
The order of reads for one process; what changed meanwhile is read again.

    mappings -> in batches: page table -> objects of what it leaves open -> page table
    -> mappings again; those that changed are read anew, a few times
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import ProcessGone
from memlens.kernel import features
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import NodeRange, read_node_ranges
from memlens.objects.opener import ObjectFacts
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.classes import PageClass, Reason
from memlens.pages.runs import (
    RunJoiner,
    Runs,
    clip_runs,
    decode_runs,
    merge_runs,
    one_run,
    select_runs,
    shift_runs,
    window_runs,
)
from memlens.pages.slotruns import concat_slots
from memlens.residency.judge import Batch, MappingReader, Span, batches, is_plain, make_reader
from memlens.residency.places import mapping_slots
from memlens.residency.records import Kernel, MappingPages, Process, ProcessMap, UnknownRun
from memlens.residency.verdicts import Verdicts, explain_unknown, object_label, without_object
from memlens.scan.machine import Machine, Progress, Stopped

# A large mapping is read by itself, at first so many pages at a time.
_PART_LEAST = 1 << 18
_PART_MOST = 1 << 24

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
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ProcessMap:
    """
    Return where every page of a process is.

    >>> import os
    >>> result = map_process(os.getpid())
    >>> sum(mapping.pages for mapping in result.mappings) == int(result.counts().sum())
    True

    :param pid: a live process, as ``proc`` numbers it.
    :param start: first address to look at, in bytes; rounded down to a page.
    :param stop: address after the last, in bytes; rounded up to a page.
    :param words: whether to keep the raw pagemap words.
    :param proc: root of the /proc to read.
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
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop)
    size = machine.page_size_bytes
    low, high = (start or 0) // size, -(-(stop if stop is not None else 1 << 64) // size)
    if low >= high:
        raise ValueError("empty range of addresses")
    with ProcessDir(pid, machine) as process:
        # Before the mappings: a program executed in between leaves this table empty.
        pagemap = Pagemap(process.open("pagemap"), machine, f"{process.path}/pagemap")
        try:
            capture = _Capture(process, pagemap, words, machine)
            return capture.run(low, high)
        except (ProcessGone, EOFError) as error:
            raise process.gone_error() from error
        finally:
            pagemap.close()


@dataclass(slots=True)
class _Capture:
    process: ProcessDir
    pagemap: Pagemap
    keep_words: bool
    machine: Machine
    notes: list[str] = field(default_factory=list)
    is_complete: bool = True
    _done: int = 0
    _total: int = 0

    def run(self, low: int, high: int) -> ProcessMap:
        identity = self.process.identity(self.pagemap)
        reader = make_reader(
            self.process, self.pagemap, self.machine, keep_words=self.keep_words
        )
        reader.opener.leases.prefetch()
        try:
            found = self._read_all(reader, low, high)
            results = add_nodes(self.pagemap, found, self._nodes())
        finally:
            reader.opener.leases.close()
            reader.close()
        return ProcessMap(
            kernel=Kernel(os.uname().release, self.pagemap.page_size_bytes),
            process=Process(identity.pid, identity.name, identity.cmdline, identity.started_at),
            evidence=self._evidence(reader),
            mappings=tuple(results),
            cost=self.machine.cost(),
            is_complete=self.is_complete,
            notes=(*self.notes, *dict.fromkeys(reader.walking.notes)),
            used=tuple(sorted(self.machine.meter.used)),
        )

    def _nodes(self) -> list[NodeRange]:
        """Return the nodes to count by; none after a stop, or where frames are hidden."""
        if not self.is_complete or not features.is_pfn_visible():
            return []
        return read_node_ranges(self.machine)

    def _evidence(self, reader: MappingReader) -> dict[str, bool]:
        return {
            "pagemap": True,
            "pagemap_scan": reader.table.use_scan,
            "map_files": reader.opener.has_map_files,
            "seek_data": self.machine.may("seek_data"),
            "cachestat": self.machine.may("cachestat"),
            "mincore": self.machine.may("mincore"),
            "smaps": self.machine.may("smaps"),
            "cachewalk": reader.walking.is_usable(),
            "pfns_visible": features.is_pfn_visible(),
        }

    def _read_all(self, reader: MappingReader, low: int, high: int) -> list[MappingPages]:
        before = self.process.read("maps")
        wanted = self._parse(before)
        kept: dict[Mapping, MappingPages] = {}
        for attempt in range(_ROUNDS):
            spans = self._spans(wanted, low, high)
            self._total = self._done + sum(span.stop - span.first for span in spans)
            for result, mapping in self._read_spans(reader, spans):
                kept[mapping] = result
            if not self.is_complete:
                break
            raw = self.process.read("maps")
            if raw == before:
                break
            before = raw
            self._check_alive(raw, kept)
            wanted = self._changed(kept, self._parse(raw), is_last=attempt == _ROUNDS - 1)
            if not wanted:
                break
        return sorted(kept.values(), key=lambda mapping: mapping.start)

    def _parse(self, raw: bytes) -> list[Mapping]:
        return parse_maps(raw, f"{self.process.path}/maps")

    def _check_alive(self, raw: bytes, kept: Iterable[Mapping]) -> None:
        """Raise if the mappings are of no memory, or of another than the page table."""
        for mapping in kept:
            page = mapping.start // self.pagemap.page_size_bytes
            if not raw or not len(self.pagemap.read_words(page, 1)):
                raise self.process.gone_error()
            return

    def _changed(
        self, kept: dict[Mapping, MappingPages], now: list[Mapping], is_last: bool
    ) -> list[Mapping]:
        """Drop mappings that are no more and return those that took their place."""
        current = set(now)
        gone = [mapping for mapping in kept if mapping not in current]
        if is_last:
            for mapping in gone:
                self.notes.append(f"{mapping.name} kept changing during the scan")
                kept[mapping] = without_object(kept[mapping])
            return []
        for mapping in gone:
            self.notes.append(f"{mapping.name} changed or vanished during the scan")
            del kept[mapping]
        return [
            mapping
            for mapping in now
            if mapping not in kept
            and any(mapping.start < old.stop and old.start < mapping.stop for old in gone)
        ]

    def _spans(self, mappings: Iterable[Mapping], low: int, high: int) -> list[Span]:
        size = self.pagemap.page_size_bytes
        spans = []
        for mapping in mappings:
            base = mapping.start // size
            first = max(low - base, 0)
            stop = min(high - base, (mapping.stop - mapping.start) // size)
            if first < stop:
                spans.append(Span(mapping, first, stop))
        return spans

    def _read_spans(
        self, reader: MappingReader, spans: list[Span]
    ) -> Iterator[tuple[MappingPages, Mapping]]:
        for several in batches(spans):
            facts = [reader.opener.facts(span.mapping) for span in several]
            plain: list[tuple[Span, ObjectFacts]] = []
            others: list[tuple[Span, ObjectFacts]] = []
            for pair in zip(several, facts, strict=True):
                (plain if is_plain(reader, *pair) else others).append(pair)
            if len(plain) == 1:
                others, plain = [*plain, *others], []
            if plain:
                yield from self._read_batch(reader, plain)
            for span, _ in others:
                yield self._result(reader, span, self._read_alone(reader, span)), span.mapping

    def _read_batch(
        self, reader: MappingReader, pairs: list[tuple[Span, ObjectFacts]]
    ) -> Iterator[tuple[MappingPages, Mapping]]:
        spans = [span for span, _ in pairs]
        facts = [found for _, found in pairs]
        batch = Batch(reader, spans, facts, is_stopped=not self.is_complete)
        for span, verdicts in zip(spans, batch.read(), strict=True):
            yield self._result(reader, span, verdicts), span.mapping
        if batch.is_stopped:
            self._stop()
        else:
            self._progress(sum(span.stop - span.first for span in spans))

    def _read_alone(self, reader: MappingReader, span: Span) -> Verdicts:
        joiner, slots = RunJoiner(), []
        facts, refusal = reader.opener.facts(span.mapping), ""
        first, part = span.first, _PART_LEAST
        while first < span.stop:
            try:
                self.check_stop()
                end = min(first + part, span.stop)
                verdicts = reader.read_part(span.mapping, first, end)
            except Stopped:
                self._stop()
                joiner.add(one_run(first, span.stop - first, Reason.STOPPED))
                break
            facts, refusal = verdicts.facts, refusal or verdicts.refusal
            stop = int(verdicts.runs.stop[-1])
            joiner.add(verdicts.runs)
            slots.append(verdicts.slots)
            self._progress(stop - first)
            # Vast and uniform mappings go in large parts, others as they come.
            part = min(part * 2, _PART_MOST)
            first = stop
        return Verdicts(facts, joiner.finish(), refusal, concat_slots(slots))

    def check_stop(self) -> None:
        """Raise ``Stopped`` once the scan was ended, or if the caller wants it to."""
        if not self.is_complete:
            raise Stopped
        self.machine.check_stop()

    def _stop(self) -> None:
        if self.is_complete:
            self.is_complete = False
            self.notes.append("stopped early: the rest was not scanned")

    def _progress(self, pages: int) -> None:
        self._done += pages
        self.machine.tell(self._done, self._total)

    def _result(self, reader: MappingReader, span: Span, verdicts: Verdicts) -> MappingPages:
        mapping, facts = span.mapping, verdicts.facts
        runs = reader.settle(mapping, verdicts)
        words = slots = None
        if self.keep_words:
            base = mapping.start // self.pagemap.page_size_bytes
            words = reader.table.take_words(base + span.first, base + span.stop)
            slots = mapping_slots(runs, words, verdicts.slots)
        unknown: tuple[UnknownRun, ...] = ()
        if runs.value.max() > _UNKNOWN:
            unknown = explain_unknown(reader.settler, mapping, runs, verdicts.refusal)
            value = np.minimum(runs.value, np.uint8(_UNKNOWN))
            runs = merge_runs(Runs(runs.first, runs.pages, value))
        return MappingPages(
            start=mapping.start,
            stop=mapping.stop,
            permissions=mapping.permissions,
            offset_bytes=mapping.offset_bytes,
            device=mapping.device,
            inode=mapping.inode,
            path=mapping.path,
            object=object_label(facts),
            page_size_bytes=self.pagemap.page_size_bytes,
            runs=runs,
            unknown=unknown,
            words=words,
            slots=slots,
        )


# Present pages closer than this are read together: a call costs as much as some pages more.
_JOIN_PAGES = 4096


def add_nodes(
    pagemap: Pagemap, mappings: Iterable[MappingPages], nodes: list[NodeRange]
) -> list[MappingPages]:
    """
    Return mappings with their pages by node.

    :param pagemap: the page table that they were read from.
    :param nodes: frames of each node, in order; empty to leave the mappings as they are.

    The words are read again, so that pages which left meanwhile are in no node.
    """
    if not nodes:
        return list(mappings)
    return [replace(row, node_pages=count_nodes(pagemap, row, nodes)) for row in mappings]


def count_nodes(
    pagemap: Pagemap, mapping: MappingPages, nodes: list[NodeRange]
) -> dict[int, int]:
    """Return the present pages of a mapping by node; nothing where frames are hidden."""
    counts = np.zeros(len(nodes), np.int64)
    base = mapping.start // pagemap.page_size_bytes
    present = select_runs(mapping.runs, mapping.runs.value == PageClass.PRESENT)
    for first, stop in window_runs(present, _JOIN_PAGES):
        for page, words in pagemap.iter_words(base + first, stop - first):
            low = page - base
            piece = shift_runs(clip_runs(present, low, low + len(words)), -low)
            is_asked = (
                decode_runs(piece, len(words), fill=PageClass.UNKNOWN) == PageClass.PRESENT
            )
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
