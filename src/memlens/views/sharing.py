"""What ``memlens sharing`` shows: processes, pairs, and what was copied since a fork."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from memlens.sharing.records import (
    MappingShare,
    ProcessGroup,
    ProcessList,
    ProcessMemory,
    ProcessShare,
    Sharing,
)
from memlens.units import count_of, escape_text, format_size, user_name
from memlens.views.lines import ALARM, DIM, Line, Segment
from memlens.views.table import (
    TableColumn,
    TableOptions,
    json_cost,
    json_missed,
    json_rows,
    render_csv,
    render_document,
    render_rows,
    render_summary,
    sort_names,
    sort_rows,
)

SCHEMA = "memlens.sharing/1"
_MAPPINGS_SHOWN = 8
_MISSED_SHOWN = 5

# Cells of the matrix hold a size or a PID.
_CELL_LEAST = 5


def render_json(result: Sharing) -> str:
    """Return one JSON object."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "page_size_bytes": result.page_size_bytes,
        "processes": [asdict(process) for process in result.processes],
        "pairs": [asdict(pair) for pair in result.pairs],
        "distinct_pages": result.distinct_pages,
        "is_hidden": result.is_hidden,
        "is_complete": result.is_complete,
        "missed": [asdict(item) for item in result.missed],
        "notes": list(result.notes),
        "cost": asdict(result.cost),
    }
    return json.dumps(document) + "\n"


def render_text(
    result: Sharing, *, width: int = 80, has_mappings: bool = False, is_unicode: bool = True
) -> Iterator[str]:
    """
    Yield the lines for a person.

    :param width: cells in a line.
    :param has_mappings: whether to list every mapping of every process.
    """
    size = _Sizes(result.page_size_bytes)
    yield from _headline(result, size)
    yield from _process_lines(result, size, width)
    yield from _matrix(result, size, width, is_unicode)
    if has_mappings:
        yield from _all_mappings(result, size, width)
    else:
        yield from _mapping_lines(result, size, width)
    yield from _notes(result)


class _Sizes:
    def __init__(self, page_size_bytes: int) -> None:
        self.page_size_bytes = page_size_bytes

    def __call__(self, pages: float | None) -> str:
        if pages is None:
            return "?"
        return format_size(pages * self.page_size_bytes)


def _headline(result: Sharing, size: _Sizes) -> Iterator[str]:
    mapped = sum(process.rss_pages for process in result.processes)
    count = len(result.processes)
    if result.distinct_pages is not None and count > 1:
        yield (
            f"{count} processes map {size(mapped)}, which is {size(result.distinct_pages)} "
            "of memory\n"
        )
    forks = [process for process in result.processes if process.copied_pages is not None]
    if forks:
        shared = sum(process.shared_with_parent_pages or 0 for process in forks)
        copied = sum(process.copied_pages or 0 for process in forks)
        fresh = sum(_made(process) for process in forks)
        children = count_of(len(forks), "child", "children")
        yield (
            f"since the fork, {children}: {size(shared)} still shared, {size(copied)} copied, "
            f"{size(fresh)} new\n"
        )
    if result.processes and (forks or count > 1):
        yield "\n"


