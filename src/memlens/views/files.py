"""What ``memlens files`` shows: a row for each file, with a strip of where in it pages are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from memlens.physical.records import FileCache, FileReport, FileTotal, StripCell
from memlens.record import Table
from memlens.units import count_of, escape_text, format_size
from memlens.views.text import (
    DIM,
    Line,
    Segment,
    TableOptions,
    cells_of,
    percent,
    render_cells,
    render_foot,
    render_labelled,
)

_TOP = 20
_STRIP_LEAST, _STRIP_MOST, _STRIP_SHARE = 8, 48, 5
_SHADES = {True: "░▒▓█", False: ".-+#"}
_NONE = {True: "·", False: "_"}
_SHOWN = (
    "cached_pages",
    "size_bytes",
    "mapped_pages",
    "dirty_pages",
    "writeback_pages",
    "evicted_pages",
    "path",
)


def render(report: FileReport, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person."""
    yield from _page_cache(report, options)
    # Files that are named one by one are all shown.
    named = report.total.named_paths if report.total else 0
    files = report.files.top(options.top or max(_TOP, named))
    yield from _files(report, files, options)
    for reason in dict.fromkeys(file.reason for file in files if file.reason):
        yield [Segment(f"  ? {escape_text(reason)}")]
    if report.total is not None and report.total.files != 1:
        yield from _total(report, report.total, len(files), options)
    yield [Segment(_key(options.is_unicode), DIM)]
    yield []
    yield from render_foot(report, options)


def _files(
    report: FileReport, files: Table[FileCache], options: TableOptions
) -> Iterator[Line]:
    size = report.page_size_bytes
    cells = cells_of(files, size, _SHOWN)
    found = {column.name: column for column in cells}
    strips: dict[tuple[int | None, int | None], list[StripCell]] = {}
    for cell in report.strips:
        strips.setdefault((cell.device, cell.inode), []).append(cell)
    room = min(_STRIP_MOST, max(_STRIP_LEAST, options.width // _STRIP_SHARE))
    where = [
        _strip(strips.get((file.device, file.inode), ()), room, options.is_unicode)
        for file in files
    ]
    title = "where".ljust(max(map(len, where), default=0))
    drawn = {
        found["cached_pages"]: cells[found["cached_pages"]],
        replace(found["cached_pages"], name="share", title="of"): [
            _share(file, size) for file in files
        ],
        **cells,
        replace(found["path"], name="where", title=title, unit="text", rank=4): where,
    }
    drawn[found["path"]] = drawn.pop(found["path"])
    yield from render_cells(drawn, options)


def _share(file: FileCache, page_size_bytes: int) -> str:
    if file.cached_pages is None or not file.size_bytes:
        return ""
    return percent(file.cached_pages, -(-file.size_bytes // page_size_bytes))


def _strip(cells: Sequence[StripCell], room: int, is_unicode: bool) -> str:
    """Return the strip of a file in a width, each sign for as many cells as another."""
    room = min(room, len(cells))
    edges = [len(cells) * number // room for number in range(room + 1)] if room else []
    parts = (cells[at:stop] for at, stop in pairwise(edges))
    return "".join(_glyph(part, is_unicode) for part in parts)


def _glyph(cells: Sequence[StripCell], is_unicode: bool) -> str:
    pages = sum(cell.pages for cell in cells)
    cached = sum(cell.cached_pages for cell in cells)
    if cached:
        return _SHADES[is_unicode][min(3 * cached // pages, 3)]
    return "e" if any(cell.evicted_pages for cell in cells) else _NONE[is_unicode]


def _key(is_unicode: bool) -> str:
    shades = _SHADES[is_unicode]
    return (
        f"{shades[3]} all cached  {shades[2]}{shades[1]}{shades[0]} in part  "
        f"e none, some evicted  {_NONE[is_unicode]} none"
    )


def _total(
    report: FileReport, total: FileTotal, shown: int, options: TableOptions
) -> Iterator[Line]:
    figures = {
        "mapped": total.mapped_pages,
        "dirty": total.dirty_pages,
        "being written": total.writeback_pages,
        "evicted": total.evicted_pages,
    }
    size = report.page_size_bytes
    cached, share = "?", ""
    if total.cached_pages is not None:
        cached = format_size(total.cached_pages * size)
        share = f" ({percent(total.cached_pages, total.pages)})" if total.pages else ""
    parts = [
        f"{cached} cached of {format_size(total.pages * size)}{share}",
        *(f"{format_size(pages * size)} {name}" for name, pages in figures.items() if pages),
        count_of(total.files, "file", "files"),
    ]
    if total.unknown_files:
        parts.append(f"{total.unknown_files} not known")
    if len(report.files) > shown:
        parts.append(f"{len(report.files) - shown} not shown (--top N shows more)")
    yield from render_labelled("total", [", ".join(parts)], options.width)


def _page_cache(report: FileReport, options: TableOptions) -> Iterator[Line]:
    """Yield how much of the machine's page cache the files account for."""
    figures = report.sums.get("page_cache")
    if figures is None:
        return

    def size(name: str) -> str:
        pages = figures[name]
        return "?" if pages is None else format_size(abs(pages) * report.page_size_bytes)

    yield from render_labelled(
        "cache",
        [
            f"{size('total_pages')} in RAM (shared memory {size('shmem_pages')} of it); found "
            f"{size('explained_pages')} in files"
        ],
        options.width,
    )
    rest, total = figures["remainder_pages"], report.total
    lines = []
    if rest is not None and rest < 0:
        lines.append(f"it changed by {size('remainder_pages')} meanwhile")
    elif rest:
        is_partial = total is not None and (total.unknown_files or total.denied_processes)
        hidden = ", or that this user may not ask about" if is_partial else ""
        lines.append(
            f"not attributable: {size('remainder_pages')}: files that no process maps or has "
            f"open{hidden}; name the directories they may be in to find them"
        )
    if figures["buffer_pages"]:
        lines.append(f"besides: {size('buffer_pages')} of block devices (Buffers)")
    yield from render_labelled("", lines, options.width)
    yield []
