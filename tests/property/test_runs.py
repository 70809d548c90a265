"""Runs do what a plain Python list of one value per page does, for any input."""

from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.classes import PageClass
from memlens.pages.runs import (
    RunJoiner,
    Runs,
    clip_runs,
    concat_runs,
    count_runs,
    decode_runs,
    encode_runs,
    fill_runs,
    merge_runs,
    pick_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    shift_runs,
    sort_runs,
    window_runs,
)

CLASSES = len(PageClass)
GAP = CLASSES  # stands for "in no run" in the plain lists

# Few values, so that equal neighbours are common; 13 of them, as there are classes.
values = st.integers(0, 2) | st.integers(0, CLASSES - 1)
pages = st.lists(values, max_size=40)
pages_with_gaps = st.lists(values | st.just(GAP), max_size=40)
firsts = st.integers(0, 1 << 52)


def runs_of(plain: list[int], *, first: int = 0) -> Runs:
    """Return the runs of a list, without its gaps, by a loop over single pages."""
    rows: list[list[int]] = []
    for number, value in enumerate(plain, first):
        if value == GAP:
            continue
        if rows and rows[-1][2] == value and rows[-1][0] + rows[-1][1] == number:
            rows[-1][1] += 1
        else:
            rows.append([number, 1, value])
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return Runs(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.uint8))


def is_canonical(runs: Runs) -> bool:
    """Return whether runs are in order, not empty, apart, and joined where they touch."""
    rows = list(runs)
    return all(length > 0 for _, length, _ in rows) and all(
        first + length < later or (first + length == later and value != later_value)
        for (first, length, value), (later, _, later_value) in pairwise(rows)
    )


@given(pages, firsts)
def test_encode_equals_one_page_at_a_time(plain: list[int], first: int) -> None:
    runs = encode_runs(np.array(plain, np.uint8), first)
    assert list(runs) == list(runs_of(plain, first=first))
    assert is_canonical(runs)


@given(pages)
def test_runs_rebuild_their_input(plain: list[int]) -> None:
    runs = encode_runs(np.array(plain, np.uint8))
    assert decode_runs(runs, len(plain)).tolist() == plain


@given(pages_with_gaps, st.integers(0, 3))
def test_decode_fills_what_no_run_covers(plain: list[int], more: int) -> None:
    assert decode_runs(runs_of(plain), len(plain) + more, GAP).tolist() == plain + [GAP] * more


@given(pages_with_gaps)
def test_counts_are_those_of_the_pages(plain: list[int]) -> None:
    counts = count_runs(runs_of(plain), CLASSES)
    assert counts.tolist() == [plain.count(kind) for kind in range(CLASSES)]


@given(pages_with_gaps, st.integers(0, 45), st.integers(0, 45))
def test_clip_equals_a_slice(plain: list[int], start: int, stop: int) -> None:
    kept = [value if start <= number < stop else GAP for number, value in enumerate(plain)]
    clipped = clip_runs(runs_of(plain), start, stop)
    assert list(clipped) == list(runs_of(kept))
    assert is_canonical(clipped)


@given(pages_with_gaps, st.lists(st.integers(0, 40)))
def test_merge_undoes_any_cutting(plain: list[int], cuts: list[int]) -> None:
    whole = runs_of(plain)
    edges = sorted({0, len(plain), *(cut for cut in cuts if cut < len(plain))})
    pieces = [clip_runs(whole, low, high) for low, high in pairwise(edges)]
    assert list(concat_runs(pieces)) == list(whole)
    assert list(merge_runs(merge_runs(whole))) == list(merge_runs(whole))


@given(pages_with_gaps, st.randoms(use_true_random=False))
def test_sort_undoes_any_order(plain: list[int], random: Random) -> None:
    whole = runs_of(plain)
    order = list(range(len(whole)))
    random.shuffle(order)
    shuffled = Runs(whole.first[order], whole.pages[order], whole.value[order])
    assert list(sort_runs(shuffled)) == list(whole)


@given(pages_with_gaps, st.data())
def test_replace_equals_writing_single_pages(plain: list[int], data: st.DataObject) -> None:
    """A patch lies inside its base, and says something about some of its pages."""
    patch = [data.draw(st.just(GAP) | values) if value != GAP else GAP for value in plain]
    expected = [old if new == GAP else new for old, new in zip(plain, patch, strict=True)]
    replaced = replace_runs(runs_of(plain), runs_of(patch))
    assert list(replaced) == list(runs_of(expected))


