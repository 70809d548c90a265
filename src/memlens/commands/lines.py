"""Printing the lines of a view, in colour on a terminal and plain elsewhere."""

import sys
from collections.abc import Iterable
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from memlens.commands import common

if TYPE_CHECKING:
    from rich.text import Text


def terminal_width() -> int:
    """Return the cells in a line; 80 where there is no terminal and COLUMNS is not set."""
    return get_terminal_size().columns


def is_unicode() -> bool:
    """Return whether characters beyond ASCII can be printed."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def print_lines(lines: Iterable["Text"], no_color: bool) -> None:
    """
    Print lines as they are, never wrapped again.

    Without colour rich is left out: it ends the program with 1 when its reader is gone.
    """
    if not common.is_colored(no_color):
        common.write_pieces(f"{line.plain}\n" for line in lines)
        return
    console = common.console(no_color)
    for line in lines:
        console.print(line, soft_wrap=True)
