"""Distinct values are what np.unique says."""

import numpy as np
import pytest

from memlens.pages.arrays import count_distinct, distinct, is_in

ARRAYS = [
    np.empty(0, np.uint64),
    np.array([5], np.uint64),
    np.array([3, 3, 3], np.uint32),
    np.random.default_rng(7).integers(0, 50, 997).astype(np.uint64),
    np.array([1 << 63, 0, (1 << 64) - 1, 0], np.uint64),
]


@pytest.mark.parametrize("values", ARRAYS, ids=len)
def test_distinct_is_unique(values: np.ndarray) -> None:
    before = values.copy()
    assert distinct(values).tolist() == np.unique(values).tolist()
    assert distinct(values).dtype == values.dtype
    assert values.tolist() == before.tolist()


@pytest.mark.parametrize("values", ARRAYS, ids=len)
def test_counts_are_those_of_unique(values: np.ndarray) -> None:
    found, counts = count_distinct(values)
    expected, times = np.unique(values, return_counts=True)
    assert (found.tolist(), counts.tolist()) == (expected.tolist(), times.tolist())


@pytest.mark.parametrize("values", ARRAYS, ids=len)
def test_is_in_is_isin(values: np.ndarray) -> None:
    known = np.unique(values)[::2]
    assert is_in(values, known).tolist() == np.isin(values, known).tolist()
