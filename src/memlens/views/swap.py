"""The swap ledger as text, JSON (``memlens.swap/1``) and CSV."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memlens.shm.records import SharedObject
from memlens.swap.records import AreaSwap, CgroupSwap, ProcessSwap, SwapLedger, ZswapUse
from memlens.units import count_of, format_size
from memlens.views.lines import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    percent,
    render_labelled,
    user_name,
)
from memlens.views.shm import holder_pids, holders_text
from memlens.views.table import (
    TableColumn,
    TableOptions,
    json_cost,
    json_missed,
    json_rows,
    render_amount,
    render_csv,
    render_document,
    render_rows,
    render_summary,
    sort_names,
    sort_rows,
)

SCHEMA = "memlens.swap/1"

# Rows of each table where nothing else is asked for.
_SHOWN = 10
_SWAP, _CACHE = "red", "magenta"
AREA_COLUMNS: tuple[TableColumn[AreaSwap], ...] = (
    TableColumn("area", "area", "number", lambda row: row.area, absent="?"),
    TableColumn("kind", "kind", "text", lambda row: row.kind),
    TableColumn("used_pages", "used", "pages", lambda row: row.used_pages, style=_SWAP),
    TableColumn("size_pages", "size", "pages", lambda row: row.size_pages),
    TableColumn(
        "private_pages", "private", "pages", lambda row: row.private_pages, 1, absent="?"
    ),
    TableColumn("stored_bytes", "stored", "bytes", lambda row: row.stored_bytes, 3, absent=""),
    TableColumn(
        "compressed_bytes", "in RAM", "bytes", lambda row: row.compressed_bytes, 2, absent=""
    ),
    TableColumn("priority", "prio", "number", lambda row: row.priority, 4),
    TableColumn("path", "path", "name", lambda row: row.path),
)
PROCESS_COLUMNS: tuple[TableColumn[ProcessSwap], ...] = (
    TableColumn("pid", "PID", "number", lambda row: row.pid),
    TableColumn("user", "user", "text", lambda row: user_name(row.uid), 2),
    TableColumn("own_pages", "own", "pages", lambda row: row.own_pages, style=_SWAP),
    TableColumn("share_pages", "share", "pages", lambda row: row.share_pages, style=_SWAP),
    TableColumn(
        "freed_on_exit_pages", "freed\non exit", "pages", lambda row: row.freed_on_exit_pages
    ),
    TableColumn("cache_pages", "also\nin RAM", "pages", lambda row: row.cache_pages, 1, _CACHE),
    TableColumn("cgroup", "cgroup", "text", lambda row: row.cgroup, 3),
    TableColumn("name", "name", "name", lambda row: row.name),
)
OBJECT_COLUMNS: tuple[TableColumn[SharedObject], ...] = (
    TableColumn("kind", "kind", "text", lambda row: row.kind),
    TableColumn("swap_pages", "swap", "pages", lambda row: row.swap_pages, style=_SWAP),
    TableColumn(
        "swapped_pages",
        "only\non swap",
        "pages",
        lambda row: row.swap_pages - row.swap_cached_pages,
        4,
    ),
    TableColumn(
        "swap_cached_pages",
        "also\nin RAM",
        "pages",
        lambda row: row.swap_cached_pages,
        1,
        _CACHE,
    ),
    TableColumn(
        "beyond_end_swapped_pages",
        "past\nend",
        "pages",
        lambda row: row.beyond_end_swap_pages,
        4,
    ),
    TableColumn("size_bytes", "size", "bytes", lambda row: row.size_bytes, 1),
    TableColumn("device", "device", "text", lambda row: row.device, 4),
    TableColumn("inode", "inode", "number", lambda row: row.inode, 4),
    TableColumn("holders", "holders", "text", holders_text),
    TableColumn("marks", "marks", "text", lambda row: ", ".join(row.marks), 2),
    TableColumn("name", "name", "name", lambda row: row.name),
)
CGROUP_COLUMNS: tuple[TableColumn[CgroupSwap], ...] = (
    TableColumn(
        "charged_pages", "charged", "pages", lambda row: row.charged_pages, style=_SWAP
    ),
    TableColumn("own_pages", "own", "pages", lambda row: row.own_pages),
    TableColumn("share_pages", "share", "pages", lambda row: row.share_pages),
    TableColumn("path", "cgroup", "name", lambda row: row.path),
)


class _Part(NamedTuple):
    """What ``--by`` chooses: columns, the rows, and what to call them."""

    title: str
    columns: Sequence[TableColumn[Any]]
    rows: Sequence[Any]


PARTS = ("process", "object", "cgroup", "area")
_COLUMNS: dict[str, Sequence[TableColumn[Any]]] = {
    "process": PROCESS_COLUMNS,
    "object": OBJECT_COLUMNS,
    "cgroup": CGROUP_COLUMNS,
    "area": AREA_COLUMNS,
}


def list_sorts(by: str | None) -> list[str]:
    """Return what ``--sort`` may be."""
    return sort_names(_COLUMNS[by or "process"])


def _part(ledger: SwapLedger, by: str, sort: str | None) -> _Part:
    rows: Sequence[Any]
    title, rows = {
        "process": ("By process", ledger.processes),
        "object": ("By shared-memory object", ledger.objects),
        "cgroup": ("By cgroup", ledger.cgroups),
        "area": ("By area", ledger.areas),
    }[by]
    columns = _COLUMNS[by]
    return _Part(title, columns, sort_rows(rows, columns, sort))


def render_text(
    ledger: SwapLedger,
    options: TableOptions,
    by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[Line]:
    """
    Yield the lines of a ledger.

    :param by: one of ``PARTS``; None shows some rows of each.
    :param sort: column to sort by.
    :param top: rows to show at most.
    """
    size = ledger.page_size_bytes
    if not ledger.is_complete:
        yield [Segment("INCOMPLETE: the scan ended early", ALARM)]
    if not ledger.areas:
        yield [Segment("This machine has no swap area in use.")]
        yield from render_labelled("note", ledger.notes, options.width)
        return
    is_asked = by == "area"
    areas = _part(ledger, "area", sort if is_asked else None).rows
    yield from render_rows(areas[: top if is_asked else None], AREA_COLUMNS, size, options)
    yield from _zswap_lines(ledger.zswap)
    yield []
    yield from _account(ledger, options)
    parts = [by] if by is not None and by != "area" else PARTS[:3] if by is None else []
    for name in parts:
        part = _part(ledger, name, sort if by is not None or name == "process" else None)
        if part.rows:
            yield []
            yield from _render_part(part, options, size, top if by or top else _SHOWN, name)
    yield []
    yield from render_summary(ledger.missed, ledger.notes, ledger.cost, options)


def _render_part(
    part: _Part, options: TableOptions, size: int, top: int | None, name: str
) -> Iterator[Line]:
    yield [Segment(part.title, BOLD)]
    yield from render_rows(part.rows[:top], part.columns, size, options)
    if top is not None and len(part.rows) > top:
        yield [Segment(f"{len(part.rows) - top} more (--by {name} has all)", DIM)]


def _zswap_lines(zswap: ZswapUse | None) -> Iterator[Line]:
    if zswap is not None and zswap.stored_bytes:
        taken = "?" if zswap.compressed_bytes is None else format_size(zswap.compressed_bytes)
        text = (
            f"zswap holds {format_size(zswap.stored_bytes)} of it compressed in {taken} of RAM"
        )
        yield [Segment(text, DIM)]


def _account(ledger: SwapLedger, options: TableOptions) -> Iterator[Line]:
    """Yield the ledger itself: four lines and their sum."""
    shared_cached = ledger.swap_cached_shared_pages
    objects = f"of {count_of(len(ledger.objects), 'object', 'objects')}, each page once"
    if shared_cached:
        amount = format_size(shared_cached * ledger.page_size_bytes)
        objects += f"; {amount} of it also in RAM"
    # Where slots are hidden, processes have pages that the line cannot count.
    holders = sum(1 for row in ledger.processes if ledger.private_pages and row.own_pages)
    processes = f"of {count_of(holders, 'process', 'processes')}, each slot once"
    rows = (
        ("private pages", ledger.private_pages, _SWAP, processes),
        ("shared memory", ledger.shared_pages, _SWAP, objects),
        ("swap cache", ledger.swap_cache_pages, _CACHE, "private pages in RAM again"),
        ("remainder", ledger.remainder_pages, ALARM, "what none of these explains"),
    )
    digits = len(str(ledger.used_pages))
    for label, pages, style, meaning in rows:
        style = style if pages else ""
        yield from _account_line(label, pages, style, meaning, ledger, digits, options)
    yield [Segment("-" * (24 + digits + 12), DIM)]
    meaning = "as /proc/swaps says"
    yield from _account_line("used", ledger.used_pages, BOLD, meaning, ledger, digits, options)


def _account_line(
    label: str,
    pages: int,
    style: str,
    meaning: str,
    ledger: SwapLedger,
    digits: int,
    options: TableOptions,
) -> Iterator[Line]:
    size = format_size(pages * ledger.page_size_bytes)
    share = percent(pages, ledger.used_pages)
    head = f"{label:<15} {size:>6} {pages:>{digits}} pages {share:>4}  "
    yield from render_amount(head, style, meaning, options)


def render_json(
    ledger: SwapLedger,
    by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[str]:
    """
    Yield the pieces of one JSON object.

    :param by: the list that ``sort`` is about.
    :param top: rows of every list at most.
    """
    zswap = ledger.zswap

    def rows(name: str) -> list[Any]:
        found = _part(ledger, name, sort if name == (by or "process") else None).rows
        return list(found[:top])

    return render_document(
        {
            "schema": SCHEMA,
            "page_size_bytes": ledger.page_size_bytes,
            "used_pages": ledger.used_pages,
            "private_pages": ledger.private_pages,
            "shared_pages": ledger.shared_pages,
            "swap_cache_pages": ledger.swap_cache_pages,
            "remainder_pages": ledger.remainder_pages,
            "areas": json_rows(rows("area"), AREA_COLUMNS),
            "zswap": zswap
            and {
                "is_enabled": zswap.is_enabled,
                "stored_bytes": zswap.stored_bytes,
                "compressed_bytes": zswap.compressed_bytes,
            },
            "processes": [_process_json(row) for row in rows("process")],
            "objects": [_object_json(item) for item in rows("object")],
            "cgroups": json_rows(rows("cgroup"), CGROUP_COLUMNS),
            **_slots_json(ledger),
            "missed": json_missed(ledger.missed),
            "notes": list(ledger.notes),
            "is_complete": ledger.is_complete,
            "cost": json_cost(ledger.cost),
        }
    )


def _slots_json(ledger: SwapLedger) -> dict[str, Any]:
    if ledger.slots is None:
        return {}
    from memlens.views.slotmap import json_slots

    return json_slots(ledger.slots)


def _process_json(row: ProcessSwap) -> dict[str, Any]:
    (found,) = json_rows([row], PROCESS_COLUMNS)
    return {**found, "uid": row.uid}


def _object_json(item: SharedObject) -> dict[str, Any]:
    (found,) = json_rows([item], OBJECT_COLUMNS)
    return {**found, "holders": holder_pids(item), "marks": list(item.marks)}


def render_ledger_csv(
    ledger: SwapLedger,
    by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[str]:
    """Yield CSV of one part: a row for every process, object, cgroup or area."""
    part = _part(ledger, by or "process", sort)
    return render_csv(part.rows[:top], part.columns)
