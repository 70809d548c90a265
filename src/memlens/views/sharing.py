"""What ``memlens sharing`` shows: processes, pairs, and what was copied since a fork."""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from memlens.record import Table, Values
from memlens.sharing.records import MappingShare, Sharing
from memlens.units import count_of, format_size
from memlens.views.text import (
    BOLD,
    DIM,
    Line,
    Segment,
    TableOptions,
    render_foot,
    render_more,
    render_table,
    render_top,
)

_R = TypeVar("_R")
_MAPPINGS_SHOWN = 8
# Cells of the matrix hold a size or a PID.
_CELL_LEAST = 5
# Room that a column of sizes takes, with the gap before it.
_COLUMN_ROOM = 7
_USED = ("rss_pages", "pss_pages", "uss_pages")
_SINCE_FORK = (
    "shared_with_parent_pages",
    "copied_pages",
    "new_private_pages",
    "new_object_pages",
)
_PROCESS_COLUMNS = (
    "pid",
    *_USED,
    "freed_on_exit_pages",
    "swap_entries_pages",
    "swap_share_bytes",
    *_SINCE_FORK,
    "name",
)
_MAPPING_COLUMNS = ("pid", "start_address", "permissions", *_USED, *_SINCE_FORK, "path")
_ANONYMOUS = "(anonymous)"


def render(
    report: Sharing,
    options: TableOptions,
    *,
    table: str = "processes",
    has_mappings: bool = False,
) -> Iterator[Line]:
    """
    Yield the lines for a person.

    :param table: the one that is sorted and cut: its rows are shown as they are, of pairs
        instead of a matrix, of mappings instead of sums.
    :param has_mappings: whether to list every mapping of every process.
    """
    whole = options._replace(top=None)
    yield from _headline(report)
    yield from _processes(report, options if table == "processes" else whole)
    if table == "pairs":
        yield []
        yield from render_top(report.pairs, report, options)
    elif len(report.pairs):
        yield from _matrix(report, options)
    if has_mappings or table == "mappings":
        named = _with(report.mappings, path=_paths(report.mappings))
        yield []
        yield from render_top(
            named, report, options if table == "mappings" else whole, names=_MAPPING_COLUMNS
        )
    else:
        yield from _summed_mappings(report, whole)
    yield []
    yield from render_foot(report, options)


def _headline(report: Sharing) -> Iterator[Line]:
    processes, size = report.processes, report.page_size_bytes
    distinct = report.total.distinct_pages if report.total else None
    if distinct is not None and len(processes) > 1:
        mapped = format_size(_sum(processes, "rss_pages") * size)
        yield [
            Segment(
                f"{len(processes)} processes map {mapped}, which is "
                f"{format_size(distinct * size)} of memory",
                BOLD,
            )
        ]
    forked = _forked(processes)
    if len(forked):
        shared, copied, new = (
            format_size(_sum(forked, name) * size) for name in _SINCE_FORK[:3]
        )
        children = count_of(len(forked), "child", "children")
        yield [
            Segment(
                f"since the fork, {children}: {shared} still shared, {copied} copied, {new} new"
            )
        ]
    if len(forked) or len(processes) > 1:
        yield []


