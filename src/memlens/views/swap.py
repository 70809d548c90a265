"""What ``memlens swap`` shows: the ledger, and who has what of it."""

from collections.abc import Iterator

from memlens.swap.records import SwapLedger, ZswapUse
from memlens.units import count_of, format_size
from memlens.views.lines import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    percent,
    render_labelled,
)
from memlens.views.slotmap import render_slots
from memlens.views.table import (
    TableOptions,
    render_amount,
    render_foot,
    render_table,
    render_top,
)

# Rows of each table where nothing else is asked for.
_SHOWN = 10
_SWAP, _CACHE = "red", "magenta"
_TITLES = {
    "processes": "By process",
    "objects": "By shared-memory object",
    "cgroups": "By cgroup",
}

# Keys that only other tables need.
_NOT_SHOWN = ("object", "uid")


def render(
    report: SwapLedger,
    options: TableOptions,
    *,
    table: str | None = None,
    has_map: bool = False,
) -> Iterator[Line]:
    """
    Yield the lines for a person.

    :param table: the table that is shown whole; None shows some rows of each.
    :param has_map: whether the map of slots was asked for; it is drawn if it is there.
    """
    if not len(report.areas):
        yield [Segment("This machine has no swap area in use.")]
        yield from render_labelled("note", report.notes, options.width)
        return
    areas = report.areas.top(options.top if table == "areas" else None)
    yield from render_table(areas, report.page_size_bytes, options)
    yield from _zswap_lines(report.zswap)
    yield []
    yield from _account(report, options)
    for name, title in _TITLES.items():
        rows = report.table(name)
        if len(rows) and table in (None, name):
            yield []
            yield [Segment(title, BOLD)]
            names = [c.name for c in rows.columns if c.name not in _NOT_SHOWN]
            most = None if table else _SHOWN
            yield from render_top(rows, report, options, most, names)
    if report.slot_map is not None:
        yield []
        yield from render_slots(report, options)
    elif has_map:
        yield [Segment("no map of slots is in this report: it was made without --map", ALARM)]
    yield []
    yield from render_foot(report, options)


def _zswap_lines(zswap: ZswapUse | None) -> Iterator[Line]:
    if zswap is not None and zswap.stored_bytes:
        taken = "?" if zswap.compressed_bytes is None else format_size(zswap.compressed_bytes)
        text = (
            f"zswap holds {format_size(zswap.stored_bytes)} of it compressed in {taken} of RAM"
        )
        yield [Segment(text, DIM)]


def _account(report: SwapLedger, options: TableOptions) -> Iterator[Line]:
    """Yield the ledger itself: four lines and their sum."""
    found = {name: pages or 0 for name, pages in report.sums["swap"].items()}
    used, shared_cached = found["total_pages"], found["shared_swap_cached_pages"]
    objects = f"of {count_of(len(report.objects), 'object', 'objects')}, each page once"
    if shared_cached:
        amount = format_size(shared_cached * report.page_size_bytes)
        objects += f"; {amount} of it also in RAM"
    # Where slots are hidden, processes have pages that the line cannot count.
    entries = report.processes.column("swap_entries_pages")
    holders = int((entries > 0).sum()) if found["private_pages"] else 0
    processes = f"of {count_of(holders, 'process', 'processes')}, each slot once"
    digits = len(str(used))
    for label, pages, style, meaning in (
        ("private pages", found["private_pages"], _SWAP, processes),
        ("shared memory", found["shared_pages"], _SWAP, objects),
        ("swap cache", found["swap_cache_pages"], _CACHE, "private pages in RAM again"),
        ("remainder", found["remainder_pages"], ALARM, "what none of these explains"),
        ("used", used, BOLD, "as /proc/swaps says"),
    ):
        if label == "used":
            yield [Segment("-" * (24 + digits + 12), DIM)]
        size = format_size(pages * report.page_size_bytes)
        head = f"{label:<15} {size:>6} {pages:>{digits}} pages {percent(pages, used):>4}  "
        yield from render_amount(head, style if pages else "", meaning, options)
