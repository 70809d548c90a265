"""
Distinct values, sorted.

np.unique does the same, but its first call imports numpy.ma, which takes 20 ms.
"""

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
