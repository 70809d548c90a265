"""Pages of many ranges as one: laid end to end, looked at in pieces, their runs in parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.arrays import blend
from memlens.pages.classes import Verdict
from memlens.pages.runs import (
    Runs,
    encode_runs,
    join_runs,
    merge_runs,
    replace_runs,
    restrict_runs,
    select_runs,
)

# Stands in bytes for a place that is none of the piece's.
_NOT_HERE = np.uint8(255)
_ASK = np.uint8(Verdict.ASK)


@dataclass(frozen=True, slots=True)
class Piece:
    """
    Verdicts of places: as runs, or as bytes where runs would be crumbs.

    >>> values = np.array([1, Verdict.ASK, Verdict.ASK], np.uint8)
    >>> piece = Piece(values, 10)
    >>> said = piece.open().told(np.array([2, 3, 4], np.uint8))
    >>> list(piece.replaced(said).runs())
    [(10, 1, 1), (11, 1, 3), (12, 1, 4)]

    :param values: runs, or a verdict for each place, 255 where there is none, ``(n,)`` uint8.
    :param first: the first place, of bytes.
    """

    values: Runs | NDArray[np.uint8]
    first: int = 0

    def open(self) -> "Piece":
        """Return the places that an object has to be asked about."""
        if isinstance(self.values, Runs):
            return Piece(select_runs(self.values, self.values.value == _ASK))
        return self._only(self.values == _ASK)

    def mapped(self) -> "Piece":
        """Return the others."""
        if isinstance(self.values, Runs):
            return Piece(select_runs(self.values, self.values.value != _ASK))
        return self._only(self.values != _ASK)

    def _only(self, is_kept: NDArray[np.bool_]) -> "Piece":
        values = self._bytes()
        return Piece(blend(is_kept, values, np.full_like(values, _NOT_HERE)), self.first)

    def _bytes(self) -> NDArray[np.uint8]:
        if isinstance(self.values, Runs):
            raise TypeError("a piece of runs among those of bytes")
        return self.values

    def is_empty(self) -> bool:
        """Return whether it has no places."""
        if isinstance(self.values, Runs):
            return not len(self.values)
        return bool((self.values == _NOT_HERE).all())

    def told(self, values: Runs | NDArray[np.uint8]) -> "Piece":
        """Return the same places with what is said of them, and perhaps of more."""
        if isinstance(values, Runs):
            if not isinstance(self.values, Runs):
                raise TypeError("runs that are said of bytes")
            return Piece(restrict_runs(values, self.values))
        return Piece(values, self.first)._only(self._bytes() != _NOT_HERE)

    def replaced(self, other: "Piece") -> "Piece":
        """Return these verdicts, with those of the other where it has any."""
        if isinstance(self.values, Runs) and isinstance(other.values, Runs):
            return Piece(replace_runs(self.values, other.values))
        theirs = other._bytes()
        return Piece(blend(theirs != _NOT_HERE, theirs, self._bytes()), self.first)

    def runs(self) -> Runs:
        """Return them as runs; bytes must be of every place."""
        if isinstance(self.values, Runs):
            return merge_runs(self.values)
        return encode_runs(self.values, self.first)


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
        edges = self.begins[1:-1]
        if not len(runs) or not len(edges):
            return runs
        number = np.maximum(np.searchsorted(runs.first, edges, side="right") - 1, 0)
        inside = edges[(runs.first[number] < edges) & (edges < runs.stop[number])]
        if not len(inside):
            return runs
        first = np.sort(np.concatenate([runs.first, inside]), kind="stable")
        stop = np.sort(np.concatenate([runs.stop, inside]), kind="stable")
        value = runs.value[np.searchsorted(runs.first, first, side="right") - 1]
        return Runs(first, stop - first, value)


def lay_end_to_end(ranges: Sequence[tuple[int, int]]) -> EndToEnd:
    """Lay half-open ranges end to end, which are in order, apart, and none of them empty."""
    edges = np.array(ranges, np.int64).reshape(-1, 2)
    begins = np.zeros(len(edges) + 1, np.int64)
    np.cumsum(edges[:, 1] - edges[:, 0], out=begins[1:])
    return EndToEnd(edges[:, 0].copy(), begins)


def part_of(runs: Runs, low: int, high: int) -> Runs:
    """Return the runs from number ``low`` on, to before ``high``."""
    return Runs(runs.first[low:high], runs.pages[low:high], runs.value[low:high])


def replace_parts(
    runs: Runs, edges: NDArray[np.int64], parts: Mapping[int, Runs]
) -> tuple[Runs, NDArray[np.int64]]:
    """
    Return runs in parts with some of the parts replaced, and where the parts begin then.

    >>> from memlens.pages.runs import encode_runs, one_run
    >>> runs, edges = encode_runs(np.array([7, 8, 9], np.uint8)), np.array([0, 1, 3])
    >>> new, edges = replace_parts(runs, edges, {1: one_run(1, 2, 5)})
    >>> list(new), edges.tolist()
    ([(0, 1, 7), (1, 2, 5)], [0, 1, 2])

    :param edges: number of the first run of each part, and of runs in all, ``(n + 1,)``.
    :param parts: the new parts, by number.
    """
    pieces, lengths, done = [], np.diff(edges), 0
    for number, part in sorted(parts.items()):
        low, high = int(edges[number]), int(edges[number + 1])
        pieces += [part_of(runs, done, low), part]
        lengths[number] = len(part)
        done = high
    pieces.append(part_of(runs, done, len(runs)))
    begins = np.zeros(len(edges), np.int64)
    np.cumsum(lengths, out=begins[1:])
    return join_runs(pieces), begins


def take_parts(
    runs: Runs, edges: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[Runs, NDArray[np.int64]]:
    """
    Return some of the parts of runs in parts, in any order, and where they begin then.

    >>> from memlens.pages.runs import encode_runs
    >>> runs, edges = encode_runs(np.array([7, 8, 9], np.uint8)), np.array([0, 1, 3])
    >>> list(take_parts(runs, edges, np.array([1]))[0])
    [(1, 1, 8), (2, 1, 9)]
    """
    lengths = (edges[1:] - edges[:-1])[numbers]
    begins = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(lengths, out=begins[1:])
    index = np.arange(begins[-1]) + np.repeat(edges[numbers] - begins[:-1], lengths)
    return Runs(runs.first[index], runs.pages[index], runs.value[index]), begins
