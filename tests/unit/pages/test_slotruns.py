"""Runs of slots, against pages in a dict."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.runs import Runs, encode_runs, select_runs
from memlens.pages.slotruns import (
    NO_SLOTS,
    SlotRuns,
    concat_slots,
    encode_slots,
    restrict_slots,
    shift_slots,
    without_pages,
)

Places = dict[int, tuple[int, int]]
places = st.dictionaries(
    st.integers(0, 40), st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=40
)
masks = st.lists(st.booleans(), min_size=41, max_size=41)


def slots_of(found: Places) -> SlotRuns:
    pages = sorted(found)
    return encode_slots(
        np.array(pages, np.int64),
        np.array([found[page][0] for page in pages], np.uint8),
        np.array([found[page][1] for page in pages], np.int64),
    )


def places_of(slots: SlotRuns) -> Places:
    found = {}
    for first, pages, area, slot in slots:
        assert pages > 0
        for n in range(pages):
            assert first + n not in found
            found[first + n] = area, slot + n
    return found


def within(mask: list[bool]) -> Runs:
    runs = encode_runs(np.array(mask, np.uint8))
    return select_runs(runs, runs.value == 1)


@given(places)
def test_pages_come_back(found: Places) -> None:
    slots = slots_of(found)
    assert places_of(slots) == found
    joins = sum(1 for p in found if found.get(p + 1) == (found[p][0], found[p][1] + 1))
    assert len(slots) == len(found) - joins


@given(places, masks)
def test_what_is_inside_and_what_is_not(found: Places, mask: list[bool]) -> None:
    slots, runs = slots_of(found), within(mask)
    inside = {page: place for page, place in found.items() if mask[page]}
    outside = {page: place for page, place in found.items() if not mask[page]}
    assert places_of(restrict_slots(slots, runs)) == inside
    assert places_of(without_pages(slots, runs)) == outside
    parts = [without_pages(slots, runs), NO_SLOTS, restrict_slots(slots, runs)]
    joined = concat_slots(parts)
    assert places_of(joined) == found
    assert list(joined) == list(slots)


def test_shifted_pages_keep_their_slots() -> None:
    slots = slots_of({3: (1, 7), 4: (1, 8)})
    assert list(shift_slots(slots, 10)) == [(13, 2, 1, 7)]
