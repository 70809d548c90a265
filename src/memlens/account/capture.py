"""
The order of reads for one process; what changed meanwhile is read again.

    mappings -> in batches: page table -> objects of what it leaves open -> page table
    -> mappings again; those that changed are read anew, a few times
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from memlens.account.cost import Cost
from memlens.account.mapping import (
    KERNEL_HALF,
    MappingReader,
    Verdicts,
    make_reader,
    object_label,
)
from memlens.account.model import (
    Kernel,
    MappingPages,
    Process,
    ProcessMap,
)
from memlens.account.pagetable import Stopped
from memlens.account.placing import mapping_slots
from memlens.account.stretches import join_ranges
from memlens.account.unknown import explain_unknown, without_object
from memlens.errors import ProcessGone
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.pages.classes import PageClass, Reason
from memlens.pages.runs import (
    Runs,
    concat_runs,
    merge_runs,
    one_run,
)
from memlens.pages.slotruns import concat_slots

# A batch goes through all reads before the next begins: mappings up to so many pages
# together; of a larger one so many pages at a time, by how uniform it is.
_BATCH_PAGES = 1 << 18
_BATCH_MAPPINGS = 2000
_PART_LEAST = 1 << 18
_PART_MOST = 1 << 24
_FEW_RUNS = 1000
# Times that mappings which changed under the scan are read anew.
_ROUNDS = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Span:
    """Pages ``[first, stop)`` of a mapping."""

    mapping: Mapping
    first: int
    stop: int


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
    size = features.page_size_bytes()
    low, high = (start or 0) // size, -(-(stop if stop is not None else 1 << 64) // size)
    if low >= high:
        raise ValueError("empty range of addresses")
    meter = Meter()
    with ProcessDir(pid, proc, meter) as process:
        # Before the mappings: a program executed in between leaves this table empty.
        pagemap = Pagemap(process.open("pagemap"), size, meter, f"{process.path}/pagemap")
        try:
            capture = _Capture(process, pagemap, words, on_progress, should_stop)
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
    on_progress: Progress | None
    should_stop: Callable[[], bool] | None
    disabled: frozenset[str] = field(default_factory=features.read_disabled)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = True
    _done: int = 0
    _total: int = 0

    def run(self, low: int, high: int) -> ProcessMap:
        identity = self.process.identity(self.pagemap)
        reader = make_reader(
            self.process,
            self.pagemap,
            self.disabled,
            keep_words=self.keep_words,
            should_stop=self.should_stop,
        )
        reader.opener.leases.prefetch()
        try:
            results = self._read_all(reader, low, high)
        finally:
            reader.opener.leases.close()
            reader.close()
        meter = self.process.meter
        return ProcessMap(
            kernel=Kernel(os.uname().release, self.pagemap.page_size_bytes),
            process=Process(identity.pid, identity.name, identity.cmdline, identity.started_at),
            evidence=self._evidence(reader),
            mappings=tuple(results),
            cost=Cost(meter.wall_s(), meter.read_bytes, meter.longest_read_s),
            is_complete=self.is_complete,
            notes=(*self.notes, *dict.fromkeys(reader.walking.notes)),
            used=tuple(sorted(meter.used)),
        )

    def _evidence(self, reader: MappingReader) -> dict[str, bool]:
        return {
            "pagemap": True,
            "pagemap_scan": reader.table.use_scan,
            "map_files": reader.opener.has_map_files,
            "seek_data": "seek_data" not in self.disabled,
            "cachestat": reader.has_cachestat,
            "mincore": "mincore" not in self.disabled,
            "smaps": "smaps" not in self.disabled,
            "cachewalk": reader.walking.is_usable(),
            "pfns_visible": features.is_pfn_visible(),
        }

    def _read_all(self, reader: MappingReader, low: int, high: int) -> list[MappingPages]:
        wanted = self.process.read_maps()
        kept: dict[Mapping, MappingPages] = {}
        for attempt in range(_ROUNDS):
            spans = self._spans(wanted, low, high)
            self._total = self._done + sum(span.stop - span.first for span in spans)
            for result, mapping in self._read_spans(reader, spans):
                kept[mapping] = result
            if not self.is_complete:
                break
            now = self.process.read_maps()
            if not now and kept:
                raise self.process.gone_error()
            wanted = self._changed(kept, now, is_last=attempt == _ROUNDS - 1)
            if not wanted:
                break
        return sorted(kept.values(), key=lambda mapping: mapping.start)

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

    def _spans(self, mappings: Iterable[Mapping], low: int, high: int) -> list[_Span]:
        size = self.pagemap.page_size_bytes
        spans = []
        for mapping in mappings:
            base = mapping.start // size
            first = max(low - base, 0)
            stop = min(high - base, (mapping.stop - mapping.start) // size)
            if first < stop:
                spans.append(_Span(mapping, first, stop))
        return spans

    def _read_spans(
        self, reader: MappingReader, spans: list[_Span]
    ) -> Iterable[tuple[MappingPages, Mapping]]:
        for batch in _batches(spans):
            entries = self._batch_entries(reader, batch)
            for span in batch:
                parts = list(self._read_parts(reader, span, entries))
                yield self._result(reader, span, parts), span.mapping

    def _read_parts(
        self, reader: MappingReader, span: _Span, entries: Runs | None
    ) -> Iterable[Verdicts]:
        first, part = span.first, _PART_LEAST
        while first < span.stop:
            stop = min(first + part, span.stop)
            try:
                self.check_stop()
                verdicts = reader.read(span.mapping, first, stop, entries)
            except Stopped:
                self._stop()
                rest = one_run(first, span.stop - first, Reason.STOPPED)
                yield Verdicts(reader.opener.facts(span.mapping), rest)
                return
            self._progress(stop - first)
            yield verdicts
            # Vast and uniform mappings go in large parts, crumbled ones in small.
            is_uniform = len(verdicts.runs) < _FEW_RUNS
            part = min(part * 2, _PART_MOST) if is_uniform else _PART_LEAST
            first = stop

    def check_stop(self) -> None:
        """Raise ``Stopped`` once the scan was ended, or if the caller wants it to."""
        if not self.is_complete or (self.should_stop is not None and self.should_stop()):
            raise Stopped

    def _stop(self) -> None:
        if self.is_complete:
            self.is_complete = False
            self.notes.append("stopped early: the rest was not scanned")

    def _batch_entries(self, reader: MappingReader, batch: list[_Span]) -> Runs | None:
        """Read the page table of small neighbouring mappings with as few calls as can be."""
        if not reader.table.use_scan or len(batch) == 1:
            return None
        try:
            return concat_runs(
                [
                    reader.table.read_entries(first, stop, is_anonymous=None)
                    for first, stop in self._stretches(batch)
                ]
            )
        except Stopped:
            self._stop()
            return None

    def _stretches(self, batch: list[_Span]) -> Iterable[tuple[int, int]]:
        size = self.pagemap.page_size_bytes
        spans = [span for span in batch if span.mapping.start < KERNEL_HALF]
        starts = [span.mapping.start // size for span in spans]
        ranges = [(a + s.first, a + s.stop) for a, s in zip(starts, spans, strict=True)]
        return join_ranges(ranges, _BATCH_PAGES)

    def _progress(self, pages: int) -> None:
        self._done += pages
        if self.on_progress is not None:
            self.on_progress(self._done, self._total)

    def _result(
        self, reader: MappingReader, span: _Span, parts: list[Verdicts]
    ) -> MappingPages:
        mapping, facts = span.mapping, parts[0].facts
        verdicts = Verdicts(
            facts,
            concat_runs([part.runs for part in parts]),
            next((part.refusal for part in parts if part.refusal), ""),
        )
        runs = reader.settle(mapping, verdicts)
        base = mapping.start // self.pagemap.page_size_bytes
        words = slots = None
        if self.keep_words:
            words = reader.table.take_words(base + span.first, base + span.stop)
            slots = mapping_slots(runs, words, concat_slots([part.slots for part in parts]))
        unknown = explain_unknown(reader.settler, mapping, runs, verdicts.refusal)
        if unknown:
            value = np.minimum(runs.value, np.uint8(PageClass.UNKNOWN))
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


def _batches(spans: list[_Span]) -> Iterable[list[_Span]]:
    batch: list[_Span] = []
    pages = 0
    for span in spans:
        length = span.stop - span.first
        if batch and (pages + length > _BATCH_PAGES or len(batch) >= _BATCH_MAPPINGS):
            yield batch
            batch, pages = [], 0
        batch.append(span)
        pages += length
    if batch:
        yield batch
