"""Shared-memory objects as text, JSON (``memlens.shm/1``) and CSV."""

import math
from collections.abc import Iterator
from typing import Any

from memlens.account.inventory import Inventory
from memlens.account.sharedobject import UNREACHABLE, Holder, SharedObject
from memlens.pages.classes import CLASSES, PageClass, counts_by_name
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
from memlens.views.table import (
    TableColumn,
    TableOptions,
    json_cost,
    json_missed,
    render_amount,
    render_csv,
    render_document,
    render_summary,
    render_table,
    sort_names,
    sort_rows,
)
from memlens.views.users import user_name

SCHEMA = "memlens.shm/1"
CLASS_STYLES = {row.page_class: row.color for row in CLASSES}
_REMAINDER = f"of no object that can be listed: {UNREACHABLE}"
_MISSED = "of what was missed, as named below, or "
_HOLDER_NAME = 10
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def _pages_of(kind: PageClass, title: str, rank: int) -> TableColumn[SharedObject]:
    def read(row: SharedObject) -> int:
        return int(row.counts()[kind])

    return TableColumn(f"{kind.label}_pages", title, "pages", read, rank, CLASS_STYLES[kind])


def holder_pids(item: SharedObject) -> list[int]:
    """Return the PIDs that map an object or have it open."""
    return [holder.pid for holder in item.holders]


def holders_text(item: SharedObject) -> str:
    """Return the holders in short: the first, and how many more there are; "?" if not known."""
    if not item.holders:
        return "none" if "no_holder" in item.marks else "?"
    # Who maps most of it is the one to name.
    first = max(item.holders, key=lambda holder: holder.mapped_pages)
    more = f" +{len(item.holders) - 1}" if len(item.holders) > 1 else ""
    return f"{first.pid} {first.name[:_HOLDER_NAME]}{more}"


def owner_text(item: SharedObject) -> str | None:
    """Return the user who owns an object, None if not known."""
    return None if item.uid is None else user_name(item.uid)


def format_age(age_s: float | None) -> str | None:
    """
    Return how long something has been, in one unit.

    >>> [format_age(age_s) for age_s in (5.0, 300.0, 7300.0, 200000.0)]
    ['5s', '5m', '2h', '2d']
    """
    if age_s is None:
        return None
    for unit, suffix in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if age_s >= unit:
            return f"{int(age_s) // unit}{suffix}"
    return f"{int(age_s)}s"


OBJECT_COLUMNS: tuple[TableColumn[SharedObject], ...] = (
    TableColumn("kind", "kind", "text", lambda row: row.kind),
    TableColumn("size_bytes", "size", "bytes", lambda row: row.size_bytes),
    TableColumn("resident_pages", "in RAM", "pages", lambda row: row.resident_pages, 9),
    _pages_of(PageClass.PRESENT, "present", 1),
    _pages_of(PageClass.CACHED, "cached", 1),
    TableColumn("swap_pages", "on swap", "pages", lambda row: row.swap_pages, 9),
    _pages_of(PageClass.SWAPPED, "swapped", 1),
    _pages_of(PageClass.SWAP_CACHED, "swap\ncached", 1),
    _pages_of(PageClass.PREALLOCATED, "pre-\nalloc", 1),
    _pages_of(PageClass.NONE, "none", 5),
    _pages_of(PageClass.UNKNOWN, "unknown", 1),
    TableColumn(
        "beyond_end_resident_pages",
        "in RAM\npast end",
        "pages",
        lambda row: row.beyond_end_resident_pages,
        4,
    ),
    TableColumn(
        "beyond_end_swapped_pages",
        "swapped\npast end",
        "pages",
        lambda row: row.beyond_end_swap_pages,
        4,
    ),
    TableColumn("holders", "holders", "text", holders_text, 2),
    TableColumn("owner", "owner", "text", owner_text, 3),
    TableColumn("age", "age", "text", lambda row: format_age(row.age_s), 4),
    TableColumn("device", "device", "text", lambda row: row.device, 7),
    TableColumn("inode", "inode", "number", lambda row: row.inode, 6),
    TableColumn("cgroup", "cgroup", "text", lambda row: row.cgroup, 8, absent=""),
    TableColumn("marks", "marks", "text", lambda row: ", ".join(row.marks), 3),
    TableColumn("name", "name", "name", lambda row: row.name),
)
# The sums of others, to sort by.
_SUMS = frozenset({"resident_pages", "swap_pages"})
_TEXT_COLUMNS = tuple(column for column in OBJECT_COLUMNS if column.name not in _SUMS)


