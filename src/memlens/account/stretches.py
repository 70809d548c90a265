"""Ranges that lie close, joined: to read over a small gap costs less than another call."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

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
