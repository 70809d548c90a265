"""Shared-memory objects as text, JSON (``memlens.shm/1``) and CSV."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from memlens.pages.classes import CLASSES, PageClass, counts_by_name
from memlens.shm.records import UNREACHABLE, Holder, Inventory, SharedObject
from memlens.units import count_of, escape_text, format_size
from memlens.views.lines import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    cell_len,
    cut_middle,
    percent,
    render_labelled,
    user_name,
)
from memlens.views.map import cell_character
from memlens.views.strip import draw_strip
from memlens.views.table import (
    TableColumn,
    TableOptions,
    json_cost,
    json_missed,
    render_amount,
    render_csv,
    render_document,
    render_rows,
    render_summary,
    sort_names,
    sort_rows,
)

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
        yield from render_rows(rows[:top], _TEXT_COLUMNS, size, options)
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


_MEANINGS = {
    PageClass.PRESENT: "in RAM, mapped by at least one process",
    PageClass.CACHED: "in RAM, mapped by no process",
}

# The same where processes that were not looked at may map it.
_UNSEEN_MEANINGS = _MEANINGS | {
    PageClass.CACHED: "in RAM, mapped by no process that could be looked at",
}
HOLDER_COLUMNS: tuple[TableColumn[Holder], ...] = (
    TableColumn("pid", "PID", "number", lambda row: row.pid),
    TableColumn("mapped_pages", "maps", "pages", lambda row: row.mapped_pages),
    TableColumn("present_pages", "present", "pages", lambda row: row.present_pages),
    TableColumn("is_open", "open", "text", lambda row: "open" if row.is_open else ""),
    TableColumn("ranges", "pages", "text", lambda row: _ranges_text(row.ranges), 1),
    TableColumn("name", "name", "name", lambda row: row.name),
)


def _ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{first}-{stop}" for first, stop in ranges[:2])
    return f"{shown}, +{len(ranges) - 2}" if len(ranges) > 2 else shown


def render_objects(
    inventory: Inventory, options: TableOptions, has_runs: bool = False
) -> Iterator[Line]:
    """
    Yield the lines of the objects that have one name, page by page.

    :param has_runs: whether to list their runs.
    """
    if not inventory.is_complete:
        yield [Segment("INCOMPLETE: the scan ended early", ALARM)]
    for item in inventory.objects:
        yield from _render_object(item, inventory.page_size_bytes, options, has_runs)
        yield []
    yield from render_summary(inventory.missed, (), inventory.cost, options)


def _render_object(
    item: SharedObject, size: int, options: TableOptions, has_runs: bool
) -> Iterator[Line]:
    about = f"{item.kind}, device {item.device}, inode {item.inode}"
    name = cut_middle(escape_text(item.name), options.width, options.ellipsis)
    is_short = cell_len(name) + len(about) + 2 <= options.width
    yield [Segment(name, BOLD), *([Segment(f"  {about}", DIM)] if is_short else ())]
    if not is_short:
        yield [Segment(about, DIM)]
    facts = [format_size(item.size_bytes), f"owner {owner_text(item) or 'unknown'}"]
    age = format_age(item.age_s)
    facts += [f"{age} old"] if age else []
    facts += [f"charged to {escape_text(item.cgroup)}"] if item.cgroup else []
    facts += [mark.replace("_", " ") for mark in item.marks]
    facts += _beyond_end(item, size)
    for part in textwrap.wrap(", ".join(facts), options.width):
        yield [Segment(part, DIM)]
    pages = int(item.counts().sum())
    if pages:
        yield []
        yield from _strips(item, pages, options)
        yield []
        yield from _totals(item, pages, size, options)
    if has_runs:
        yield []
        yield from _runs(item, size)
    yield []
    if item.holders:
        yield from render_rows(item.holders, HOLDER_COLUMNS, size, options)
    else:
        looked = "" if "no_holder" in item.marks else " that could be looked at"
        yield [Segment(f"No process{looked} maps it or has it open.")]
    if item.reasons:
        yield []
    yield from render_labelled(
        "unknown", [escape_text(r) for r in item.reasons], options.width, ALARM
    )


def _beyond_end(item: SharedObject, size: int) -> Iterator[str]:
    """Yield what is in none of the classes, which are of its pages up to its end."""
    for pages, where in (
        (item.beyond_end_resident_pages, "in RAM"),
        (item.beyond_end_swap_pages, "on swap"),
    ):
        if pages:
            yield f"{format_size(pages * size)} {where} beyond its end"


def _strips(item: SharedObject, pages: int, options: TableOptions) -> Iterator[Line]:
    line: Line = []
    for kind, is_mixed in draw_strip(item.runs, 0, pages, options.width):
        if kind is None:
            line.append(Segment(" "))
        else:
            character = cell_character(kind, is_mixed, options)
            line.append(Segment(character, CLASS_STYLES[kind]))
    yield line


def _totals(item: SharedObject, pages: int, size: int, options: TableOptions) -> Iterator[Line]:
    counts = item.counts()
    digits = len(str(pages))
    meanings = _UNSEEN_MEANINGS if item.may_have_more_holders else _MEANINGS
    for row in CLASSES:
        count = int(counts[row.page_class])
        if not count:
            continue
        sign = cell_character(row.page_class, False, options)
        label = f"{sign} {row.page_class.label:<12}"
        amount = format_size(count * size)
        rest = f"{amount:>6} {count:>{digits}} pages {percent(count, pages):>4}  "
        meaning = meanings.get(row.page_class, row.meaning)
        room = max(options.width - len(label) - len(rest), 20)
        parts = textwrap.wrap(meaning, room)
        yield [
            Segment(label, CLASS_STYLES[row.page_class]),
            Segment(rest),
            Segment(parts[0], DIM),
        ]
        for part in parts[1:]:
            yield [Segment(" " * (len(label) + len(rest))), Segment(part, DIM)]


def _runs(item: SharedObject, size: int) -> Iterator[Line]:
    for first, pages, value in item.runs:
        kind = PageClass(value)
        where = f"{first}-{first + pages}"
        text = f"  {where:22}{format_size(pages * size):>6}{pages:>10} pages  "
        yield [Segment(text, DIM), Segment(kind.label, CLASS_STYLES[kind])]
