"""What ``memlens shm`` shows: all shared-memory objects, or one page by page."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.runs import Runs, count_runs
from memlens.record import Table, columns_of
from memlens.shm.records import Inventory, ObjectRun, SharedObject
from memlens.units import count_of, escape_text, format_size
from memlens.views.strip import legend, render_strip
from memlens.views.text import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Part,
    Segment,
    TableOptions,
    cell_len,
    cut_middle,
    format_seconds,
    render_foot,
    render_labelled,
    render_sum,
    render_table,
    render_top,
    wrap,
)

_KINDS = {kind.label: kind for kind in PageClass}
_MEANINGS = {
    PageClass.PRESENT: "in RAM, mapped by at least one process",
    PageClass.CACHED: "in RAM, mapped by no process",
}

# The same where processes that were not looked at may map it.
_UNSEEN_MEANINGS = _MEANINGS | {
    PageClass.CACHED: "in RAM, mapped by no process that could be looked at",
}

# Keys, sums of other columns, and what is about one object alone.
_NOT_LISTED = frozenset(
    {
        *("object", "uid", "resident_pages", "swap_pages", "sole_keeper"),
        *("may_have_more_holders", "reason"),
    }
)
_LISTED = [c.name for c in columns_of(SharedObject) if c.name not in _NOT_LISTED]
_HOLDERS = ("pid", "mapped_pages", "present_pages", "is_open", "parts", "name")


def render(
    report: Inventory, options: TableOptions, *, has_runs: bool = False
) -> Iterator[Line]:
    """
    Yield the lines for a person.

    :param has_runs: whether to list the runs of an object that was asked for.
    """
    if "shmem" in report.sums:
        if len(report.objects):
            yield from render_top(report.objects, report, options, names=_LISTED)
            yield []
        yield from _account(report, options)
        yield []
    else:
        for item in report.objects.top(options.top):
            yield from _render_object(item, report, options, has_runs)
            yield []
    yield from render_foot(report, options)


def _account(report: Inventory, options: TableOptions) -> Iterator[Line]:
    """Yield what the objects explain of Shmem."""
    shmem = report.sums["shmem"]
    total, remainder = shmem["total_pages"] or 0, shmem["remainder_pages"] or 0
    objects = count_of(len(report.objects), "object", "objects")
    parts = (
        Part("objects    ", total - remainder, f"in RAM, of {objects}, each page once"),
        Part("remainder  ", remainder, "what no object explains", ALARM if remainder else ""),
        Part("Shmem      ", total, "as /proc/meminfo says", BOLD),
    )
    yield from render_sum(parts, total, report, options)


def _of(item: SharedObject, table: Table[Any]) -> Table[Any]:
    """Return the rows of one object."""
    is_its: NDArray[np.bool_] = table.column("object") == item.object
    return table[is_its]


def _render_object(
    item: SharedObject, report: Inventory, options: TableOptions, has_runs: bool
) -> Iterator[Line]:
    size = report.page_size_bytes
    about = f"{item.kind}, device {item.device}, inode {item.inode}"
    name = cut_middle(escape_text(item.name), options.width, options.ellipsis)
    is_short = cell_len(name) + len(about) + 2 <= options.width
    yield [Segment(name, BOLD), *([Segment(f"  {about}", DIM)] if is_short else ())]
    if not is_short:
        yield [Segment(about, DIM)]
    yield from wrap(", ".join(_facts(item, size)), options.width, style=DIM)
    runs = _runs(_of(item, report.runs))
    if len(runs):
        yield []
        yield render_strip(runs, 0, int(runs.stop[-1]), options.width, options)
        yield []
        counts = count_runs(runs, len(PageClass)).tolist()
        meanings = _UNSEEN_MEANINGS if item.may_have_more_holders else _MEANINGS
        parts = legend(counts, options, meanings)
        yield from render_sum(parts, sum(counts), report, options)
    if has_runs:
        yield []
        yield from _list_runs(runs, size)
    yield []
    holders = _of(item, report.holders)
    if len(holders):
        yield from render_table(holders, size, options, _HOLDERS)
    else:
        looked = "" if item.holders is not None else " that could be looked at"
        yield [Segment(f"No process{looked} maps it or has it open.")]
    if item.reason:
        yield []
        yield from render_labelled("unknown", [escape_text(item.reason)], options.width, ALARM)


def _facts(item: SharedObject, size: int) -> Iterator[str]:
    yield format_size(item.size_bytes)
    yield f"owner {escape_text(item.owner or 'unknown')}"
    if item.age_s is not None:
        yield f"{format_seconds(item.age_s)} old"
    if item.cgroup:
        yield f"charged to {escape_text(item.cgroup)}"
    if item.marks:
        yield item.marks.replace("_", " ")
    # What is in none of the classes, which are of its pages up to its end.
    for pages, where in (
        (item.beyond_end_resident_pages, "in RAM"),
        (item.beyond_end_swapped_pages, "on swap"),
    ):
        if pages:
            yield f"{format_size(pages * size)} {where} beyond its end"


def _runs(table: Table[ObjectRun]) -> Runs:
    kinds = [_KINDS.get(label, PageClass.UNKNOWN) for label in table.column("page_class")]
    return Runs(table.column("first"), table.column("pages"), np.array(kinds, np.uint8))


def _list_runs(runs: Runs, size: int) -> Iterator[Line]:
    for first, pages, value in runs:
        kind = PageClass(value)
        where = f"{first}-{first + pages}"
        text = f"  {where:22}{format_size(pages * size):>6}{pages:>10} pages  "
        yield [Segment(text, DIM), Segment(kind.label, CLASSES[kind].color)]
