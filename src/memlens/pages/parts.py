"""Runs in parts, one after the other: those of many mappings in one pair of columns."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memlens.pages.runs import Runs, join_runs


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
