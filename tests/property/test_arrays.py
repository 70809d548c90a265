"""Lookups and choices without a branch are what indexing and np.where give."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.arrays import blend, look_up

bytes_ = st.integers(0, 255)


@given(st.lists(bytes_, min_size=1, max_size=256), st.data())
def test_look_up_equals_indexing(table: list[int], data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, len(table) - 1)))
    found = look_up(np.array(table, np.uint8), np.array(codes, np.uint8))
    assert (found.tolist(), found.dtype) == ([table[code] for code in codes], np.uint8)


@given(st.lists(st.tuples(st.booleans(), bytes_, bytes_)))
def test_blend_equals_choosing_one_by_one(rows: list[tuple[bool, int, int]]) -> None:
    is_first = np.array([row[0] for row in rows], bool)
    first, second = (np.array([row[n] for row in rows], np.uint8) for n in (1, 2))
    assert blend(is_first, first, second).tolist() == [
        one if chosen else other for chosen, one, other in rows
    ]
