"""What a cell may show: the rules of the module."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.runs import EMPTY, Runs, encode_runs
from memlens.views.strip import Cell, draw_strip

P, S, N = PageClass.PRESENT, PageClass.SWAPPED, PageClass.NONE


def strip_of(pages: list[PageClass], cells: int) -> list[Cell]:
    return draw_strip(encode_runs(np.array(pages, np.uint8)), 0, len(pages), cells)


pages_of_any = st.lists(st.sampled_from(PageClass), min_size=1, max_size=300)


@given(pages_of_any, st.integers(1, 70))
def test_a_cell_shows_a_class_that_one_of_its_pages_has(
    pages: list[PageClass], cells: int
) -> None:
    strip = strip_of(pages, cells)
    assert len(strip) == min(cells, len(pages))
    for number, cell in enumerate(strip):
        low = number * len(pages) // len(strip)
        high = (number + 1) * len(pages) // len(strip)
        assert cell.page_class in pages[low:high]
        assert cell.is_mixed == (len(set(pages[low:high])) > 1)


@given(pages_of_any)
def test_pages_that_all_have_room_are_shown_as_they_are(pages: list[PageClass]) -> None:
    assert [cell.page_class for cell in strip_of(pages, len(pages) + 5)] == pages


@given(pages_of_any, st.integers(2, 70))
def test_both_ends_are_shown_as_they_are(pages: list[PageClass], cells: int) -> None:
    strip = strip_of(pages, cells)
    shown = {cell.page_class for cell in strip}
    for cell, page in ((strip[0], pages[0]), (strip[-1], pages[-1])):
        # Unless it is the only cell for a class that would be missed.
        is_only = cell.page_class not in {other.page_class for other in strip if other != cell}
        assert cell.page_class == page or (is_only and len(shown) > 1)


def test_the_last_page_is_not_lost() -> None:
    pages = [P] * 4 + [S] * 7 + [N] * 11 + [P]
    shown = [cell.page_class for cell in strip_of(pages, 17)]
    assert shown == [P] * 3 + [S] * 6 + [N] * 7 + [P]


@given(st.integers(0, 4000), st.integers(2, 60))
def test_one_page_is_enough_to_be_seen(at: int, cells: int) -> None:
    pages = [P] * 4001
    pages[at] = S
    strip = strip_of(pages, cells)
    shown = [number for number, cell in enumerate(strip) if cell.page_class == S]
    assert len(shown) == 1
    assert shown[0] * 4001 // cells <= at < (shown[0] + 1) * 4001 // cells


@given(st.permutations(list(PageClass)), st.integers(1, 12))
def test_with_too_few_cells_the_most_interesting_wins(
    order: list[PageClass], cells: int
) -> None:
    pages = [kind for kind in order for _ in range(60)]
    assert PageClass.POISONED in {cell.page_class for cell in strip_of(pages, cells)}


def test_every_class_has_a_rank() -> None:
    assert sorted(row.rank for row in CLASSES) == list(range(len(PageClass)))


@pytest.mark.parametrize("every", [2, 4, 10])
def test_scattered_pages_colour_their_share(every: int) -> None:
    """Neither all of the strip nor none of it."""
    pages = ([S] + [P] * (every - 1)) * 1000
    strip = strip_of(pages, 40)
    assert sum(cell.page_class == S for cell in strip) == 40 // every


def test_pages_of_no_run_are_blank() -> None:
    runs = Runs(np.array([4]), np.array([2]), np.array([S], np.uint8))
    shown = [cell.page_class for cell in draw_strip(runs, 0, 8, 8)]
    assert shown == [None] * 4 + [S, S] + [None] * 2
    assert draw_strip(EMPTY, 0, 3, 8) == [Cell(None, True)] * 3


def test_a_range_is_drawn_from_its_first_page() -> None:
    runs = encode_runs(np.array([P, S], np.uint8), first=1 << 40)
    strip = draw_strip(runs, 1 << 40, (1 << 40) + 2, 10)
    assert [cell.page_class for cell in strip] == [P, S]


def test_an_endless_mapping_does_not_overflow() -> None:
    """2**52 pages are all that 64 bits can address."""
    runs = Runs(np.array([0, 1]), np.array([1, 2**52 - 1]), np.array([S, N], np.uint8))
    strip = draw_strip(runs, 0, 2**52, 64)
    assert [cell.page_class for cell in strip] == [S] + [N] * 63
