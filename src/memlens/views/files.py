"""
What ``memlens files`` shows: a row for each file, with a strip of where in it pages are.

Imports no numpy, so that a question about a few files is answered at once.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memlens.physical.records import FileCache, FileTotals, StripCell
from memlens.units import count_of, escape_text, format_size
from memlens.views.lines import percent

SCHEMA = "memlens.files/1"
_STRIP_LEAST, _STRIP_MOST, _NAME_LEAST = 8, 48, 20
_SKIPPED_SHOWN = 5
_SHADES = {True: "░▒▓█", False: ".-+#"}
_NONE = {True: "·", False: "_"}
Cells = Callable[[str, int], list[StripCell]]


@dataclass(slots=True)
class TopFiles:
    """
    Keeps the files that hold most of the page cache, however many come.

    :param most: how many to keep; None keeps all.
    """

    most: int | None
    _heap: list[tuple[int, int, FileCache]] = field(default_factory=list)
    _number: int = 0

    def add(self, row: FileCache) -> None:
        """Take a file in."""
        # Of equals the first stays; what is not known comes before what is nothing.
        rank = 1 if row.cached_pages is None else row.cached_pages * 2
        item = (rank, -self._number, row)
        self._number += 1
        if self.most is None or len(self._heap) < self.most:
            heapq.heappush(self._heap, item)
        elif self.most:
            heapq.heappushpop(self._heap, item)

    def rows(self) -> list[FileCache]:
        """Return the files, most pages first."""
        return [row for _, _, row in sorted(self._heap, reverse=True)]

    @property
    def left_out(self) -> int:
        """Return how many were not kept."""
        return self._number - len(self._heap)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Directories that were not entered, and what else to tell."""

    paths: list[tuple[str, str]]
    notes: list[str]


