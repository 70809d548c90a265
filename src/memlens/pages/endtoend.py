"""Ranges of pages laid end to end, so that one calculation serves all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.runs import Runs


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """
    Ranges of pages laid end to end; a page's place is its number in that row.

    :param first: first page of each range, ascending, ``(n,)`` int64.
    :param begins: place of the first page of each range, and at the end the number of
        places, ``(n + 1,)`` int64.
    """

    first: NDArray[np.int64]
    begins: NDArray[np.int64]

    def places(self, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return how many pages of the ranges lie below each page: its place, if it is in one.

        >>> lay_end_to_end([(10, 12), (20, 25)]).places(np.array([0, 11, 15, 21, 99])).tolist()
        [0, 1, 2, 3, 7]
        """
        number = np.maximum(np.searchsorted(self.first, pages, side="right") - 1, 0)
        begin = self.begins[number]
        places: NDArray[np.int64] = np.maximum(pages - self.first[number] + begin, begin)
        np.minimum(places, self.begins[number + 1], out=places)
        return places

    def range_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the range of each place."""
        return np.searchsorted(self.begins, places, side="right") - 1

    def lay(self, runs: Runs) -> Runs:
        """
        Return runs of pages as runs of places; pages in no range are left out.

        >>> runs = Runs(np.array([11]), np.array([10]), np.array([7], np.uint8))
        >>> list(lay_end_to_end([(10, 12), (20, 25)]).lay(runs))
        [(1, 2, 7)]
        """
        first, stop = self.places(runs.first), self.places(runs.stop)
        keep = first < stop
        return Runs(first[keep], (stop - first)[keep], runs.value[keep])

    def cut(self, runs: Runs) -> Runs:
        """
        Cut runs of places where a range ends and the next begins.

        >>> runs = Runs(np.array([0]), np.array([7]), np.array([7], np.uint8))
        >>> list(lay_end_to_end([(10, 12), (20, 25)]).cut(runs))
        [(0, 2, 7), (2, 5, 7)]
        """
        if not len(runs):
            return runs
        edges = self.begins[1:-1]
        number = np.maximum(np.searchsorted(runs.first, edges, side="right") - 1, 0)
        inside = edges[(runs.first[number] < edges) & (edges < runs.stop[number])]
        first = np.sort(np.concatenate([runs.first, inside]))
        stop = np.sort(np.concatenate([runs.stop, inside]))
        value = runs.value[np.searchsorted(runs.first, first, side="right") - 1]
        return Runs(first, stop - first, value)


def lay_end_to_end(ranges: Sequence[tuple[int, int]]) -> EndToEnd:
    """Lay half-open ranges end to end, which are in order, apart, and none of them empty."""
    edges = np.array(ranges, np.int64).reshape(-1, 2)
    begins = np.zeros(len(edges) + 1, np.int64)
    np.cumsum(edges[:, 1] - edges[:, 0], out=begins[1:])
    return EndToEnd(edges[:, 0].copy(), begins)
