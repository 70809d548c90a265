"""Runs on small arrays, the edges of each operation first."""

from itertools import pairwise

import numpy as np
import pytest

from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    concat_runs,
    count_runs,
    cut_points,
    decode_runs,
    encode_runs,
    merge_runs,
    replace_runs,
    select_runs,
    sort_runs,
)


def make(*rows: tuple[int, int, int]) -> Runs:
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return Runs(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.uint8))


def dense(text: str) -> np.ndarray:
    return np.array([int(letter) for letter in text], np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("4", [(0, 1, 4)]),
        ("444", [(0, 3, 4)]),
        ("4404", [(0, 2, 4), (2, 1, 0), (3, 1, 4)]),
    ],
)
def test_encode(text: str, expected: list[tuple[int, int, int]]) -> None:
    assert list(encode_runs(dense(text))) == expected


def test_encode_counts_from_where_it_is_told() -> None:
    assert list(encode_runs(dense("12"), first=1 << 40)) == [(1 << 40, 1, 1), (2**40 + 1, 1, 2)]


def test_encode_keeps_the_documented_types() -> None:
    runs = encode_runs(dense("112"))
    assert (runs.first.dtype, runs.pages.dtype, runs.value.dtype) == (
        np.int64,
        np.int64,
        np.uint8,
    )


def test_decode_fills_gaps_and_ends() -> None:
    assert decode_runs(make((1, 2, 5), (4, 1, 6)), 6, fill=9).tolist() == [9, 5, 5, 9, 6, 9]


def test_decode_of_nothing_is_all_fill() -> None:
    assert decode_runs(EMPTY, 3, fill=7).tolist() == [7, 7, 7]


def test_decode_refuses_a_run_past_the_end() -> None:
    with pytest.raises(ValueError, match="ends at page 3 of 2"):
        decode_runs(make((1, 2, 5)), 2)


def test_merge_joins_only_what_touches_and_is_equal() -> None:
    runs = make((0, 1, 4), (1, 1, 4), (3, 1, 4), (4, 1, 5))
    assert list(merge_runs(runs)) == [(0, 2, 4), (3, 1, 4), (4, 1, 5)]


def test_merge_of_nothing() -> None:
    assert list(merge_runs(EMPTY)) == []


def test_concat_joins_at_the_seam() -> None:
    parts = [encode_runs(dense("11")), EMPTY, encode_runs(dense("12"), first=2)]
    assert list(concat_runs(parts)) == [(0, 3, 1), (3, 1, 2)]


def test_concat_of_nothing() -> None:
    assert list(concat_runs([])) == []


def test_sort() -> None:
    assert list(sort_runs(make((5, 1, 1), (3, 2, 1), (0, 1, 2)))) == [(0, 1, 2), (3, 3, 1)]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 10, [(2, 3, 1), (6, 2, 2)]),
        (3, 7, [(3, 2, 1), (6, 1, 2)]),
        (3, 4, [(3, 1, 1)]),
        (5, 6, []),
        (0, 2, []),
        (8, 9, []),
        (4, 4, []),
    ],
)
def test_clip(start: int, stop: int, expected: list[tuple[int, int, int]]) -> None:
    assert list(clip_runs(make((2, 3, 1), (6, 2, 2)), start, stop)) == expected


def test_clip_leaves_its_argument_alone() -> None:
    runs = make((0, 9, 1))
    clip_runs(runs, 2, 5)
    assert list(runs) == [(0, 9, 1)]


def test_replace_takes_the_patch_where_it_is() -> None:
    base = make((0, 4, 1), (6, 4, 1))
    patch = make((3, 1, 2), (6, 2, 1))
    assert list(replace_runs(base, patch)) == [(0, 3, 1), (3, 1, 2), (6, 4, 1)]


def test_replace_keeps_gaps_of_the_base() -> None:
    assert list(replace_runs(make((0, 1, 1), (5, 1, 1)), make((5, 1, 3)))) == [
        (0, 1, 1),
        (5, 1, 3),
    ]


def test_replace_by_nothing() -> None:
    base = make((0, 4, 1))
    assert list(replace_runs(base, EMPTY)) == [(0, 4, 1)]


def test_count_is_exact_above_what_a_float_can_hold() -> None:
    """A terabyte has 2**28 pages; what sums here must stay an integer all the same."""
    counts = count_runs(make((0, 2**40, 7), (2**40, 1, 7)), 13)
    assert counts[7] == 2**40 + 1
    assert counts.dtype == np.int64
    assert len(counts) == 13


def test_count_of_nothing() -> None:
    assert count_runs(EMPTY, 13).tolist() == [0] * 13


def test_select() -> None:
    runs = make((0, 1, 4), (1, 1, 5))
    assert list(select_runs(runs, runs.value == 5)) == [(1, 1, 5)]


def test_stop_and_length() -> None:
    runs = make((2, 3, 1), (6, 2, 2))
    assert runs.stop.tolist() == [5, 8]
    assert len(runs) == 2


@pytest.mark.parametrize("pages", [1, 2, 7, 40, 1000])
def test_parts_between_cut_points_hold_so_many_pages_and_rebuild_the_runs(pages: int) -> None:
    values = np.random.default_rng(pages).integers(0, 3, 300).astype(np.uint8)
    runs = encode_runs(values, first=5)
    kept = select_runs(runs, runs.value != 0)
    edges = [0, *cut_points(kept, pages), 305]
    assert edges == sorted(set(edges))
    parts = [clip_runs(kept, *part) for part in pairwise(edges)]
    assert [int(part.pages.sum()) for part in parts[:-1]] == [pages] * (len(parts) - 1)
    assert 0 < int(parts[-1].pages.sum()) <= pages
    assert list(concat_runs(parts)) == list(kept)
    assert cut_points(EMPTY, pages) == []
