"""
A strip: where in a mapping the classes lie, in as many cells as there is room for.

A cell mostly stands for many pages, yet shows one class.  Which one:

1. A cell shows only a class that a page in it has.
2. From left to right, the cells given to a class keep step with its pages: whichever
   class is owed most gets the cell.  So pages that are swapped here and there colour
   their share of the cells, neither all of them nor none.
3. The first cell shows the class of the first page, and the last cell that of the last:
   how a mapping begins and ends is seen, be it one page.
4. Every class in the mapping gets a cell, even for one page: the cell that holds most of
   it.  With fewer cells than classes, those of the lowest rank win.

A mapping with no more pages than cells shows every page as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.runs import Runs
from memlens.views.text import Line, Part, Segment, TableOptions


class Cell(NamedTuple):
    """What a cell shows: a class, None for no page, and whether it holds others too."""

    page_class: PageClass | None
    is_mixed: bool


def draw_strip(runs: Runs, first: int, stop: int, cells: int) -> list[Cell]:
    """
    Return the cells that stand for the pages ``[first, stop)``.

    >>> from memlens.pages.runs import encode_runs
    >>> runs = encode_runs(np.array([0, 0, 0, 4], np.uint8))
    >>> [cell.page_class.label for cell in draw_strip(runs, 0, 4, cells=2)]
    ['present', 'swapped']

    :param runs: runs of ``PageClass``; pages of no run are shown as no page.
    :param first: first page.
    :param stop: page after the last.
    :param cells: how many cells there is room for; never more than pages are drawn.
    """
    cells = min(cells, stop - first)
    if cells <= 0:
        return []
    if len(runs) == 1 and int(runs.pages[0]) == stop - first:
        return [Cell(PageClass(int(runs.value[0])), False)] * cells
    edges = first + np.arange(cells + 1, dtype=np.int64) * (stop - first) // cells
    kinds = [PageClass(int(value)) for value in np.flatnonzero(np.bincount(runs.value))]
    pages = np.array([_pages_between(runs, kind, edges) for kind in kinds], np.int64)
    pages = pages.reshape(len(kinds), cells)
    is_whole = (pages == np.diff(edges)).any(axis=0).tolist()
    chosen = _choose(kinds, pages.T.tolist(), _end_classes(runs, first, stop, cells))
    return [Cell(kind, not whole) for kind, whole in zip(chosen, is_whole, strict=True)]


def _pages_between(runs: Runs, kind: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pages of a class lie between neighbouring edges."""
    of_kind = runs.value == kind
    first, pages = runs.first[of_kind], runs.pages[of_kind]
    before = np.concatenate(([0], np.cumsum(pages)))
    index = np.searchsorted(first, edges, side="right") - 1
    inside = np.minimum(edges - first[np.maximum(index, 0)], pages[np.maximum(index, 0)])
    return np.diff(np.where(index < 0, 0, before[np.maximum(index, 0)] + inside))


def _end_classes(runs: Runs, first: int, stop: int, cells: int) -> dict[int, PageClass]:
    """Return what the first and the last cell show; nothing where no run reaches the end."""
    ends: dict[int, PageClass] = {}
    if cells > 1 and len(runs) and int(runs.first[0]) == first:
        ends[0] = PageClass(int(runs.value[0]))
    if cells > 1 and len(runs) and int(runs.stop[-1]) == stop:
        ends[cells - 1] = PageClass(int(runs.value[-1]))
    return ends


def _choose(
    kinds: list[PageClass], cells: list[list[int]], ends: dict[int, PageClass]
) -> list[PageClass | None]:
    # What the ends will show is given before, so that the cells between keep step.
    owed = [-float(list(ends.values()).count(kind)) for kind in kinds]
    chosen: list[int | None] = []
    for cell, pages in enumerate(cells):
        total = sum(pages)
        if not total:
            chosen.append(None)
            continue
        owed = [due + count / total for due, count in zip(owed, pages, strict=True)]
        best = max((i for i, count in enumerate(pages) if count), key=owed.__getitem__)
        if cell in ends:
            best = kinds.index(ends[cell])
        else:
            owed[best] -= 1
        chosen.append(best)
    _show_all(kinds, cells, chosen)
    return [None if index is None else kinds[index] for index in chosen]


def _show_all(kinds: list[PageClass], cells: list[list[int]], chosen: list[int | None]) -> None:
    """Give a cell to every class that has none, those that would be missed most first."""
    missing = [index for index in range(len(kinds)) if index not in chosen]
    for index in sorted(missing, key=lambda index: _rank(kinds[index])):
        best, most = -1, 0
        for cell, shown in enumerate(chosen):
            if shown is None or cells[cell][index] <= most:
                continue
            is_spare = chosen.count(shown) > 1
            if is_spare or _rank(kinds[index]) < _rank(kinds[shown]):
                best, most = cell, cells[cell][index]
        if best >= 0:
            chosen[best] = index


def _rank(kind: PageClass) -> int:
    return CLASSES[kind].rank


def cell_character(kind: PageClass, is_mixed: bool, options: TableOptions) -> str:
    """Return the character of a cell: a block where colour tells the class, else its sign."""
    row = CLASSES[kind]
    # Those that hold nothing, and whose colours are hard to tell apart, keep their sign.
    is_something = row.holds_ram or row.holds_slot or kind == PageClass.ON_DISK
    if options.is_colored and options.is_unicode and is_something:
        return "▒" if is_mixed else "█"
    return row.sign


def render_strip(runs: Runs, first: int, stop: int, cells: int, options: TableOptions) -> Line:
    """Return the strip of the pages ``[first, stop)``, a piece for each colour."""
    line: Line = []
    text, style = "", ""
    for kind, is_mixed in draw_strip(runs, first, stop, cells):
        wanted = "" if kind is None else CLASSES[kind].color
        if wanted != style and text:
            line.append(Segment(text, style))
            text = ""
        text += " " if kind is None else cell_character(kind, is_mixed, options)
        style = wanted
    return [*line, Segment(text, style)]


def legend(
    counts: Sequence[int], options: TableOptions, meanings: Mapping[PageClass, str] = {}
) -> Iterator[Part]:
    """
    Yield the parts of a sum by class: the sign of each in a strip, and what it means.

    :param counts: pages of each class.
    :param meanings: what differs from what the classes mean elsewhere.
    """
    for row in CLASSES:
        kind = row.page_class
        if counts[kind]:
            label = f"{cell_character(kind, False, options)} {row.label:<12}"
            yield Part(label, counts[kind], meanings.get(kind, row.meaning), row.color)
