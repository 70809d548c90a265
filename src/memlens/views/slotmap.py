"""The slots of swap areas, drawn, and as members of the ledger's JSON."""

import string
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.swap.records import AreaSlots, SlotMap, SlotOwner
from memlens.units import escape_text, format_size
from memlens.views.lines import ALARM, BOLD, DIM, Line, Segment
from memlens.views.table import TableColumn, TableOptions, render_rows

_ROWS = 12
_LETTERS = string.ascii_uppercase
_OTHER = "+"
_STYLES = ("red", "cyan", "green", "yellow", "magenta", "blue")
_CLAIMS_SHOWN = 5


class _Row(NamedTuple):
    """An owner with the letter that stands for it."""

    sign: str
    owner: SlotOwner


_COLUMNS: tuple[TableColumn[_Row], ...] = (
    TableColumn("sign", "sign", "text", lambda row: row.sign),
    TableColumn("pid", "PID", "number", lambda row: row.owner.pid, absent=""),
    TableColumn("pages", "slots", "pages", lambda row: row.owner.pages),
    TableColumn("extents", "extents", "number", lambda row: row.owner.extents),
    TableColumn(
        "slots_per_extent", "slots per\nextent", "number", lambda row: _mean(row.owner)
    ),
    TableColumn(
        "also_held_pages",
        "held by\nothers too",
        "pages",
        lambda row: row.owner.also_held_pages,
        1,
    ),
    TableColumn("kind", "kind", "text", lambda row: row.owner.kind),
    TableColumn("name", "name", "name", lambda row: row.owner.name),
)


def _mean(owner: SlotOwner) -> float:
    return round(owner.pages / owner.extents, 1)


def render_text(
    slots: SlotMap, page_size_bytes: int, options: TableOptions, top: int | None = None
) -> Iterator[Line]:
    """
    Yield the lines of a map: a strip for every area, and who is who.

    :param top: owners to list at most.
    """
    for area in slots.areas:
        yield from _area(area, page_size_bytes, options)
        yield []
    if not slots.is_walked:
        text = "shared memory is left out: its slots need the page-cache walk (memlens doctor)"
        yield [Segment(text, ALARM)]
    if slots.cache_reason:
        text = f"private pages that are in RAM again are left out: {slots.cache_reason}"
        yield [Segment(escape_text(text), ALARM)]
    yield from _claims(slots)
    shown = len(_LETTERS) if top is None else top
    rows = [_Row(_sign(index), owner) for index, owner in enumerate(slots.owners)]
    yield from render_rows(rows[:shown], _COLUMNS, page_size_bytes, options)
    if len(rows) > shown:
        yield [Segment(f"{len(rows) - shown} more, together {_OTHER}", DIM)]
    text = "A: all slots of the cell are named, a: some, by the owner with most; .: none"
    yield [Segment(text, DIM)]


def _sign(index: int) -> str:
    return _LETTERS[index] if index < len(_LETTERS) else _OTHER


def _area(area: AreaSlots, page_size_bytes: int, options: TableOptions) -> Iterator[Line]:
    path = escape_text(area.path) or "which device this is, the kernel does not say"
    head = f"Area {area.area} ({path}): {area.named_pages} slots named"
    if area.used_pages is not None:
        head += f" of {area.used_pages} used"
    yield [Segment(head, BOLD)]
    counts, slots_per_cell = count_cells(area, max(options.width - 1, 8) * _ROWS)
    size = format_size(slots_per_cell * page_size_bytes)
    yield [Segment(f"a cell is {slots_per_cell} slots, {size}", DIM)]
    cells = [_cell(count, slots_per_cell) for count in counts]
    width = max(options.width - 1, 8)
    for at in range(0, len(cells), width):
        yield cells[at : at + width]


def count_cells(area: AreaSlots, cells: int) -> tuple[NDArray[np.int64], int]:
    """
    Return how many slots each owner has in each cell.

    :param cells: how many there may be; they stand for slots from 0 on, alike.
    :return: ``(cells, 27)`` int64, the last column for owners without a letter; and the
        slots that a cell stands for.
    """
    per_cell = max(-(-area.slots // cells), 1)
    count = -(-area.slots // per_cell)
    runs = area.runs
    bounds = np.arange(count + 1, dtype=np.int64) * per_cell
    edges = np.sort(np.concatenate([runs.first, runs.first + runs.pages, bounds]))
    first, pages = edges[:-1], np.diff(edges)
    column = len(_LETTERS)
    table = np.zeros((count, column + 1), np.int64)
    if len(runs.first):
        run = np.maximum(np.searchsorted(runs.first, first, side="right") - 1, 0)
        inside = (first >= runs.first[run]) & (first < runs.first[run] + runs.pages[run])
        inside &= (pages > 0) & (first < area.slots)
        owner = np.minimum(runs.owner[run[inside]], column)
        np.add.at(table, (first[inside] // per_cell, owner), pages[inside])
    return table, per_cell


def _cell(counts: NDArray[np.int64], slots_per_cell: int) -> Segment:
    named = int(counts.sum())
    if not named:
        return Segment(".", DIM)
    index = int(counts.argmax())
    sign = _sign(index)
    is_full = named >= slots_per_cell
    style = _STYLES[index % len(_STYLES)] if index < len(_LETTERS) else ""
    return Segment(sign if is_full else sign.lower(), style)


def _claims(slots: SlotMap) -> Iterator[Line]:
    for claim in slots.twice[:_CLAIMS_SHOWN]:
        one, other = (slots.owners[index] for index in claim.owners)
        names = f"{escape_text(one.name)} and {escape_text(other.name)}"
        stop = claim.slot + claim.pages - 1
        text = f"area {claim.area}, slots {claim.slot} to {stop} are claimed twice: {names}"
        yield [Segment(text, ALARM)]
    if len(slots.twice) > _CLAIMS_SHOWN:
        yield [Segment(f"{len(slots.twice) - _CLAIMS_SHOWN} more claims like these", ALARM)]


def json_slots(slots: SlotMap) -> dict[str, Any]:
    """Return the members that a map adds to the ledger's JSON."""
    return {
        "slot_owners": [
            {
                "kind": owner.kind,
                "name": owner.name,
                "pid": owner.pid,
                "pages": owner.pages,
                "extents": owner.extents,
                "also_held_pages": owner.also_held_pages,
            }
            for owner in slots.owners
        ],
        "slot_areas": [
            {
                "area": area.area,
                "path": area.path,
                "slots": area.slots,
                "used_pages": area.used_pages,
                "named_pages": area.named_pages,
                "runs": np.stack(
                    [area.runs.first, area.runs.pages, area.runs.owner], axis=1
                ).tolist(),
            }
            for area in slots.areas
        ],
        "slots_claimed_twice": [
            {
                "area": claim.area,
                "slot": claim.slot,
                "pages": claim.pages,
                "owners": list(claim.owners),
            }
            for claim in slots.twice
        ],
        "is_walked": slots.is_walked,
        "cache_reason": slots.cache_reason,
    }
