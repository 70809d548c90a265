"""
Distinct values, sorted.

np.unique does the same, but its first call imports numpy.ma, which takes 20 ms.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_N = TypeVar("_N", bound=np.generic)


def distinct(values: NDArray[_N]) -> NDArray[_N]:
    """
    Return every value once, sorted.

    >>> distinct(np.array([7, 3, 7])).tolist()
    [3, 7]
    """
    ordered = np.sort(values)
    return ordered[_is_first(ordered)]


def count_distinct(values: NDArray[_N]) -> tuple[NDArray[_N], NDArray[np.int64]]:
    """
    Return every value once, sorted, and how often each occurs.

    >>> [column.tolist() for column in count_distinct(np.array([7, 3, 7]))]
    [[3, 7], [1, 2]]
    """
    ordered = np.sort(values)
    first = np.flatnonzero(_is_first(ordered))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def is_in(values: NDArray[_N], known: NDArray[_N]) -> NDArray[np.bool_]:
    """
    Return which of the values are among others.

    >>> is_in(np.array([3, 7, 9]), np.array([3, 9])).tolist()
    [True, False, True]

    :param values: ``(n,)``.
    :param known: ``(m,)``, sorted.
    """
    if not len(known):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)


def _is_first(ordered: NDArray[_N]) -> NDArray[np.bool_]:
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return is_first


# One byte a page: choosing and looking up without a branch.
#
# np.where and indexing do the same, but take ten nanoseconds for a page where neighbours
# differ.


def look_up(table: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """
    Return ``table[codes]``.

    >>> look_up(np.array([5, 7], np.uint8), np.array([1, 0, 1], np.uint8)).tolist()
    [7, 5, 7]

    :param table: ``(m,)`` uint8.
    :param codes: ``(n,)`` uint8, all less than ``m``.
    """
    return np.take(table, codes, mode="clip")


def blend(
    is_first: NDArray[np.bool_], first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """
    Return ``first`` where ``is_first``, and ``second`` elsewhere; all ``(n,)``.

    >>> first, second = np.array([1, 2], np.uint8), np.array([8, 9], np.uint8)
    >>> blend(np.array([True, False]), first, second).tolist()
    [1, 9]
    """
    mask = np.negative(is_first.view(np.uint8))
    return ((first ^ second) & mask) ^ second


# A gap up to this is cheaper to scan over than to skip by another call.
GAP_PAGES = 1 << 20


def join_ranges(
    ranges: Iterable[tuple[int, int]], gap_pages: int = GAP_PAGES
) -> Iterator[tuple[int, int]]:
    """
    Yield half-open ranges that cover all of the given ones, which are in order.

    >>> list(join_ranges([(0, 2), (3, 4), (9, 10)], gap_pages=1))
    [(0, 4), (9, 10)]
    """
    first = last = -1
    for start, stop in ranges:
        if first < 0:
            first = start
        elif start - last > gap_pages:
            yield first, last
            first = start
        last = stop
    if first >= 0:
        yield first, last


def join_regions(regions: NDArray[np.int64], gap: int) -> list[tuple[int, int]]:
    """
    Return half-open ranges that cover regions, those joined that are closer than a gap.

    >>> join_regions(np.array([[0, 2], [3, 4], [9, 10]]), gap=2)
    [(0, 4), (9, 10)]

    :param regions: ``(n, 2)`` int64, in order, at least one.
    """
    breaks = np.flatnonzero(regions[1:, 0] - regions[:-1, 1] >= gap) + 1
    first = regions[np.append(0, breaks), 0]
    stop = regions[np.append(breaks, len(regions)) - 1, 1]
    return list(zip(first.tolist(), stop.tolist(), strict=True))
