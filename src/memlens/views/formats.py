r"""
JSON and CSV of a process map, in pieces, so that millions of runs do not pile up.

The JSON is one object of schema ``memlens.map/1``; names are raw, and bytes that are not
UTF-8 are escaped as lone surrogates (``\udcXX``).
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from memlens.pages.classes import PageClass, counts_by_name
from memlens.pages.runs import Runs
from memlens.pages.slotruns import SlotRuns
from memlens.residency.records import (
    CLASS_COLUMNS,
    MAPPING_COLUMNS,
    MappingPages,
    ProcessMap,
    Row,
    Value,
    Words,
)
from memlens.views.map import list_runs

SCHEMA = "memlens.map/1"
_LABELS = tuple(kind.label for kind in PageClass)
_PIECE = 1 << 15


def render_json(result: ProcessMap, has_runs: bool = False) -> Iterator[str]:
    """
    Yield the pieces of one JSON object, a line per mapping.

    :param has_runs: whether to list the runs of every mapping.
    """
    process = result.process
    yield "{"
    yield _members(
        {
            "schema": SCHEMA,
            "kernel": {
                "release": result.kernel.release,
                "page_size_bytes": result.kernel.page_size_bytes,
            },
            "process": {
                "pid": process.pid,
                "name": process.name,
                "cmdline": list(process.cmdline),
                "started_at": process.started_at.isoformat(),
            },
            "evidence": result.evidence,
        }
    )
    yield ',\n"mappings": ['
    for number, mapping in enumerate(result.mappings):
        yield ",\n" if number else "\n"
        yield from _mapping_json(mapping, has_runs)
    yield "],\n"
    yield _members(
        {
            "pages": counts_by_name(result.counts()),
            **({"nodes": _nodes_json(nodes)} if (nodes := result.node_pages()) else {}),
            "cost": {
                "wall_s": result.cost.wall_s,
                "read_bytes": result.cost.read_bytes,
                "longest_read_s": result.cost.longest_read_s,
            },
            "used": list(result.used),
            "is_complete": result.is_complete,
            "notes": list(result.notes),
        }
    )
    yield "}\n"


def _mapping_json(mapping: MappingPages, has_runs: bool) -> Iterator[str]:
    row = Row.of(mapping)
    head: dict[str, Any] = {column.name: column.read(row) for column in MAPPING_COLUMNS}
    head["pages"] = counts_by_name(row.counts)
    yield _dump(head)[:-1]
    if has_runs:
        yield ', "runs": ['
        yield from _runs_json(mapping.runs)
        yield "]"
    if mapping.words is not None:
        yield ', "words": ['
        yield from _words_json(mapping.words)
        yield "]"
    if mapping.slots is not None:
        yield ', "slots": ['
        yield from _slots_json(mapping.slots)
        yield "]"
    tail: dict[str, Any] = {
        "unknown": [[run.first, run.pages, run.reason] for run in mapping.unknown]
    }
    if mapping.node_pages:
        tail["nodes"] = _nodes_json(mapping.node_pages)
    if mapping.notes:
        tail["notes"] = list(mapping.notes)
    yield ", " + _dump(tail)[1:]


def _runs_json(runs: Runs) -> Iterator[str]:
    for at in range(0, len(runs), _PIECE):
        part = slice(at, at + _PIECE)
        piece = Runs(runs.first[part], runs.pages[part], runs.value[part])
        yield ", " if at else ""
        yield ", ".join(
            f'[{first}, {pages}, "{_LABELS[value]}"]' for first, pages, value in piece
        )


def _words_json(words: Words) -> Iterator[str]:
    for at in range(0, len(words.page), _PIECE):
        part = slice(at, at + _PIECE)
        pairs = zip(words.page[part].tolist(), words.word[part].tolist(), strict=True)
        yield ", " if at else ""
        yield ", ".join(f"[{page}, {word}]" for page, word in pairs)


def _slots_json(slots: SlotRuns) -> Iterator[str]:
    columns = (slots.first, slots.pages, slots.area, slots.slot)
    for at in range(0, len(slots), _PIECE):
        piece = zip(*(column[at : at + _PIECE].tolist() for column in columns), strict=True)
        yield ", " if at else ""
        yield ", ".join(
            f"[{first}, {pages}, {area}, {slot}]" for first, pages, area, slot in piece
        )


def _nodes_json(node_pages: dict[int, int]) -> dict[str, int]:
    return {str(node): pages for node, pages in node_pages.items()}


def _members(values: dict[str, Any]) -> str:
    return ",\n".join(f"{_dump(name)}: {_dump(value)}" for name, value in values.items())


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def render_csv(result: ProcessMap) -> Iterator[str]:
    """Yield CSV: one row for every mapping, a column for every class, in pages."""
    columns = (*MAPPING_COLUMNS, *CLASS_COLUMNS)
    yield from _csv([[*(column.name for column in columns), "reason"]])
    yield from _csv(_mapping_rows(result))


def _mapping_rows(result: ProcessMap) -> Iterator[list[Value]]:
    for mapping in result.mappings:
        row = Row.of(mapping)
        reasons = dict.fromkeys(run.reason for run in mapping.unknown)
        values = [column.read(row) for column in (*MAPPING_COLUMNS, *CLASS_COLUMNS)]
        yield [*values, "; ".join(reasons)]


def render_runs_csv(result: ProcessMap) -> Iterator[str]:
    """Yield CSV: one row for every run, by its addresses, with its mapping's columns."""
    names = [
        f"mapping_{column.name}" if column.unit == "address" else column.name
        for column in MAPPING_COLUMNS
    ]
    yield from _csv([["start", "stop", "pages", "class", *names, "reason"]])
    yield from _csv(_run_rows(result))


def _run_rows(result: ProcessMap) -> Iterator[list[Value]]:
    for mapping in result.mappings:
        row, size = Row.of(mapping), mapping.page_size_bytes
        values = [column.read(row) for column in MAPPING_COLUMNS]
        for first, pages, kind, reason in list_runs(mapping):
            start = mapping.start + first * size
            yield [start, start + pages * size, pages, kind.label, *values, reason]


def _csv(rows: Iterable[Iterable[Value]]) -> Iterator[str]:
    """Yield the text of rows, many at a time."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(row)
        if text.tell() > _PIECE:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()
