"""What ``memlens cgroup`` shows: one cgroup in full, or all of them in a line each."""

from collections.abc import Iterator

from memlens.physical.records import CgroupList, CgroupPages, CgroupTotal, ElsewherePages
from memlens.record import Table
from memlens.units import count_of, escape_text, format_size
from memlens.views.text import (
    BOLD,
    Line,
    Segment,
    TableOptions,
    cut_middle,
    render_foot,
    render_table,
    render_top,
)

_TOP = 10


def render(report: CgroupPages | CgroupList, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person."""
    if isinstance(report, CgroupList):
        yield from _list(report, options)
    else:
        yield from _one(report, options)


def _list(report: CgroupList, options: TableOptions) -> Iterator[Line]:
    yield from render_table(report.cgroups.top(options.top), report.page_size_bytes, options)
    charged = int(report.cgroups.column("charged_pages").sum())
    size = format_size(charged * report.page_size_bytes)
    yield [Segment(f"{size} in {count_of(len(report.cgroups), 'cgroup', 'cgroups')}", BOLD)]
    yield []
    yield from render_foot(report, options)


def _one(report: CgroupPages, options: TableOptions) -> Iterator[Line]:
    total = report.total
    if total is not None:
        yield _head(total, report.page_size_bytes, options)
        yield []
    yield from render_table(report.kinds, report.page_size_bytes, options)
    for table in (report.files, report.processes):
        if len(table):
            yield []
            yield from render_top(table, report, options, _TOP)
    if total is not None and total.unowned_pages:
        yield []
        size = format_size(total.unowned_pages * report.page_size_bytes)
        yield [Segment(f"{size} that no process maps and no file was found for")]
    yield from _elsewhere(report, options)
    if len(report.stat):
        yield []
        yield from render_table(report.stat, report.page_size_bytes, options)
    yield []
    if total is not None and total.moved_pages:
        moved = count_of(total.moved_pages, "page", "pages")
        yield [Segment(f"{moved} changed hands meanwhile and are left out")]
    yield from render_foot(report, options)


def _head(total: CgroupTotal, page_size_bytes: int, options: TableOptions) -> Line:
    below = f" and {total.cgroups - 1} below" if total.cgroups > 1 else ""
    charged = format_size(total.charged_pages * page_size_bytes)
    tail = f"{below} (v{total.version}): {charged} charged"
    room = max(options.width - len(tail), 16)
    return [
        Segment(cut_middle(escape_text(total.path), room, options.ellipsis), BOLD),
        Segment(tail, BOLD),
    ]


def _elsewhere(report: CgroupPages, options: TableOptions) -> Iterator[Line]:
    if len(report.used_elsewhere):
        only = report.total.only_elsewhere_pages if report.total else 0
        size = format_size(only * report.page_size_bytes)
        title = f"charged here, used elsewhere ({size} of it by nobody here)"
        yield from _places(title, report.used_elsewhere, report, options)
    if len(report.charged_elsewhere):
        title = "used here, charged elsewhere"
        yield from _places(title, report.charged_elsewhere, report, options)


def _places(
    title: str, table: Table[ElsewherePages], report: CgroupPages, options: TableOptions
) -> Iterator[Line]:
    yield []
    yield [Segment(title, BOLD)]
    yield from render_top(table, report, options, _TOP)
