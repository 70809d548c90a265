"""
What the views of text are made of: pieces of text with a style, paragraphs, and tables.

A style is spelled as rich spells it; rich itself is needed only where lines are coloured.
A table is fitted to the terminal: where there is no room, columns that matter least are left
out; what a row names comes last and gets the room that is left.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from memlens.record import Column, Table, Unit
from memlens.report import Cost, Report
from memlens.units import ADDRESS_LIMIT, escape_text, format_size

BOLD, DIM, ALARM = "bold", "dim", "bold red"


class Segment(NamedTuple):
    """Text, and its style as rich spells it: ``bold red``."""

    text: str
    style: str = ""


Line = list[Segment]


def cell_len(text: str) -> int:
    """Return the cells that text takes in a terminal."""
    # Names that were cut have an ellipsis, and are no reason to import rich either.
    if text.replace("…", "").isascii():
        return len(text)
    from rich.cells import cell_len as measure

    return measure(text)


def cut_middle(text: str, width: int, ellipsis: str) -> str:
    """Return text in a width, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    tail = max((width - len(ellipsis)) // 2, 0)
    head = max(width - len(ellipsis) - tail, 0)
    end = _take(reversed(text), tail)[::-1]
    return _take(text, head) + ellipsis + end


def _take(characters: Iterable[str], width: int) -> str:
    """Return the first characters that fit a width."""
    taken = ""
    for character in characters:
        if cell_len(taken + character) > width:
            break
        taken += character
    return taken


def format_cost(cost: Cost) -> str:
    """Return what a scan cost as one line."""
    return (
        f"{format_seconds(cost.wall_s)}, {format_size(cost.read_bytes)} read, "
        f"longest single read {format_seconds(cost.longest_read_s)}"
    )


def format_seconds(seconds: float) -> str:
    """
    Return a duration in three digits, a long one in hours or days.

    >>> [format_seconds(s) for s in (0.00004, 0.0123, 2.5, 1234, 7300, 200000)]
    ['0.04 ms', '12.3 ms', '2.5 s', '1234 s', '2 h', '2 d']
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    for unit, suffix in ((86400, "d"), (3600, "h")):
        if seconds >= unit:
            return f"{int(seconds) // unit} {suffix}"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def paragraph(
    head: Line, text: str, width: int, style: str = "", below: str | None = None
) -> Iterator[Line]:
    """
    Yield text from outside beside what stands before its first line.

    :param below: what stands before its other lines; None is blanks.
    """
    room = sum(cell_len(part.text) for part in head)
    below = " " * room if below is None else below
    lines = textwrap.wrap(
        escape_text(text), max(width - max(room, len(below)), 20), break_on_hyphens=False
    )
    for number, line in enumerate(lines or [""]):
        yield [*([Segment(below)] if number else head), Segment(line, style)]


def render_labelled(
    title: str, lines: Iterable[str], width: int, style: str = BOLD
) -> Iterator[Line]:
    """Yield paragraphs, the first with a label before it."""
    for number, line in enumerate(lines):
        yield from paragraph(
            [Segment(f"{title if not number else '':<9} ", style)], line, width
        )


def wrap(text: str, width: int, indent: str = "", style: str = "") -> Iterator[Line]:
    """Yield the lines of a paragraph; words that are too long are cut, not lost."""
    head = [Segment(indent)] if indent else []
    return paragraph(head, text, width, style) if text else iter(())


def render_more(rest: int, where: str = "(--top N shows more)") -> Iterator[Line]:
    """Yield how much more there is, if any, and what shows it."""
    if rest > 0:
        yield [Segment(f"{rest} more {where}", DIM)]


def percent(pages: float, total: float) -> str:
    """
    Return a share that never rounds to nothing or to all, "" of nothing.

    >>> [percent(n, 1000) for n in (0, 1, 500, 999, 1000)]
    ['0%', '<1%', '50%', '>99%', '100%']
    """
    if not total:
        return ""
    share = 100 * pages / total
    if pages < total and share >= 99.5:
        return ">99%"
    return f"{share:.0f}%" if share >= 0.5 or not pages else "<1%"


Value = int | float | str | None


_NAME_LEAST = 12

# A name that gets less loses a column of the first rank to leave out.
_NAME_WANTED = 17
_TEXT_MOST = 20
# Lines of what was missed, and notes.
_FOOT_SHOWN = 8
_WIDE = 110


class TableOptions(NamedTuple):
    """
    How to draw.

    :param width: cells in a line.
    :param is_colored: whether colours will be seen.
    :param is_unicode: whether characters beyond ASCII can be printed.
    :param top: rows of a table that were asked for, None for what the view shows.
    """

    width: int = 80
    is_colored: bool = False
    is_unicode: bool = False
    top: int | None = None

    @property
    def ellipsis(self) -> str:
        """Return what stands for text left out."""
        return "…" if self.is_unicode else "~"


# What the hue of a column stands for, as rich spells it.
HUES = {"": "", "ram": "green", "swap": "red", "cached": "cyan", "shared": "blue", "dim": DIM}


def render_table(
    table: Table[Any],
    page_size_bytes: int,
    options: TableOptions,
    names: Sequence[str] = (),
) -> Iterator[Line]:
    """
    Yield the lines of a table, all its rows; the last column may be a ``name``.

    :param names: the columns that text shows, in this order; none are all.
    """
    yield from render_cells(cells_of(table, page_size_bytes, names), options)


def cells_of(
    table: Table[Any], page_size_bytes: int, names: Sequence[str] = ()
) -> dict[Column, list[str]]:
    """
    Return the text of each column, for a view to change before ``render_cells`` draws it.

    :param names: as of ``render_table``.
    """
    known = {column.name: column for column in table.columns}
    columns = [known[name] for name in names] if names else list(known.values())
    return {
        column: [
            column.absent if value is None else format_cell(column.unit, value, page_size_bytes)
            for value in table.column(column.name).tolist()
        ]
        for column in columns
    }


def render_cells(cells: Mapping[Column, list[str]], options: TableOptions) -> Iterator[Line]:
    """Yield the lines of a table, from the texts of each column."""
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    yield from _draw(list(cells), rows, options)


def render_top(
    table: Table[Any],
    report: Report,
    options: TableOptions,
    most: int | None = None,
    names: Sequence[str] = (),
) -> Iterator[Line]:
    """
    Yield the first rows of a table, and how many more there are.

    :param most: rows to show if ``--top`` does not say, None for all.
    """
    top = table.top(most if options.top is None else options.top)
    yield from render_table(top, report.page_size_bytes, options, names)
    yield from render_more(len(table) - len(top))


def _draw(
    columns: Sequence[Column],
    cells: list[list[str]],
    options: TableOptions,
) -> Iterator[Line]:
    """Yield the heading and the rows, fitted to the width."""
    shown = [
        index
        for index, column in enumerate(columns)
        if not column.rank or any(cell[index] not in ("", column.absent) for cell in cells)
    ]
    gap = 2 if options.width >= _WIDE else 1
    widths = _fit(columns, cells, shown, gap, options.width)
    heads = [
        Head(columns[i].title, width, _style(columns[i]), _is_left(columns[i]))
        for i, width in widths.items()
    ]
    yield from render_heading(heads, gap)
    for row_cells in cells:
        yield _row(columns, row_cells, widths, gap, options)


def format_cell(unit: Unit, value: Value, page_size_bytes: int) -> str:
    """
    Return a value as text shows it: no pages or bytes are nothing to see.

    >>> [format_cell("pages", value, 4096) for value in (4, 0.5, 0, None)]
    ['16K', '2K', '', '?']
    """
    if value is None:
        return "?"
    if isinstance(value, str):
        return escape_text(value)
    if isinstance(value, bool):
        return "yes" if value else ""
    if unit == "pages":
        return format_size(value * page_size_bytes) if value else ""
    if unit == "bytes":
        return format_size(value) if value else ""
    if unit == "seconds":
        return format_seconds(value)
    if unit == "ratio":
        return f"{value:.2f}"
    return f"{int(value) & ADDRESS_LIMIT - 1:x}" if unit == "address" else str(value)


def _fit(
    columns: Sequence[Column],
    cells: list[list[str]],
    shown: list[int],
    gap: int,
    room: int,
) -> dict[int, int]:
    """Return the width of each column that is shown, by its number."""
    widths, longest = {}, {}
    for index in shown:
        title = max(map(len, columns[index].title.split("\n")))
        longest[index] = max((cell_len(row[index]) for row in cells), default=0)
        is_text = columns[index].unit == "text"
        most = min(longest[index], _TEXT_MOST) if is_text else longest[index]
        widths[index] = max(title, most)
    names = [index for index in shown if columns[index].unit == "name"]

    def needed() -> int:
        least = sum(min(w, _NAME_WANTED) if i in names else w for i, w in widths.items())
        return least + gap * (len(widths) - 1)

    while needed() > room:
        # Of those that matter as little, the last goes first.
        index = max(widths, key=lambda i: (columns[i].rank, i))
        if not columns[index].rank:
            break
        del widths[index]
    for index in names:
        others = sum(width for i, width in widths.items() if i != index)
        left = room - others - gap * (len(widths) - 1)
        widths[index] = max(min(widths[index], left), _NAME_LEAST)
    # What nobody needs goes to texts that were cut.
    left = room - sum(widths.values()) - gap * (len(widths) - 1)
    for index in widths:
        more = min(longest[index] - widths[index], left)
        if columns[index].unit == "text" and more > 0:
            widths[index] += more
            left -= more
    return widths


class Head(NamedTuple):
    r"""The heading of a column; ``\n`` in its title where it may break."""

    title: str
    width: int
    style: str = ""
    is_left: bool = False


def render_heading(heads: Sequence[Head], gap: int) -> Iterator[Line]:
    """Yield the lines of a heading, the last full and those above it where titles need them."""
    titles = [head.title.split("\n") for head in heads]
    height = max(map(len, titles), default=1)
    for level in range(height - 1, -1, -1):
        line: Line = []
        for head, title in zip(heads, titles, strict=True):
            part = title[len(title) - 1 - level] if level < len(title) else ""
            cell = f"{part:<{head.width}}" if head.is_left else f"{part:>{head.width}}"
            space = " " * gap if line else ""
            line.append(Segment(space + cell, f"bold {head.style}".strip()))
        yield strip_line(line)


def _row(
    columns: Sequence[Column],
    cells: list[str],
    widths: dict[int, int],
    gap: int,
    options: TableOptions,
) -> Line:
    line: Line = []
    for index, width in widths.items():
        text = cut_middle(cells[index], width, options.ellipsis)
        padding = " " * (width - cell_len(text))
        text = text + padding if _is_left(columns[index]) else padding + text
        line.append(Segment((" " * gap if line else "") + text, _style(columns[index])))
    return strip_line(line)


def strip_line(line: Line) -> Line:
    """Return a line without blanks at its end."""
    while line:
        text = line[-1].text.rstrip(" ")
        if text:
            return [*line[:-1], Segment(text, line[-1].style)]
        line = line[:-1]
    return line


def _style(column: Column) -> str:
    return HUES[column.hue]


def _is_left(column: Column) -> bool:
    return column.unit in ("text", "name")


class Part(NamedTuple):
    """
    A line of a sum.

    :param label: what it is, padded up to the amount.
    :param meaning: one line, shown beside the amount.
    """

    label: str
    pages: int
    meaning: str
    style: str = ""


def render_sum(
    parts: Iterable[Part], total: int, report: Report, options: TableOptions
) -> Iterator[Line]:
    """Yield the parts of a sum: each in bytes, in pages, and as a share of it."""
    for label, pages, meaning, style in parts:
        size = format_size(pages * report.page_size_bytes)
        unit = "page " if pages == 1 else "pages"
        count = f"{pages:>{len(str(total))}} {unit} {percent(pages, total):>4}"
        head = [Segment(f"{label}{size:>6} {count}  ", style)]
        yield from paragraph(head, meaning, options.width, DIM)


def render_foot(report: Report, options: TableOptions) -> Iterator[Line]:
    """Yield what was missed and why, what to know, and what the scan cost."""
    for title, lines, style in (
        ("missed", [f"{item.what}: {item.reason}" for item in report.missed], ALARM),
        ("note", list(report.notes), BOLD),
        ("cost", [format_cost(report.cost)], BOLD),
    ):
        if len(lines) > _FOOT_SHOWN:
            lines[_FOOT_SHOWN:] = [f"{len(lines) - _FOOT_SHOWN} more (--json has them)"]
        yield from render_labelled(title, lines, options.width, style)