@given(pages_with_gaps, values)
def test_select_keeps_the_pages_of_a_value(plain: list[int], wanted: int) -> None:
    runs = runs_of(plain)
    kept = [value if value == wanted else GAP for value in plain]
    assert list(select_runs(runs, runs.value == wanted)) == list(runs_of(kept))


@given(pages_with_gaps, st.integers(0, 40))
def test_a_cut_loses_and_doubles_no_page(plain: list[int], cut: int) -> None:
    runs = runs_of(plain)
    low, high = clip_runs(runs, 0, cut), clip_runs(runs, cut, len(plain))
    counts = count_runs(low, CLASSES) + count_runs(high, CLASSES)
    assert counts.tolist() == count_runs(runs, CLASSES).tolist()


@given(pages_with_gaps, pages_with_gaps)
def test_restrict_keeps_the_pages_that_both_hold(plain: list[int], within: list[int]) -> None:
    inside = [*within, *[GAP] * len(plain)]
    kept = [GAP if inside[number] == GAP else value for number, value in enumerate(plain)]
    restricted = restrict_runs(runs_of(plain), runs_of(within))
    assert list(restricted) == list(runs_of(kept))


@given(pages_with_gaps, values, st.integers(0, 5))
def test_fill_leaves_no_gap(plain: list[int], fill: int, more: int) -> None:
    filled = fill_runs(runs_of(plain), 0, len(plain) + more, fill)
    expected = [fill if value == GAP else value for value in plain] + [fill] * more
    assert list(filled) == list(runs_of(expected))


@given(pages_with_gaps, firsts)
def test_shift_moves_and_changes_nothing_else(plain: list[int], by: int) -> None:
    assert list(shift_runs(runs_of(plain), by)) == list(runs_of(plain, first=by))


@given(pages_with_gaps, st.integers(1, 8))
def test_windows_cover_the_runs_and_no_wide_gap(plain: list[int], gap: int) -> None:
    windows = window_runs(runs_of(plain), gap)
    covered = {number for low, high in windows for number in range(low, high)}
    held = {number for number, value in enumerate(plain) if value != GAP}
    assert held <= covered
    assert all(low in held and high - 1 in held for low, high in windows)
    assert all(after[0] - before[1] >= gap for before, after in pairwise(windows))
    in_windows = [sorted(n for n in held if low <= n < high) for low, high in windows]
    assert all(b - a - 1 < gap for inside in in_windows for a, b in pairwise(inside))


@given(pages_with_gaps, st.lists(st.tuples(st.integers(0, 45), st.integers(1, 9)), max_size=9))
def test_pick_equals_looking_up_single_pages(
    plain: list[int], ranges: list[tuple[int, int]]
) -> None:
    first, length = (np.array([row[n] for row in ranges], np.int64) for n in (0, 1))
    number, parts = pick_runs(runs_of(plain), first, length)
    found = [
        (n, page, value)
        for n, (begin, count, value) in zip(number.tolist(), parts, strict=True)
        for page in range(begin, begin + count)
    ]
    inside = [*plain, *[GAP] * 60]
    assert found == [
        (n, page, inside[page])
        for n, (begin, count) in enumerate(ranges)
        for page in range(begin, begin + count)
        if inside[page] != GAP
    ]


@given(pages, st.lists(st.integers(0, 40)), firsts)
def test_joiner_rebuilds_what_was_cut(plain: list[int], cuts: list[int], first: int) -> None:
    whole = shift_runs(runs_of(plain), first)
    edges = sorted({0, len(plain), *(cut for cut in cuts if cut < len(plain))})
    joiner = RunJoiner()
    for low, high in pairwise(edges):
        joiner.add(clip_runs(whole, first + low, first + high))
    assert list(joiner.finish()) == list(whole)
    assert not len(joiner.finish())


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=9))
def test_joiner_keeps_runs_of_any_length(lengths: list[int]) -> None:
    joiner, first = RunJoiner(), 0
    for number, length in enumerate(lengths):
        joiner.add(Runs(np.array([first]), np.array([length]), np.array([number], np.uint8)))
        first += length
    assert joiner.finish().pages.tolist() == lengths
