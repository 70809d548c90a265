"""Process maps made by hand, as a scan would put them together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from memlens.kernel.maps import Mapping, Place, table_of
from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.decode import Words
from memlens.pages.runs import EMPTY, encode_runs, join_runs, select_runs
from memlens.pages.slotruns import SlotRuns
from memlens.record import Table
from memlens.report import Cost, Origin
from memlens.residency.records import Evidence, Process, ProcessMap, Scope, UnknownRun
from memlens.residency.tables import Found, MappingRows, map_tables, sum_pages

PAGE = 4096
EVERY = "".join(row.sign for row in CLASSES)
ORIGIN = Origin("2026-01-31T08:15:00.000Z", "host", "boot", "6.12.0", PAGE, "0.1.0")
EVIDENCE = (
    Evidence("pagemap", True, True),
    Evidence("smaps", True, False),
    Evidence("mincore", False, False),
    Evidence("pfns_visible", False, False),
)
_NOT_SCANNED = 255

MadeMapping = tuple[Mapping, str, Found]


def mapping_of(
    pages: str | Sequence[int],
    path: str = "/lib/x.so",
    start: int = 0x1000,
    reason: str = "why",
    *,
    words: Words | None = None,
    slots: SlotRuns | None = None,
    label: str = "file",
) -> MadeMapping:
    """
    Return a mapping and what was found of it.

    :param pages: a ``PageClass`` or its sign for every page; a blank is a page not scanned.
    :param reason: why some are unknown.
    """
    values = np.array(
        [EVERY.find(one) % 256 if isinstance(one, str) else one for one in pages], np.uint8
    )
    runs = encode_runs(values)
    runs = select_runs(runs, runs.value != _NOT_SCANNED)
    unknown = tuple(
        UnknownRun(start // PAGE, first, count, reason)
        for first, count, value in runs
        if value == PageClass.UNKNOWN
    )
    stop = start + len(pages) * PAGE
    mapping = Mapping(start, stop, "rw-p", 0, "fe:01", 7, path)
    return mapping, label, Found(runs, unknown, words, slots)


def rows_of(mappings: Sequence[MadeMapping]) -> MappingRows:
    """Return them as columns."""
    maps = table_of(mapping for mapping, _, _ in mappings)
    labels = {Place(*mapping[4:]): label for mapping, label, _ in mappings}
    runs = [found.runs for _, _, found in mappings]
    return MappingRows(
        maps,
        [labels[place] for place in maps.places],
        join_runs(runs) if runs else EMPTY,
        np.cumsum([0, *map(len, runs)]),
        {number: found for number, (_, _, found) in enumerate(mappings)},
    )


def map_of(*mappings: MadeMapping, **changes: Any) -> ProcessMap:
    """Return the map of a process that has these mappings."""
    has_words = any(found.words is not None for _, _, found in mappings)
    tables = map_tables(rows_of(mappings), ORIGIN, has_words)
    values: dict[str, Any] = {
        "tables": {**tables, "evidence": Table.of(Evidence, EVIDENCE)},
        "sections": {
            "process": Process(42, "postgres", "postgres -D /data", "2024-05-06T00:00:00.000Z"),
            "scope": Scope(0, 1 << 52),
        },
        "sums": {"pages": sum_pages(tables["mappings"])},
        "cost": Cost(0.0123, 4096, 0.001),
    }
    return ProcessMap.at(ORIGIN, **{**values, **changes})
