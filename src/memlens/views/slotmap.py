"""The slots of swap areas, drawn."""

import textwrap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.record import Table
from memlens.swap.records import SLOT_SIGNS, SlotArea, SlotRun, SwapLedger
from memlens.units import escape_text, format_size
from memlens.views.lines import ALARM, BOLD, DIM, Line, Segment, cut_middle
from memlens.views.table import TableOptions, render_table

_ROWS = 12
_LETTERS, _OTHER = SLOT_SIGNS[:-1], SLOT_SIGNS[-1]
_STYLES = ("red", "cyan", "green", "yellow", "magenta", "blue")
_CLAIMS_SHOWN = 5
_OWNER_COLUMNS = (
    *("sign", "pid", "pages", "extents", "slots_per_extent", "also_held_pages", "kind"),
    "name",
)


def render_slots(report: SwapLedger, options: TableOptions) -> Iterator[Line]:
    """Yield the lines of a map: a strip for every area, and who is who."""
    for area in report.slot_areas:
        yield from _area(area, report, options)
        yield []
    limits = report.slot_map
    if limits is not None and not limits.is_walked:
        text = "shared memory is left out: its slots need the page-cache walk (memlens doctor)"
        yield from _wrapped(text, ALARM, options)
    if limits is not None and limits.cache_reason:
        text = f"private pages that are in RAM again are left out: {limits.cache_reason}"
        yield from _wrapped(escape_text(text), ALARM, options)
    yield from _claims(report, options)
    shown = len(_LETTERS) if options.top is None else options.top
    owners = report.slot_owners.top(shown)
    yield from render_table(owners, report.page_size_bytes, options, _OWNER_COLUMNS)
    if len(report.slot_owners) > shown:
        more = len(report.slot_owners) - shown
        yield [Segment(f"{more} more, together {_OTHER}", DIM)]
    text = "A: all slots of the cell are named, a: some, by the owner with most; .: none"
    yield from _wrapped(text, DIM, options)


def _wrapped(text: str, style: str, options: TableOptions) -> Iterator[Line]:
    for part in textwrap.wrap(text, options.width):
        yield [Segment(part, style)]


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
    yield from _wrapped(text, DIM, options)
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
        text += f"{escape_text(one)} and {escape_text(other)}"
        yield from _wrapped(text, ALARM, options)
    if len(twice) > _CLAIMS_SHOWN:
        yield [Segment(f"{len(twice) - _CLAIMS_SHOWN} more claims like these", ALARM)]