def render_text(
    top: TopFiles,
    totals: FileTotals,
    cells: Cells,
    page_size_bytes: int,
    *,
    width: int = 80,
    is_unicode: bool = True,
) -> Iterator[str]:
    """
    Yield the lines of a table.

    :param cells: asks where in a file its pages are.
    :param width: cells in a line.
    """
    rows = top.rows()
    has_writeback = bool(totals.sums["writeback_pages"])
    titles = ["cached", "of", "size", "mapped", "dirty", *["wback"] * has_writeback, "evicted"]
    widths = [6, 4, 5, 6, 5, *[5] * has_writeback, 7]
    head = " ".join(f"{title:>{n}}" for title, n in zip(titles, widths, strict=True))
    room = max(width - len(head) - 4, _STRIP_LEAST + _NAME_LEAST)
    strip = min(_STRIP_MOST, max(_STRIP_LEAST, room * 2 // 5))
    name = room - strip
    reasons: set[str] = set()
    yield f"{head}  {'where':<{strip}}  file\n"
    for row in rows:
        figures = _figures(row, page_size_bytes, has_writeback)
        line = " ".join(f"{text:>{n}}" for text, n in zip(figures, widths, strict=True))
        shown = _strip(cells(row.path, strip), is_unicode) if row.cached_pages else ""
        path = cut_path(escape_text(row.path), name, "…" if is_unicode else "~")
        yield f"{line}  {shown:<{strip}}  {path}\n"
        if row.reason and row.reason not in reasons:
            reasons.add(row.reason)
            yield f"     ? {row.reason}\n"
    if totals.files != 1:
        yield from _total_lines(top, totals, page_size_bytes, widths, has_writeback)
    yield f"\n{_key(is_unicode)}\n"


def render_notes(skipped: Skipped) -> Iterator[str]:
    """Yield what was left out, and what limits the numbers."""
    for path, reason in skipped.paths[:_SKIPPED_SHOWN]:
        yield f"left out: {escape_text(path)}: {reason}\n"
    if len(skipped.paths) > _SKIPPED_SHOWN:
        yield f"left out: {len(skipped.paths) - _SKIPPED_SHOWN} more directories (see --json)\n"
    for note in skipped.notes:
        yield f"note: {note}\n"


def render_cache(
    figures: dict[str, int], page_size_bytes: int, is_partial: bool = False
) -> Iterator[str]:
    """
    Yield how much of the machine's page cache the files account for.

    :param is_partial: whether there are files or processes that could not be asked.
    """

    def size(name: str) -> str:
        return format_size(figures[name] * page_size_bytes)

    yield (
        f"Page cache {size('cached_pages')} (shared memory {size('shmem_pages')} of it); "
        f"found {size('found_pages')} in files\n"
    )
    rest = figures["remainder_pages"]
    if rest > 0:
        yield (
            f"not attributable: {size('remainder_pages')}: files that no process maps or has "
            f"open{', or that this user may not ask about' if is_partial else ''};\n"
            "  name the directories they may be in to find them\n"
        )
    elif rest < 0:
        yield f"it changed by {format_size(-rest * page_size_bytes)} meanwhile\n"
    if figures["buffer_pages"]:
        yield f"besides: {size('buffer_pages')} of block devices (Buffers)\n"
    yield "\n"


def render_json(
    rows: Iterable[FileCache],
    page_size_bytes: int,
    finish: Callable[[], dict[str, Any]],
) -> Iterator[str]:
    """
    Yield the pieces of one JSON object, a line per file.

    :param finish: called after the last file, gives the members after ``files``.
    """
    head = {"schema": SCHEMA, "page_size_bytes": page_size_bytes}
    yield json.dumps(head)[:-1] + ', "files": ['
    comma = "\n"
    for row in rows:
        yield comma + json.dumps(_row_json(row))
        comma = ",\n"
    yield "],\n" + json.dumps(finish())[1:] + "\n"


def totals_json(totals: FileTotals) -> dict[str, Any]:
    """Return the totals."""
    return {
        "files": totals.files,
        "unknown_files": totals.unknown,
        "other_names": totals.other_names,
        "size_bytes": totals.size_bytes,
        "pages": totals.pages,
        **totals.sums,
    }


def _row_json(row: FileCache) -> dict[str, Any]:
    return {
        "path": row.path,
        "kind": row.kind,
        "size_bytes": row.size_bytes,
        "cached_pages": row.cached_pages,
        "dirty_pages": row.dirty_pages,
        "writeback_pages": row.writeback_pages,
        "evicted_pages": row.evicted_pages,
        "recently_evicted_pages": row.recently_evicted_pages,
        "mapped_pages": row.mapped_pages,
        "reason": row.reason,
    }


def _figures(row: FileCache, page_size_bytes: int, has_writeback: bool) -> list[str]:
    def size(pages: int | None) -> str:
        if pages is None:
            return "?"
        return format_size(pages * page_size_bytes) if pages else ""

    share = ""
    if row.cached_pages is not None and row.size_bytes:
        share = percent(row.cached_pages, -(-row.size_bytes // page_size_bytes))
    written = [size(row.writeback_pages)] if has_writeback else []
    return [
        size(row.cached_pages) or "0",
        share,
        "?" if row.size_bytes is None else format_size(row.size_bytes),
        size(row.mapped_pages),
        size(row.dirty_pages),
        *written,
        size(row.evicted_pages),
    ]


def _total_lines(
    top: TopFiles, totals: FileTotals, size: int, widths: list[int], has_writeback: bool
) -> Iterator[str]:
    sums: dict[str, int | None] = dict(totals.sums)
    if totals.unknown == totals.files:
        sums |= dict.fromkeys(name for name in sums if name != "mapped_pages")
    row = FileCache(
        path="",
        kind="",
        size_bytes=totals.size_bytes,
        **sums,  # type: ignore[arg-type]
    )
    figures = _figures(row, size, has_writeback)
    cached = row.cached_pages
    figures[1] = "" if cached is None else percent(cached, totals.pages)
    line = " ".join(f"{text:>{n}}" for text, n in zip(figures, widths, strict=True))
    more = f", {top.left_out} not shown (--top)" if top.left_out else ""
    unknown = f", {totals.unknown} not known" if totals.unknown else ""
    yield f"{line}  {count_of(totals.files, 'file', 'files')}{unknown}{more}\n"


def _strip(cells: list[StripCell], is_unicode: bool) -> str:
    return "".join(_glyph(cell, is_unicode) for cell in cells)


def _glyph(cell: StripCell, is_unicode: bool) -> str:
    if cell.cached >= cell.pages:
        return _SHADES[is_unicode][3]
    if cell.cached:
        return _SHADES[is_unicode][3 * cell.cached // cell.pages]
    return "e" if cell.evicted else _NONE[is_unicode]


def _key(is_unicode: bool) -> str:
    shades = _SHADES[is_unicode]
    return (
        f"{shades[3]} all cached  {shades[2]}{shades[1]}{shades[0]} in part  "
        f"e none, some evicted  {_NONE[is_unicode]} none"
    )


def cut_path(path: str, width: int, ellipsis: str) -> str:
    """
    Return a path in a width: its end is what tells files apart.

    >>> cut_path("/usr/share/a/file", 10, "~")
    '~re/a/file'
    """
    if path.isascii():
        return path if len(path) <= width else ellipsis + path[len(path) - width + 1 :]
    from rich.cells import cell_len

    if cell_len(path) <= width:
        return path
    while cell_len(path) > width - 1:
        path = path[1:]
    return ellipsis + path
