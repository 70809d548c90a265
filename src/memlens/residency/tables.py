"""What was found of the mappings of a process, as tables, and parts of them."""

import dataclasses
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import MapsTable, join_tables
from memlens.kernel.process import Identity
from memlens.pages.arrays import distinct
from memlens.pages.classes import CLASSES, REASONS, PageClass, Reason, Verdict
from memlens.pages.decode import Words
from memlens.pages.parts import part_of, replace_parts, take_parts
from memlens.pages.runs import Runs, join_runs, merge_runs, select_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns, restrict_slots
from memlens.record import Table
from memlens.report import Origin, make_sum
from memlens.residency.records import (
    COUNTS,
    MappingPages,
    MappingTotals,
    MapRun,
    MapSlots,
    MapWord,
    Process,
    ProcessMap,
    UnknownRun,
    counts_of,
    runs_of,
)

_NO_WORDS = Words(np.empty(0, np.int64), np.empty(0, np.uint64))
_LABELS = np.array([row.label for row in CLASSES], object)
_UNKNOWN = int(PageClass.UNKNOWN)
_IS_OF_OBJECT = np.array([row.of_object for row in CLASSES])


class Found(NamedTuple):
    """
    What was found of a mapping.

    :param runs: runs of ``PageClass``.
    :param unknown: the unknown ones, with their reasons.
    :param words: raw words and slots, None unless they are wanted.
    :param note: what happened meanwhile.
    """

    runs: Runs
    unknown: tuple[UnknownRun, ...] = ()
    words: Words | None = None
    slots: SlotRuns | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class MappingRows:
    """
    What was found of mappings, as columns.

    :param maps: their lines of maps, in order.
    :param labels: kind of the object of each place of ``maps``, as ``MappingTotals`` has it.
    :param runs: the runs of all mappings, one after the other.
    :param edges: number of the first run of each, and of runs in all, ``(n + 1,)`` int64.
    :param special: rows that have more to say than their runs, by number.
    """

    maps: MapsTable
    labels: Sequence[str]
    runs: Runs
    edges: NDArray[np.int64]
    special: Mapping[int, Found]

    def __len__(self) -> int:
        return len(self.maps)

    def found(self, row: int) -> Found:
        """Return what was found of a mapping."""
        if row in self.special:
            return self.special[row]
        return Found(part_of(self.runs, self.edges[row], self.edges[row + 1]))

    def counts(self) -> NDArray[np.int64]:
        """Return the pages of each mapping in each class, ``(n, len(PageClass))`` int64."""
        classes = len(PageClass)
        number = np.repeat(np.arange(len(self)) * classes, np.diff(self.edges))
        found = np.bincount(
            number + self.runs.value, weights=self.runs.pages, minlength=len(self) * classes
        )
        return found.astype(np.int64).reshape(-1, classes)

    def sorted(self) -> "MappingRows":
        """Return the same in the order of addresses."""
        start = self.maps.start
        if (start[1:] >= start[:-1]).all():
            return self
        return self.take(np.argsort(start, kind="stable"))

    def take(self, rows: NDArray[np.int64]) -> "MappingRows":
        """Return some of the rows, in any order."""
        runs, edges = take_parts(self.runs, self.edges, rows)
        special: dict[int, Found] = {}
        if self.special:
            kept = enumerate(rows.tolist())
            special = {new: self.special[old] for new, old in kept if old in self.special}
        maps = self.maps.take(rows)
        return MappingRows(maps, self.labels, runs, edges, special)


def join_rows(parts: Sequence[MappingRows]) -> MappingRows:
    """Return the rows of all of some tables, one after the other."""
    if len(parts) == 1:
        return parts[0]
    maps = join_tables([part.maps for part in parts])
    # A part may name places that only others have.
    names = {
        part.maps.places[number]: part.labels[number]
        for part in parts
        for number in distinct(part.maps.place).tolist()
    }
    starts = np.cumsum([0, *[len(part.runs) for part in parts]])
    edges = [part.edges[:-1] + start for part, start in zip(parts, starts, strict=False)]
    special: dict[int, Found] = {}
    before = 0
    for part in parts:
        special |= {before + row: result for row, result in part.special.items()}
        before += len(part)
    return MappingRows(
        maps,
        [names.get(place, "") for place in maps.places],
        join_runs([part.runs for part in parts]),
        np.append(np.concatenate(edges), starts[-1]),
        special,
    )


def with_rows(table: MappingRows, rows: Mapping[int, Found]) -> MappingRows:
    """Return a table with other rows in place of some, by number."""
    if not rows:
        return table
    parts = {number: row.runs for number, row in rows.items()}
    runs, edges = replace_parts(table.runs, table.edges, parts)
    return dataclasses.replace(table, runs=runs, edges=edges, special={**table.special, **rows})


def without_object(found: Found, start_page: int) -> Found:
    """Return a mapping that kept changing without what its object was asked."""
    text = REASONS[Reason.MAPPING_CHANGED - Verdict.FIRST_REASON]
    runs = found.runs
    is_asked = _IS_OF_OBJECT[runs.value]
    unknown = [
        UnknownRun(start_page, first, pages, text)
        for first, pages, _ in select_runs(runs, is_asked)
    ]
    value = np.where(is_asked, np.uint8(_UNKNOWN), runs.value)
    return found._replace(
        runs=merge_runs(Runs(runs.first, runs.pages, value)),
        unknown=tuple(sorted((*found.unknown, *unknown), key=lambda run: run.first_page)),
        note="kept changing during the scan",
    )