def _process_lines(result: Sharing, size: _Sizes, width: int) -> Iterator[str]:
    has_forks = any(process.copied_pages is not None for process in result.processes)
    has_swap = any(process.swapped_pages for process in result.processes)
    has_mapped = any(process.new_object_pages for process in result.processes)
    titles = ["PID", "RSS", "PSS", "USS", "freed"]
    fork_titles = ["shared", "copied", "new", *["mapped"] * has_mapped] if has_forks else []
    titles += ["swap"] * has_swap + fork_titles
    widths = [8, *[6] * (len(titles) - 1)]
    if has_forks:
        before = sum(widths[: -len(fork_titles)]) + len(widths) - len(fork_titles) - 1
        head = f"{'of parent since fork':^{7 * len(fork_titles) - 1}}"
        yield f"{'':{before}} {head}".rstrip() + "\n"
    yield f"{_join(titles, widths)}  name\n"
    depths = _depths(result.processes)
    room = max(width - sum(widths) - len(widths) - 1, 8)
    for process in result.processes:
        cells = [str(process.pid), size(process.rss_pages), size(process.pss_pages)]
        cells += [size(process.uss_pages), size(process.freed_on_exit_pages)]
        cells += [size(process.swapped_pages)] * has_swap
        if process.copied_pages is None:
            cells += [""] * len(fork_titles)
        else:
            cells += [size(process.shared_with_parent_pages), size(process.copied_pages)]
            cells += [size(_made(process)), *[size(process.new_object_pages)] * has_mapped]
        indent = "  " * min(depths[process.pid], room // 4)
        name = indent + _short_title(escape_text(process.name), room - len(indent))
        yield f"{_join(cells, widths)}  {name[:room]}\n"


def _short_title(title: str, room: int) -> str:
    """Return what tells processes of one name apart, where not all of it has room."""
    _, colon, rest = title.partition(": ")
    return rest if colon and len(title) > room else title


def _made(row: ProcessShare | MappingShare) -> int:
    """Return the pages that are new and the process's own."""
    return (row.new_pages or 0) - (row.new_object_pages or 0)


def _depths(processes: tuple[ProcessShare, ...]) -> dict[int, int]:
    depths: dict[int, int] = {}
    for process in processes:
        depths[process.pid] = 0 if process.parent is None else depths.get(process.parent, 0) + 1
    return depths


def _matrix(result: Sharing, size: _Sizes, width: int, is_unicode: bool) -> Iterator[str]:
    pids = [process.pid for process in result.processes]
    if len(pids) < 2 or not result.pairs:
        return
    shared = {(pair.a, pair.b): pair.shared_pages for pair in result.pairs}
    shared |= {(b, a): pages for (a, b), pages in shared.items()}
    cell = max(_CELL_LEAST, len(str(max(pids))))
    # Below this width the rest of the columns are left to a wider terminal.
    columns = pids[: max((width - cell) // (cell + 1), 1)]
    yield "\nshared by each pair\n"
    yield f"{'':{cell}}{''.join(f' {pid:>{cell}}' for pid in columns)}\n"
    itself = "·" if is_unicode else "."
    for pid in pids:
        cells = [itself if pid == other else size(shared[pid, other]) for other in columns]
        yield f"{pid:>{cell}}{''.join(f' {text:>{cell}}' for text in cells)}\n"
    if len(columns) < len(pids):
        rest = len(pids) - len(columns)
        yield f"({rest} more columns: a wider terminal, or --json)\n"


def _mapping_lines(result: Sharing, size: _Sizes, width: int) -> Iterator[str]:
    """Yield the mappings that matter most, summed over processes by name."""
    forks = [process for process in result.processes if process.copied_pages is not None]
    if forks:
        yield from _fork_mappings(forks, size, width)
        return
    groups = _group(list(result.processes))
    rows = sorted(groups.items(), key=lambda item: -sum(m.uss_pages for m in item[1]))
    if not rows:
        return
    yield f"\n{'RSS':>8} {'PSS':>6} {'USS':>6}  mapping{_summed(result.processes)}\n"
    for name, mappings in rows[:_MAPPINGS_SHOWN]:
        cells = [
            size(sum(m.rss_pages for m in mappings)),
            size(sum(m.pss_pages for m in mappings)),
            size(sum(m.uss_pages for m in mappings)),
        ]
        yield f"{_join(cells, [8, 6, 6])}  {_cut(name, width - 24)}\n"
    yield from _more(rows)


def _fork_mappings(forks: list[ProcessShare], size: _Sizes, width: int) -> Iterator[str]:
    groups = _group(forks)

    def figures(mappings: list[MappingShare]) -> list[int]:
        return [
            sum(m.copied_pages or 0 for m in mappings),
            sum(map(_made, mappings)),
            sum(m.shared_with_parent_pages or 0 for m in mappings),
            sum(m.new_object_pages or 0 for m in mappings),
        ]

    rows = sorted(groups.items(), key=lambda item: [-n for n in figures(item[1])])
    columns = 3 + any(process.new_object_pages for process in forks)
    titles, widths = ["copied", "new", "shared", "mapped"][:columns], [8, 6, 6, 6][:columns]
    yield f"\n{_join(titles, widths)}  mapping{_summed(tuple(forks))}\n"
    for name, mappings in rows[:_MAPPINGS_SHOWN]:
        cells = [size(pages) for pages in figures(mappings)[:columns]]
        yield f"{_join(cells, widths)}  {_cut(name, width - 7 * columns - 3)}\n"
    yield from _more(rows)


def _group(processes: list[ProcessShare]) -> dict[str, list[MappingShare]]:
    groups: dict[str, list[MappingShare]] = {}
    for process in processes:
        for mapping in process.mappings:
            groups.setdefault(mapping.path or "(anonymous)", []).append(mapping)
    return groups


def _summed(processes: tuple[ProcessShare, ...]) -> str:
    return f" (sum of {len(processes)} processes)" if len(processes) > 1 else ""


def _more(rows: list[Any]) -> Iterator[str]:
    if len(rows) > _MAPPINGS_SHOWN:
        yield f"({len(rows) - _MAPPINGS_SHOWN} more: --mappings)\n"


def _all_mappings(result: Sharing, size: _Sizes, width: int) -> Iterator[str]:
    for process in result.processes:
        has_fork = process.copied_pages is not None
        titles = ["RSS", "PSS", "USS", *["shared", "copied", "new", "mapped"] * has_fork]
        widths = [6] * len(titles)
        yield f"\n{process.pid} {escape_text(process.name)}\n"
        yield f"{'address':>14} {'perm':4} {_join(titles, widths)}  mapping\n"
        room = width - 22 - sum(widths) - len(widths)
        for mapping in process.mappings:
            cells = [size(mapping.rss_pages), size(mapping.pss_pages), size(mapping.uss_pages)]
            if has_fork:
                cells += [
                    size(mapping.shared_with_parent_pages),
                    size(mapping.copied_pages),
                    size(_made(mapping)),
                    size(mapping.new_object_pages),
                ]
            name = _cut(mapping.path or "(anonymous)", room)
            start = f"{mapping.start:x}"
            yield f"{start:>14} {mapping.permissions:4} {_join(cells, widths)}  {name}\n"


def _notes(result: Sharing) -> Iterator[str]:
    if result.missed or result.notes or not result.is_complete:
        yield "\n"
    if not result.is_complete:
        yield "note: stopped early: the answer is incomplete\n"
    for note in result.notes:
        yield f"note: {note}\n"
    for item in result.missed[:_MISSED_SHOWN]:
        yield f"not looked at: {escape_text(item.what)}: {escape_text(item.reason)}\n"
    if len(result.missed) > _MISSED_SHOWN:
        yield f"not looked at: {len(result.missed) - _MISSED_SHOWN} more (--json has them)\n"


def _join(cells: list[str], widths: list[int]) -> str:
    return " ".join(f"{cell:>{n}}" for cell, n in zip(cells, widths, strict=True))


def _cut(name: str, width: int) -> str:
    """Return the end of a name in a width."""
    shown = escape_text(name)
    return shown if len(shown) <= max(width, 12) else f"~{shown[1 - max(width, 12) :]}"


PS_SCHEMA = "memlens.ps/1"
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


def render_processes(
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
        yield from render_rows(rows[:top], PROCESS_COLUMNS, size, options)
    else:
        rows = _groups(result, group_by, sort)
        yield from render_rows(rows[:top], GROUP_COLUMNS, size, options)
    if top is not None and len(rows) > top:
        yield [Segment(f"{len(rows) - top} more", DIM)]
    yield []
    yield from render_summary(result.missed, result.notes, result.cost, options)


def _groups(result: ProcessList, group_by: str, sort: str | None) -> list[ProcessGroup]:
    groups = sorted(result.groups, key=lambda group: (-group.pss_pages, group.key))
    if group_by == "user":
        groups = [replace(group, key=user_name(int(group.key))) for group in groups]
    return sort_rows(groups, GROUP_COLUMNS, sort)


def render_processes_json(
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
            "schema": PS_SCHEMA,
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
