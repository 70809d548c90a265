"""What ``memlens swap`` shows: the ledger, who has what of it, and the slots drawn."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.record import Table
from memlens.swap.records import SLOT_SIGNS, SlotArea, SlotRun, SwapLedger, ZswapUse
from memlens.units import count_of, escape_text, format_size
from memlens.views.text import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Part,
    Segment,
    TableOptions,
    cut_middle,
    render_foot,
    render_labelled,
    render_more,
    render_sum,
    render_table,
    render_top,
    wrap,
)

# Rows of each table where nothing else is asked for.
_SHOWN = 10
_SWAP, _CACHE = "red", "magenta"
_TITLES = {
    "processes": "By process",
    "objects": "By shared-memory object",
    "cgroups": "By cgroup",
}

_ROWS = 12
_LETTERS, _OTHER = SLOT_SIGNS[:-1], SLOT_SIGNS[-1]
_STYLES = ("red", "cyan", "green", "yellow", "magenta", "blue")
_CLAIMS_SHOWN = 5
_OWNER_COLUMNS = (
    *("sign", "pid", "pages", "extents", "slots_per_extent", "also_held_pages", "kind"),
    "name",
)

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
        yield from _slots(report, options)
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
    explained = (
        ("private pages", "private_pages", processes, _SWAP),
        ("shared memory", "shared_pages", objects, _SWAP),
        ("swap cache", "swap_cache_pages", "private pages in RAM again", _CACHE),
        ("remainder", "remainder_pages", "what none of these explains", ALARM),
    )
    parts = [
        Part(f"{label:16}", found[name], meaning, style if found[name] else "")
        for label, name, meaning, style in explained
    ]
    yield from render_sum(parts, used, report, options)
    yield [Segment("-" * (24 + len(str(used)) + 12), DIM)]
    whole = Part(f"{'used':16}", used, "as /proc/swaps says", BOLD)
    yield from render_sum([whole], used, report, options)


def _slots(report: SwapLedger, options: TableOptions) -> Iterator[Line]:
    """Yield the lines of a map: a strip for every area, and who is who."""
    for area in report.slot_areas:
        yield from _area(area, report, options)
        yield []
    limits = report.slot_map
    if limits is not None and not limits.is_walked:
        text = "shared memory is left out: its slots need the page-cache walk (memlens doctor)"
        yield from wrap(text, options.width, style=ALARM)
    if limits is not None and limits.cache_reason:
        text = f"private pages that are in RAM again are left out: {limits.cache_reason}"
        yield from wrap(text, options.width, style=ALARM)
    yield from _claims(report, options)
    shown = len(_LETTERS) if options.top is None else options.top
    owners = report.slot_owners.top(shown)
    yield from render_table(owners, report.page_size_bytes, options, _OWNER_COLUMNS)
    yield from render_more(len(report.slot_owners) - shown, f"together {_OTHER}")
    text = "A: all slots of the cell are named, a: some, by the owner with most; .: none"
    yield from wrap(text, options.width, style=DIM)


def _area(area: SlotArea, report: SwapLedger, options: TableOptions) -> Iterator[Line]:
    path = escape_text(area.path) or "which device this is, the kernel does not say"
    head = f"Area {area.area} ("
    room = max(options.width - len(head) - 1, 16)
    yield [Segment(f"{head}{cut_middle(path, room, options.ellipsis)})", BOLD)]
    runs = report.slot_runs[report.slot_runs.column("area") == area.area]
    counts, slots_per_cell = count_cells(runs, area.slots, max(options.width - 1, 8) * _ROWS)
    of_used = "" if area.used_pages is None else f" of {area.used_pages} used"
    size = format_size(slots_per_cell * report.page_size_bytes)
    text = f"{area.named_pages} slots named{of_used}; a cell is {slots_per_cell} slots, {size}"
    yield from wrap(text, options.width, style=DIM)
    cells = [_cell(count, slots_per_cell) for count in counts]
    width = max(options.width - 1, 8)
    for at in range(0, len(cells), width):
        yield cells[at : at + width]


def count_cells(runs: Table[SlotRun], slots: int, cells: int) -> tuple[NDArray[np.int64], int]:
    """
    Return how many slots each owner has in each cell.

    :param runs: of one area, in order.
    :param slots: slots are below this.
    :param cells: how many there may be; they stand for slots from 0 on, alike.
    :return: ``(cells, 27)`` int64, the last column for owners without a letter; and the
        slots that a cell stands for.
    """
    per_cell = max(-(-slots // cells), 1)
    count = -(-slots // per_cell)
    starts, lengths, owners = (runs.column(name) for name in ("slot", "pages", "owner"))
    bounds = np.arange(count + 1, dtype=np.int64) * per_cell
    edges = np.sort(np.concatenate([starts, starts + lengths, bounds]))
    first, pages = edges[:-1], np.diff(edges)
    column = len(_LETTERS)
    table = np.zeros((count, column + 1), np.int64)
    if len(runs):
        run = np.maximum(np.searchsorted(starts, first, side="right") - 1, 0)
        inside = (first >= starts[run]) & (first < starts[run] + lengths[run])
        inside &= (pages > 0) & (first < slots)
        owner = np.minimum(owners[run[inside]], column)
        np.add.at(table, (first[inside] // per_cell, owner), pages[inside])
    return table, per_cell


def _cell(counts: NDArray[np.int64], slots_per_cell: int) -> Segment:
    named = int(counts.sum())
    if not named:
        return Segment(".", DIM)
    index = int(counts.argmax())
    sign = SLOT_SIGNS[index]
    is_full = named >= slots_per_cell
    style = _STYLES[index % len(_STYLES)] if index < len(_LETTERS) else ""
    return Segment(sign if is_full else sign.lower(), style)


def _claims(report: SwapLedger, options: TableOptions) -> Iterator[Line]:
    names = dict(
        zip(
            *(report.slot_owners.column(name).tolist() for name in ("owner", "name")),
            strict=True,
        )
    )
    twice = report.slots_claimed_twice
    for claim in twice.top(_CLAIMS_SHOWN):
        one, other = (names.get(owner, "?") for owner in (claim.owner, claim.other_owner))
        stop = claim.slot + claim.pages - 1
        text = f"area {claim.area}, slots {claim.slot} to {stop} are claimed twice: "
        text += f"{one} and {other}"
        yield from wrap(text, options.width, style=ALARM)
    if len(twice) > _CLAIMS_SHOWN:
        yield [Segment(f"{len(twice) - _CLAIMS_SHOWN} more claims like these", ALARM)]