def process_of(identity: Identity) -> Process:
    """Return the record of a process."""
    started = identity.started_at.isoformat(timespec="milliseconds")
    return Process(
        pid=identity.pid,
        name=identity.name,
        cmdline=shlex.join(identity.cmdline),
        started_at=started.replace("+00:00", "Z"),
    )


def map_tables(found: MappingRows, origin: Origin, has_words: bool) -> dict[str, Table[Any]]:
    """
    Return what was found of mappings as tables of columns.

    :param origin: of the report, for the size of a page.
    :param has_words: whether there are tables of words and slots.
    """
    maps, size = found.maps, np.uint64(origin.page_size_bytes)
    start = (maps.start // size).astype(np.int64)
    row = np.repeat(np.arange(len(found)), np.diff(found.edges))
    notes = np.full(len(found), "", object)
    special = [(number, found.special[number]) for number in sorted(found.special)]
    for number, one in special:
        notes[number] = one.note
    tables: dict[str, Table[Any]] = {
        "mappings": Table.of_columns(
            MappingTotals,
            start_page=start,
            stop_page=(maps.stop // size).astype(np.int64),
            permissions=_texts(maps.modes, maps.mode),
            # Offsets and inodes may need all of 64 bits.
            offset_bytes=maps.offset_bytes,
            device=_texts([one.device for one in maps.places], maps.place),
            inode=np.array([one.inode for one in maps.places], np.uint64)[maps.place],
            path=_texts([one.path for one in maps.places], maps.place),
            object=_texts(found.labels, maps.place),
            **dict(zip(COUNTS, found.counts().T, strict=True)),
            note=notes,
        ),
        "runs": Table.of_columns(
            MapRun,
            start_page=start[row],
            first_page=found.runs.first,
            pages=found.runs.pages,
            page_class=_LABELS[found.runs.value],
        ),
        "unknown": Table.of(UnknownRun, [run for _, one in special for run in one.unknown]),
    }
    if has_words:
        numbers = np.array([number for number, _ in special], np.int64)
        words = [one.words or _NO_WORDS for _, one in special]
        slots = [one.slots or NO_SLOTS for _, one in special]
        tables["words"] = _word_table(start[numbers], words)
        tables["slots"] = _slot_table(start[numbers], slots)
    return tables


def _texts(values: Sequence[str], place: NDArray[np.int32]) -> NDArray[Any]:
    known = np.empty(len(values), object)
    known[:] = values
    return known[place]


def _word_table(start: NDArray[np.int64], words: Sequence[Words]) -> Table[MapWord]:
    return Table.of_columns(
        MapWord,
        start_page=np.repeat(start, [len(one.page) for one in words]),
        page=_join([one.page for one in words], np.int64),
        word=_join([one.word for one in words], np.uint64),
    )


def _slot_table(start: NDArray[np.int64], slots: Sequence[SlotRuns]) -> Table[MapSlots]:
    return Table.of_columns(
        MapSlots,
        start_page=np.repeat(start, [len(one) for one in slots]),
        first_page=_join([one.first for one in slots], np.int64),
        pages=_join([one.pages for one in slots], np.int64),
        area=_join([one.area for one in slots], np.uint8),
        slot=_join([one.slot for one in slots], np.int64),
    )


def _join(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def sum_pages(mappings: Table[MappingTotals]) -> dict[str, int | None]:
    """Return how many pages there are, and how many in each class."""
    parts: dict[str, int | None] = {name: int(mappings.column(name).sum()) for name in COUNTS}
    total = sum(pages or 0 for pages in parts.values())
    return make_sum(total, total - (parts["unknown_pages"] or 0), **parts)


def select_classes(whole: ProcessMap, wanted: Collection[PageClass]) -> ProcessMap:
    """
    Return the mappings that have pages of some classes, and of them only those pages.

    Sums and what is unknown are told of all; pages unknown in mappings that are left out
    may be of the wanted classes, and a note tells how many they are.
    """
    is_wanted = np.zeros(len(PageClass), bool)
    is_wanted[[*wanted]] = True
    counts = counts_of(whole.mappings)
    is_kept: NDArray[np.bool_] = (counts[:, is_wanted] != 0).any(axis=1)
    left = counts[~is_kept, _UNKNOWN]
    rows = whole.mappings[is_kept]
    columns = {one.name: rows.column(one.name) for one in rows.columns}
    columns |= dict(zip(COUNTS, (counts[is_kept] * is_wanted).T, strict=True))
    tables = {
        **whole.tables,
        "mappings": Table.of_columns(MappingTotals, **columns),
        "runs": whole.runs[is_wanted[runs_of(whole.runs).value]],
    }
    if PageClass.PRESENT not in wanted:
        tables.pop("nodes", None)
    if "words" in tables:
        start = columns["start_page"]
        kept = [one for one in whole.each if one.counts()[is_wanted].any()]
        selected = [select_runs(one.runs, is_wanted[one.runs.value]) for one in kept]
        pairs = list(zip(kept, selected, strict=True))
        tables["words"] = _word_table(start, [_words_in(*pair) for pair in pairs])
        tables["slots"] = _slot_table(
            start, [restrict_slots(one.slots or NO_SLOTS, runs) for one, runs in pairs]
        )
    notes = whole.notes
    if left.any():
        notes += (f"left out: {(left != 0).sum()} mappings with {left.sum()} unknown pages",)
    return dataclasses.replace(whole, tables=tables, notes=notes)


def _words_in(mapping: MappingPages, runs: Runs) -> Words:
    words = mapping.words
    if words is None or not len(runs):
        return _NO_WORDS
    index = np.searchsorted(runs.first, words.page, side="right") - 1
    is_inside = (index >= 0) & (words.page < runs.stop[np.maximum(index, 0)])
    return Words(words.page[is_inside], words.word[is_inside])
