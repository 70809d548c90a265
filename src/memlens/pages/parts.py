"""Runs in parts: those of many mappings in one pair of columns, and one piece of them."""

from collections.abc import Mapping
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
