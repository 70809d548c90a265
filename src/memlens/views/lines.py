"""
What the views of text are made of: pieces of text with a style, and how wide they are.

A style is spelled as rich spells it; rich itself is needed only where lines are coloured.
"""

import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memlens.report import Cost
from memlens.units import escape_text, format_size

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


def render_labelled(
    title: str, lines: Iterable[str], width: int, style: str = BOLD
) -> Iterator[Line]:
    """Yield paragraphs, the first with a label before it."""
    for number, line in enumerate(lines):
        head = f"{title if not number else '':<9} "
        parts = textwrap.wrap(line, max(width - len(head), 20)) or [""]
        yield [Segment(head, style), Segment(parts[0])]
        for part in parts[1:]:
            yield [Segment(" " * len(head)), Segment(part)]


def wrap(text: str, width: int, indent: str = "", style: str = "") -> Iterator[Line]:
    """Yield the lines of a paragraph; words that are too long are cut, not lost."""
    for line in textwrap.wrap(
        escape_text(text), width, initial_indent=indent, subsequent_indent=indent
    ):
        yield [Segment(line, style)]


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
