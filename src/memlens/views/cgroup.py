"""What ``memlens cgroup`` shows: one cgroup in full, or all of them in a line each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from memlens.physical.records import KINDS, CgroupList, CgroupPages, ElsewherePages, OwnerPages
from memlens.units import escape_text, format_size

SCHEMA = "memlens.cgroup/1"
_TOP = 10


def list_json(result: CgroupList) -> str:
    """Return one JSON object: all cgroups."""
    rows = [
        {
            "path": row.path,
            "inode": row.inode,
            "charged_pages": row.charged_pages,
            "kinds": dict(zip(KINDS, row.pages, strict=True)),
        }
        for row in result.rows
    ]
    document = {
        "schema": SCHEMA,
        "version": result.version,
        "page_size_bytes": result.page_size_bytes,
        "cgroups": rows,
        "is_complete": result.is_complete,
        "cost": asdict(result.cost),
    }
    return json.dumps(document) + "\n"


def list_text(result: CgroupList, width: int = 80) -> Iterator[str]:
    """Yield a line for each cgroup."""
    kinds = [
        number for number in range(len(KINDS)) if any(r.pages[number] for r in result.rows)
    ]
    titles = ["charged", *(_short(KINDS[number]) for number in kinds)]
    yield f"{_join(titles)}  cgroup\n"
    room = width - 8 * len(titles) - 1
    for row in result.rows:
        pages = [row.charged_pages, *(row.pages[number] for number in kinds)]
        cells = [_size(count, result.page_size_bytes) for count in pages]
        yield f"{_join(cells)}  {_cut(row.path or f'@{row.inode}', room)}\n"
    total = [row.charged_pages for row in result.rows]
    yield f"{_size(sum(total), result.page_size_bytes):>7} in {len(total)} cgroups\n"
    if not result.is_complete:
        yield "note: stopped early: the answer is incomplete\n"


def render_json(result: CgroupPages) -> str:
    """Return one JSON object: one cgroup."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "path": result.path,
        "version": result.version,
        "page_size_bytes": result.page_size_bytes,
        "cgroups": result.cgroups,
        "charged_pages": result.charged_pages,
        "kinds": [asdict(row) for row in result.kinds],
        "files": [
            {"path": row.name, "pages": row.pages, "mapped_pages": row.mapped_pages}
            for row in result.files
        ],
        "processes": [
            {
                "pid": row.pid,
                "name": row.name,
                "cgroup": row.cgroup,
                "pages": row.pages,
                "mapped_pages": row.mapped_pages,
            }
            for row in result.processes
        ],
        "unowned_pages": result.unowned_pages,
        "used_elsewhere": [asdict(row) for row in result.used_elsewhere],
        "only_elsewhere_pages": result.only_elsewhere_pages,
        "charged_elsewhere": [asdict(row) for row in result.charged_elsewhere],
        "stat": [
            {**asdict(line), "difference_pages": line.difference_pages} for line in result.stat
        ],
        "moved_pages": result.moved_pages,
        "is_complete": result.is_complete,
        "missed": [asdict(item) for item in result.missed],
        "notes": list(result.notes),
        "cost": asdict(result.cost),
    }
    return json.dumps(document) + "\n"


def render_text(result: CgroupPages, width: int = 80, top: int = _TOP) -> Iterator[str]:
    """
    Yield the lines for a person.

    :param width: cells in a line.
    :param top: files and processes to show.
    """
    unit = result.page_size_bytes
    below = f" and {result.cgroups - 1} below" if result.cgroups > 1 else ""
    yield (
        f"{_cut(result.path, width - 40)}{below} (v{result.version}): "
        f"{_size(result.charged_pages, unit)} charged\n\n"
    )
    yield f"{'pages':>9} {'size':>6} {'dirty':>6}  kind\n"
    for row in result.kinds:
        dirty = _size(row.dirty_pages, unit) if row.dirty_pages else ""
        label = row.kind if row.kind == "kernel" else f"{row.kind}, {row.state}"
        yield f"{row.pages:>9} {_size(row.pages, unit):>6} {dirty:>6}  {label}\n"
    yield from _owners("file", result.files, unit, width, top)
    yield from _owners("process (private memory)", result.processes, unit, width, top)
    if result.unowned_pages:
        yield (
            f"\n{_size(result.unowned_pages, unit)} that no process maps and no file was "
            "found for\n"
        )
    yield from _elsewhere(result, unit, width)
    yield from _stat(result, unit)
    yield from _notes(result)


def _owners(
    title: str, rows: Sequence[OwnerPages], unit: int, width: int, top: int
) -> Iterator[str]:
    if not rows:
        return
    yield f"\n{'size':>6} {'mapped':>6}  {title}\n"
    for row in rows[:top]:
        name = f"{row.pid} {row.name}" if row.pid else row.name
        mapped = _size(row.mapped_pages, unit)
        yield f"{_size(row.pages, unit):>6} {mapped:>6}  {_cut(name, width - 16)}\n"
    if len(rows) > top:
        rest = sum(row.pages for row in rows[top:])
        yield f"{_size(rest, unit):>6} {'':>6}  {len(rows) - top} more (--top)\n"


def _elsewhere(result: CgroupPages, unit: int, width: int) -> Iterator[str]:
    if result.used_elsewhere:
        only = _size(result.only_elsewhere_pages, unit)
        yield f"\ncharged here, used elsewhere ({only} of it by nobody here)\n"
        yield from _places(result.used_elsewhere, unit, width)
    if result.charged_elsewhere:
        yield "\nused here, charged elsewhere\n"
        yield from _places(result.charged_elsewhere, unit, width)


def _places(rows: Sequence[ElsewherePages], unit: int, width: int) -> Iterator[str]:
    for row in rows[:_TOP]:
        yield f"{_size(row.pages, unit):>6}  {_cut(row.cgroup, width - 9)}\n"
    if len(rows) > _TOP:
        rest = sum(row.pages for row in rows[_TOP:])
        yield f"{_size(rest, unit):>6}  {len(rows) - _TOP} more\n"


def _stat(result: CgroupPages, unit: int) -> Iterator[str]:
    if not result.stat:
        return
    yield f"\n{'memory.stat':<18} {'says':>7} {'found':>7} {'difference':>11}\n"
    for line in result.stat:
        difference = line.difference_pages
        shown = f"{'-' if difference < 0 else ''}{_size(abs(difference), unit)}"
        yield (
            f"{escape_text(line.name):<18} {_size(line.stat_pages, unit):>7} "
            f"{_size(line.found_pages, unit):>7} {shown:>11}\n"
        )


def _notes(result: CgroupPages) -> Iterator[str]:
    yield "\n"
    if not result.is_complete:
        yield "note: stopped early: the answer is incomplete\n"
    if result.moved_pages:
        yield f"note: {result.moved_pages} pages changed hands meanwhile and are left out\n"
    for note in result.notes:
        yield f"note: {note}\n"
    for item in result.missed:
        yield f"not looked at: {escape_text(item.what)}: {escape_text(item.reason)}\n"


def _short(kind: str) -> str:
    return "anon" if kind == "anonymous" else kind


def _size(pages: int, unit: int) -> str:
    return format_size(pages * unit)


def _join(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>7}" for cell in cells)


def _cut(name: str, width: int) -> str:
    """Return the end of a name in a width."""
    shown, width = escape_text(name), max(width, 16)
    return shown if len(shown) <= width else f"~{shown[1 - width :]}"
