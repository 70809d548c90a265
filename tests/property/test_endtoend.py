"""Ranges laid end to end: every page of them has one place, in order, and no other page has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.parts import lay_end_to_end
from memlens.pages.runs import encode_runs, select_runs

# Gaps before each range, and its length; gaps of none make neighbours.
shapes = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), min_size=1, max_size=8)
Ranges = list[tuple[int, int]]


def ranges_of(shape: Ranges, start: int = 3) -> Ranges:
    found = []
    for gap, pages in shape:
        found.append((start + gap, start + gap + pages))
        start += gap + pages
    return found


def places_of(ranges: Ranges) -> dict[int, int]:
    """Return the place of each page, by counting."""
    pages = [page for start, stop in ranges for page in range(start, stop)]
    return {page: place for place, page in enumerate(pages)}


@given(shapes)
def test_a_place_is_the_number_of_pages_below(shape: Ranges) -> None:
    ranges = ranges_of(shape)
    pages = range(ranges[-1][1] + 5)
    found = lay_end_to_end(ranges).places(np.array(pages))
    known = sorted(places_of(ranges))
    assert found.tolist() == [sum(other < page for other in known) for page in pages]


@given(shapes)
def test_the_range_of_each_place(shape: Ranges) -> None:
    ranges = ranges_of(shape)
    row = lay_end_to_end(ranges)
    numbers = [n for n, (start, stop) in enumerate(ranges) for _ in range(start, stop)]
    assert row.range_of(np.arange(int(row.begins[-1]))).tolist() == numbers


@given(shapes, st.lists(st.integers(0, 3), min_size=120, max_size=120))
def test_runs_keep_the_value_of_each_page(shape: Ranges, plain: list[int]) -> None:
    """Value 3 stands for no run."""
    ranges = ranges_of(shape)
    row, places = lay_end_to_end(ranges), places_of(ranges)
    runs = encode_runs(np.array(plain, np.uint8))
    laid = row.cut(row.lay(select_runs(runs, runs.value != 3)))
    found = {
        place: value for first, count, value in laid for place in range(first, first + count)
    }
    assert found == {place: plain[page] for page, place in places.items() if plain[page] != 3}
    numbers = row.range_of(laid.first)
    assert (numbers == row.range_of(laid.stop - 1)).all()
