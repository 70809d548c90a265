"""What ``memlens flags`` shows: combinations of flags, or pages one after the other."""

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from memlens.physical.records import FlagRange, FlagReport
from memlens.record import Column, Table
from memlens.units import escape_text, format_size
from memlens.views.text import (
    BOLD,
    Line,
    Segment,
    TableOptions,
    cells_of,
    percent,
    render_cells,
    render_foot,
    render_more,
)

_GAP = 2
_FLAGS_LEAST = 20
_ROWS_AT_ONCE = 1024


def render(report: FlagReport, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person."""
    size = report.page_size_bytes
    total = report.total
    if total is not None:
        yield [Segment(escape_text(total.subject), BOLD)]
        yield []
    is_list = "ranges" in report.tables
    yield from (_ranges if is_list else _combinations)(report, options)
    if options.top:
        rows = report.ranges if is_list else report.combinations
        yield from render_more(len(rows) - options.top)
    if total is not None:
        pages = format_size(total.total_pages * size)
        yield [Segment(f"{total.total_pages} pages ({pages}) in all", BOLD)]
    for row in report.nodes:
        yield [
            Segment(f"{row.pages} pages ({format_size(row.pages * size)}) on node {row.node}")
        ]
    yield []
    yield from render_foot(report, options)


def _combinations(report: FlagReport, options: TableOptions) -> Iterator[Line]:
    table = report.combinations.top(options.top)
    cells = cells_of(table, report.page_size_bytes)
    found = {column.name: column for column in cells}
    pages = table.column("pages").tolist()
    whole = report.total.total_pages if report.total else sum(pages)
    drawn = {
        replace(found["pages"], name="count", title="pages"): list(map(str, pages)),
        found["pages"]: cells[found["pages"]],
        replace(found["pages"], name="share", title="share"): [
            percent(count, whole) for count in pages
        ],
        found["word"]: [f"0x{word}" for word in cells[found["word"]]],
        found["flags"]: cells[found["flags"]],
    }
    yield from render_cells(_wrapped(drawn, options), options)


def _ranges(report: FlagReport, options: TableOptions) -> Iterator[Line]:
    """Yield the ranges, some at a time: there may be millions."""
    table = report.ranges.top(options.top)
    widths = {
        column.name: max(map(len, cells), default=0)
        for column, cells in _range_cells(_extremes(table), report).items()
    }
    for at in range(0, max(len(table), 1), _ROWS_AT_ONCE):
        cells = _range_cells(table[at : at + _ROWS_AT_ONCE], report)
        *others, last = cells
        drawn = {
            replace(column, title=column.title.rjust(widths[column.name])): cells[column]
            for column in others
        }
        lines = render_cells(_wrapped({**drawn, last: cells[last]}, options), options)
        # One heading for all.
        yield from lines if not at else islice(lines, 1, None)


def _range_cells(table: Table[FlagRange], report: FlagReport) -> dict[Column, list[str]]:
    shown = ("address", "pages", "pfn", "map_count", "flags")
    cells = cells_of(table, report.page_size_bytes, shown)
    found = {column.name: column for column in cells}
    cells[found["pages"]] = list(map(str, table.column("pages").tolist()))
    cells[found["flags"]] = [
        f"{names}  [{escape_text(cgroup)}]" if cgroup else names
        for names, cgroup in zip(
            cells[found["flags"]], table.column("cgroup").tolist(), strict=True
        )
    ]
    return cells


def _extremes(table: Table[FlagRange]) -> Table[FlagRange]:
    """Return rows with the widest cell of each column."""
    if not len(table):
        return table
    found = [0]
    for name in ("address", "pages", "pfn", "map_count"):
        numbers = table.column(name)
        found += [int(np.ma.argmin(numbers)), int(np.ma.argmax(numbers))]
    return table[np.array(found)]


def _wrapped(cells: dict[Column, list[str]], options: TableOptions) -> dict[Column, list[str]]:
    """Return cells with rows put between where the names of flags take several lines."""
    *others, last = cells
    used = sum(
        _GAP + max(len(column.title), *map(len, cells[column]), 0)
        for column in others
        if any(cells[column])
    )
    room = max(options.width - used, _FLAGS_LEAST)
    broken = {text: textwrap.wrap(text, room) for text in set(cells[last])}
    parts = [broken[text] for text in cells[last]]
    wrapped: dict[Column, list[str]] = {
        column: [
            text if not number else ""
            for text, lines in zip(cells[column], parts, strict=True)
            for number in range(len(lines))
        ]
        for column in others
    }
    wrapped[last] = [line for lines in parts for line in lines]
    return wrapped