def list_sorts() -> list[str]:
    """Return what ``--sort`` may be."""
    return sort_names(OBJECT_COLUMNS)


def _by_age(item: SharedObject) -> float:
    """Return a key that puts the oldest first, and before them those of unknown age."""
    return -math.inf if item.age_s is None else -item.age_s


def _sorted(inventory: Inventory, sort: str | None) -> list[SharedObject]:
    if sort == "age":
        return sorted(inventory.objects, key=_by_age)
    return sort_rows(inventory.objects, OBJECT_COLUMNS, sort)


def render_text(
    inventory: Inventory,
    options: TableOptions,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[Line]:
    """
    Yield the lines of an inventory.

    :param sort: column to sort by.
    :param top: rows to show at most.
    """
    size = inventory.page_size_bytes
    if not inventory.is_complete:
        yield [Segment("INCOMPLETE: the scan ended early", ALARM)]
    rows = _sorted(inventory, sort)
    if rows:
        yield from render_table(rows[:top], _TEXT_COLUMNS, size, options)
        if top is not None and len(rows) > top:
            yield [Segment(f"{len(rows) - top} more", DIM)]
        yield []
    yield from _account(inventory, options)
    yield []
    if inventory.remainder_pages > 0:
        text = (_MISSED if inventory.missed else "") + _REMAINDER
        yield from render_labelled("remainder", [text], options.width)
    yield from render_summary(inventory.missed, inventory.notes, inventory.cost, options)


def _account(inventory: Inventory, options: TableOptions) -> Iterator[Line]:
    """Yield the resident sum set against what the kernel counts."""
    resident = sum(item.resident_pages for item in inventory.objects)
    remainder = inventory.remainder_pages
    digits = len(str(inventory.shmem_pages))
    objects = count_of(len(inventory.objects), "object", "objects")
    for label, pages, style, meaning in (
        ("objects", resident, "", f"in RAM, of {objects}, each page once"),
        ("remainder", remainder, ALARM if remainder else "", "what no object explains"),
        ("Shmem", inventory.shmem_pages, BOLD, "as /proc/meminfo says"),
    ):
        amount = format_size(pages * inventory.page_size_bytes)
        share = percent(pages, inventory.shmem_pages)
        head = f"{label:<10} {amount:>6} {pages:>{digits}} pages {share:>4}  "
        yield from render_amount(head, style, meaning, options)


def render_json(
    inventory: Inventory,
    sort: str | None = None,
    top: int | None = None,
    has_runs: bool = False,
) -> Iterator[str]:
    """
    Yield the pieces of one JSON object.

    :param has_runs: whether to list the runs of every object.
    """
    return render_document(
        {
            "schema": SCHEMA,
            "page_size_bytes": inventory.page_size_bytes,
            "shmem_pages": inventory.shmem_pages,
            "remainder_pages": inventory.remainder_pages,
            "objects": [
                _object_json(item, has_runs) for item in _sorted(inventory, sort)[:top]
            ],
            "missed": json_missed(inventory.missed),
            "notes": list(inventory.notes),
            "is_complete": inventory.is_complete,
            "cost": json_cost(inventory.cost),
        }
    )


def _object_json(item: SharedObject, has_runs: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": item.kind,
        "name": item.name,
        "device": item.device,
        "inode": item.inode,
        "size_bytes": item.size_bytes,
        "pages": counts_by_name(item.counts()),
        "beyond_end_resident_pages": item.beyond_end_resident_pages,
        "beyond_end_swapped_pages": item.beyond_end_swap_pages,
        "holders": [_holder_json(holder) for holder in item.holders],
        "marks": list(item.marks),
        "uid": item.uid,
        "age_s": item.age_s,
        "cgroup": item.cgroup,
        "reasons": list(item.reasons),
    }
    if has_runs:
        found["runs"] = [
            [first, pages, PageClass(value).label] for first, pages, value in item.runs
        ]
    return found


def _holder_json(holder: Holder) -> dict[str, Any]:
    return {
        "pid": holder.pid,
        "name": holder.name,
        "mapped_pages": holder.mapped_pages,
        "present_pages": holder.present_pages,
        "is_open": holder.is_open,
        "ranges": [list(part) for part in holder.ranges],
    }


def render_inventory_csv(
    inventory: Inventory, sort: str | None = None, top: int | None = None
) -> Iterator[str]:
    """Yield CSV: a row for every object."""
    return render_csv(_sorted(inventory, sort)[:top], OBJECT_COLUMNS)
