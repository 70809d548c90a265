"""What processes use, as text, JSON (``memlens.ps/1``) and CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from memlens.account.sharing import ProcessGroup, ProcessList, ProcessMemory
from memlens.views.lines import (
    ALARM,
    DIM,
    Line,
    Segment,
)
from memlens.views.table import (
    TableColumn,
    TableOptions,
    json_cost,
    json_missed,
    json_rows,
    render_csv,
    render_document,
    render_summary,
    render_table,
    sort_names,
    sort_rows,
)
from memlens.views.users import user_name

SCHEMA = "memlens.ps/1"
_RAM, _SWAP = "green", "red"

PROCESS_COLUMNS: tuple[TableColumn[ProcessMemory], ...] = (
    TableColumn("pid", "PID", "number", lambda row: row.pid),
    TableColumn("user", "user", "text", lambda row: user_name(row.uid), 2),
    TableColumn("rss_pages", "RSS", "pages", lambda row: row.rss_pages, style=_RAM),
    TableColumn("pss_pages", "PSS", "pages", lambda row: row.pss_pages, style=_RAM),
    TableColumn("uss_pages", "USS", "pages", lambda row: row.uss_pages, style=_RAM),
    TableColumn(
        "swap_own_pages", "swap\nown", "pages", lambda row: row.swap_own_pages, style=_SWAP
    ),
    TableColumn(
        "swap_share_pages",
        "swap\nshare",
        "pages",
        lambda row: row.swap_share_pages,
        style=_SWAP,
    ),
    TableColumn(
        "freed_on_exit_pages", "freed\non exit", "pages", lambda row: row.freed_on_exit_pages
    ),
    TableColumn(
        "shared_memory_pages", "shared\nmemory", "pages", lambda row: row.shared_memory_pages, 1
    ),
    TableColumn("cgroup", "cgroup", "text", lambda row: row.cgroup, 3),
    TableColumn("name", "name", "name", lambda row: row.name),
)
GROUP_COLUMNS: tuple[TableColumn[ProcessGroup], ...] = (
    TableColumn("processes", "processes", "number", lambda row: len(row.pids)),
    TableColumn(
        "distinct_rss_pages",
        "distinct\nRSS",
        "pages",
        lambda row: row.distinct_rss_pages,
        style=_RAM,
    ),
    TableColumn("pss_pages", "PSS", "pages", lambda row: row.pss_pages, style=_RAM),
    TableColumn("uss_pages", "USS", "pages", lambda row: row.uss_pages, style=_RAM),
    TableColumn(
        "swap_own_pages", "swap\nown", "pages", lambda row: row.swap_own_pages, style=_SWAP
    ),
    TableColumn(
        "swap_share_pages",
        "swap\nshare",
        "pages",
        lambda row: row.swap_share_pages,
        style=_SWAP,
    ),
    TableColumn("key", "group", "name", lambda row: row.key),
)


def list_sorts(is_grouped: bool) -> list[str]:
    """Return what ``--sort`` may be."""
    return sort_names(GROUP_COLUMNS if is_grouped else PROCESS_COLUMNS)


def render_text(
    result: ProcessList,
    options: TableOptions,
    group_by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[Line]:
    """
    Yield the lines of processes, or of their groups.

    :param group_by: what the groups have in common; None shows processes.
    :param sort: column to sort by.
    :param top: rows to show at most.
    """
    size = result.page_size_bytes
    if not result.is_complete:
        yield [Segment("INCOMPLETE: the scan ended early", ALARM)]
    if group_by is None:
        rows: Sequence[Any] = sort_rows(result.processes, PROCESS_COLUMNS, sort)
        yield from render_table(rows[:top], PROCESS_COLUMNS, size, options)
    else:
        rows = _groups(result, group_by, sort)
        yield from render_table(rows[:top], GROUP_COLUMNS, size, options)
    if top is not None and len(rows) > top:
        yield [Segment(f"{len(rows) - top} more", DIM)]
    yield []
    yield from render_summary(result.missed, result.notes, result.cost, options)


def _groups(result: ProcessList, group_by: str, sort: str | None) -> list[ProcessGroup]:
    groups = sorted(result.groups, key=lambda group: (-group.pss_pages, group.key))
    if group_by == "user":
        groups = [replace(group, key=user_name(int(group.key))) for group in groups]
    return sort_rows(groups, GROUP_COLUMNS, sort)


def render_json(
    result: ProcessList,
    group_by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[str]:
    """Yield the pieces of one JSON object; ``sort`` and ``top`` as in the text."""
    groups = _groups(result, group_by, sort) if group_by is not None else []
    order = sort if group_by is None else None
    processes = sort_rows(result.processes, PROCESS_COLUMNS, order)
    return render_document(
        {
            "schema": SCHEMA,
            "page_size_bytes": result.page_size_bytes,
            "processes": [
                _process_json(row) for row in processes[: _of(top, group_by is None)]
            ],
            "groups": [_group_json(row) for row in groups[:top]],
            "missed": json_missed(result.missed),
            "notes": list(result.notes),
            "is_complete": result.is_complete,
            "cost": json_cost(result.cost),
        }
    )


def _of(top: int | None, is_meant: bool) -> int | None:
    return top if is_meant else None


def _process_json(row: ProcessMemory) -> dict[str, Any]:
    (found,) = json_rows([row], PROCESS_COLUMNS)
    return {**found, "uid": row.uid}


def _group_json(row: ProcessGroup) -> dict[str, Any]:
    (found,) = json_rows([row], GROUP_COLUMNS)
    return {"key": found.pop("key"), "pids": list(row.pids), **found}


def render_processes_csv(
    result: ProcessList,
    group_by: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Iterator[str]:
    """Yield CSV: a row for every process, or for every group."""
    if group_by is not None:
        return render_csv(_groups(result, group_by, sort)[:top], GROUP_COLUMNS)
    return render_csv(sort_rows(result.processes, PROCESS_COLUMNS, sort)[:top], PROCESS_COLUMNS)