def _processes(report: Sharing, options: TableOptions) -> Iterator[Line]:
    """Yield the processes, those that were forked below and right of their parents."""
    parents = {row.pid: row.parent for row in report.processes}
    room = options.width - _COLUMN_ROOM * (len(_PROCESS_COLUMNS) - 1)
    names = []
    for row in report.processes:
        depth, parent = 0, row.parent
        # A damaged file may have a circle.
        while parent is not None and depth < len(parents):
            depth, parent = depth + 1, parents.get(parent)
        indent = "  " * min(depth, max(room, 8) // 4)
        names.append(indent + _short_title(row.name, room - len(indent)))
    yield from render_top(
        _with(report.processes, name=names), report, options, names=_PROCESS_COLUMNS
    )


def _short_title(title: str, room: int) -> str:
    """Return what tells processes of one name apart, where not all of it has room."""
    _, colon, rest = title.partition(": ")
    return rest if colon and len(title) > room else title


def _matrix(report: Sharing, options: TableOptions) -> Iterator[Line]:
    pids = report.processes.column("pid").tolist()
    shared = {(pair.a, pair.b): pair.shared_pages for pair in report.pairs}
    shared |= {(b, a): pages for (a, b), pages in shared.items()}
    cell = max(_CELL_LEAST, len(str(max(pids, default=0))))
    # Below this width the rest of the columns are left to a wider terminal.
    columns = pids[: max((options.width - cell) // (cell + 1), 1)]
    yield []
    yield [Segment("shared by each pair", BOLD)]
    yield [Segment(f"{'':{cell}}{''.join(f' {pid:>{cell}}' for pid in columns)}", BOLD)]
    itself = "·" if options.is_unicode else "."
    for pid in pids:
        line = [Segment(f"{pid:>{cell}}", BOLD)]
        for other in columns:
            pages = shared.get((pid, other))
            text = "?" if pages is None else format_size(pages * report.page_size_bytes)
            line.append(Segment(f" {itself if pid == other else text:>{cell}}"))
        yield line
    if len(columns) < len(pids):
        rest = len(pids) - len(columns)
        yield [Segment(f"{rest} more columns: a wider terminal, or --table pairs", DIM)]


def _summed_mappings(report: Sharing, options: TableOptions) -> Iterator[Line]:
    """Yield the mappings that matter most, summed over processes by name."""
    processes = _forked(report.processes)
    if len(processes):
        names = ["copied_pages", "new_private_pages", "shared_with_parent_pages"]
        sums = _by_path(_forked(report.mappings)).sorted_by([*names, "new_object_pages"])
        names += ["new_object_pages"]
    else:
        names = [*_USED]
        processes = report.processes
        sums = _by_path(report.mappings).sorted_by(["uss_pages"])
    if not len(sums):
        return
    yield []
    if len(processes) > 1:
        yield [Segment(f"by mapping, sum of {len(processes)} processes", BOLD)]
    yield from render_table(
        sums.top(_MAPPINGS_SHOWN), report.page_size_bytes, options, [*names, "path"]
    )
    yield from render_more(len(sums) - _MAPPINGS_SHOWN, "(--mappings lists all)")


def _by_path(mappings: Table[MappingShare]) -> Table[MappingShare]:
    """Return a row for every path, with the sums of all processes."""
    paths, place = np.unique(_paths(mappings), return_inverse=True)
    zeros = np.zeros(len(paths), np.int64)
    columns: dict[str, Values] = {
        column.name: zeros if column.type is int else [""] * len(paths)
        for column in mappings.columns
    }
    for column in mappings.columns:
        if column.unit == "pages":
            weights = np.ma.filled(mappings.column(column.name), 0)
            sums = np.bincount(place, weights=weights, minlength=len(paths))
            columns[column.name] = sums.astype(zeros.dtype if column.type is int else float)
    return Table.of_columns(MappingShare, **{**columns, "path": paths})


def _paths(mappings: Table[MappingShare]) -> Any:
    paths = mappings.column("path")
    return np.where(paths == "", _ANONYMOUS, paths)


def _forked(table: Table[_R]) -> Table[_R]:
    """Return the rows of what was forked from a process of the scan."""
    return table[~np.ma.getmaskarray(table.column("copied_pages"))]


def _sum(table: Table[Any], name: str) -> int:
    return int(np.ma.filled(table.column(name), 0).sum())


def _with(table: Table[_R], **columns: Values) -> Table[_R]:
    """Return a table with other values in some columns."""
    kept = {column.name: table.column(column.name) for column in table.columns}
    return Table.of_columns(table.record, **{**kept, **columns})
