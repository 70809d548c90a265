"""How wide the columns of the text table are, at any width of the terminal."""

from typing import NamedTuple

from memlens.pages.classes import PageClass
from memlens.units import escape_text
from memlens.views.columns import CLASS_COLUMNS, ClassColumn, Row
from memlens.views.lines import cell_len, cut_middle
from memlens.views.strip import INTEREST

_NAME_LEAST, _STRIP_LEAST, _STRIP_MOST = 14, 10, 64
# From this width on there is room for addresses and for air between the columns.
_WIDE = 110
# Two classes, each a glyph and a size; more go on another line.
OTHER_WIDTH = 11
_MEMFD = "/memfd:"
# Wherever pages are, these are what one looks for: they keep a column of their own.
_ALWAYS = (PageClass.PRESENT, PageClass.SWAPPED, PageClass.UNKNOWN)


class Layout(NamedTuple):
    """
    The columns of a table, in cells of the terminal.

    :param gap: between columns.
    :param address: width of the addresses, 0 to leave them out.
    :param name: width of the mapping's name.
    :param strip: width of the strip.
    :param own: classes with a column of their own.
    :param shared: classes that share the column "other".
    :param widths: widths of those columns, "other" last if there is one.
    """

    gap: int
    address: int
    name: int
    strip: int
    own: tuple[ClassColumn, ...]
    shared: tuple[ClassColumn, ...]
    widths: tuple[int, ...]


def choose_layout(rows: list[Row], width: int) -> Layout:
    """
    Return the layout of a table of these mappings.

    Every class that occurs gets a column; where there is no room, those in the fewest
    mappings share one.
    """
    is_wide = width >= _WIDE
    gap = 2 if is_wide else 1
    address = max((len(f"{row.mapping.start:x}") for row in rows), default=7) if is_wide else 0
    occurs = {
        column: sum(1 for row in rows if row.counts[column.page_class])
        for column in CLASS_COLUMNS
    }
    own = [column for column in CLASS_COLUMNS if occurs[column]]
    shared: list[ClassColumn] = []
    fixed = (address + gap if address else 0) + 4 + gap + 5 + gap + gap
    while True:
        widths = [column_width(column) for column in own]
        if shared:
            widths.append(OTHER_WIDTH)
        room = width - fixed - sum(widths) - gap * len(widths)
        if room >= _NAME_LEAST + _STRIP_LEAST or len(own) <= 1:
            break
        foldable = [column for column in own if column.page_class not in _ALWAYS] or own
        rarest = min(
            foldable,
            key=lambda column: (occurs[column], -INTEREST.index(column.page_class)),
        )
        own.remove(rarest)
        shared.append(rarest)
    name, strip = _split(rows, max(room, _NAME_LEAST))
    return Layout(gap, address, name, strip, tuple(own), tuple(shared), tuple(widths))


def column_width(column: ClassColumn) -> int:
    """Return the width of a column: its title's, and five for a size."""
    return max(5, *(len(part) for part in column.title.split("\n")))


def _split(rows: list[Row], room: int) -> tuple[int, int]:
    longest = max((cell_len(full_name(row.mapping.path)) for row in rows), default=0)
    strip = min(_STRIP_MOST, max(_STRIP_LEAST, room // 2))
    name = max(min(longest, room - strip), min(_NAME_LEAST, room))
    strip = min(_STRIP_MOST, room - name)
    return name, strip if strip >= _STRIP_LEAST // 2 else 0


def full_name(path: str) -> str:
    """Return the path of a mapping as text shows it."""
    return escape_text(path) if path else "(anonymous)"


def short_name(path: str, width: int, ellipsis: str) -> str:
    """
    Return the name of a mapping in a width: the path, else its last part, cut in the middle.

    >>> short_name("/usr/lib/x86_64-linux-gnu/libc.so.6", 12, "~")
    'libc.so.6'
    >>> short_name("/usr/lib/a-long-library-name.so.1.2.3", 16, "~")
    'a-long-l~o.1.2.3'
    """
    name = full_name(path)
    if cell_len(name) <= width:
        return name
    if name.startswith(_MEMFD):
        name = name[1:]
    elif name.startswith("/"):
        name = name.rpartition("/")[2] or name
    if cell_len(name) > width:
        # All shared memory without a name in a file system is "deleted".
        name = name.removesuffix(" (deleted)")
    return cut_middle(name, width, ellipsis)
