"""Runs: consecutive pages of one value, and back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Runs:
    """
    Consecutive pages of one value, in order and without overlap.

    :param first: number of the first page of each run, ``(n,)`` int64.
    :param pages: length of each run in pages, ``(n,)`` int64, all positive.
    :param value: the value of each run, ``(n,)`` uint8 (mostly a ``PageClass``).
    """

    first: NDArray[np.int64]
    pages: NDArray[np.int64]
    value: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.first.tolist(), self.pages.tolist(), self.value.tolist(), strict=True)

    @property
    def stop(self) -> NDArray[np.int64]:
        """Return the page after the last of each run, ``(n,)`` int64."""
        return self.first + self.pages


EMPTY = Runs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
_COUNTED_AT_ONCE = 1 << 16


def encode_runs(values: NDArray[np.uint8], first: int = 0) -> Runs:
    """
    Return the runs of a dense array.

    >>> list(encode_runs(np.array([7, 7, 0], dtype=np.uint8), first=10))
    [(10, 2, 7), (12, 1, 0)]

    :param values: one value per page, ``(n,)`` uint8.
    :param first: page number of ``values[0]``.
    """
    if not len(values):
        return EMPTY
    changes = np.flatnonzero(values[1:] != values[:-1])
    edges = np.empty(len(changes) + 2, np.int64)
    edges[0], edges[-1] = 0, len(values)
    np.add(changes, 1, out=edges[1:-1])
    starts = edges[:-1]
    return Runs(starts + first, edges[1:] - starts, values[starts])


def merge_runs(runs: Runs) -> Runs:
    """
    Join neighbouring runs of one value that touch.

    >>> list(merge_runs(Runs(np.array([0, 2]), np.array([2, 3]), np.array([7, 7], np.uint8))))
    [(0, 5, 7)]
    """
    if len(runs) < 2:
        return runs
    # Neighbours of one value are few as a rule, and only these need be looked at.
    alike = np.flatnonzero(runs.value[1:] == runs.value[:-1])
    joined = alike[runs.first[alike] + runs.pages[alike] == runs.first[alike + 1]]
    if not len(joined):
        return runs
    starts_new = np.ones(len(runs), bool)
    starts_new[joined + 1] = False
    heads = np.flatnonzero(starts_new)
    lasts = np.append(heads[1:], len(runs)) - 1
    first = runs.first[heads]
    return Runs(first, runs.stop[lasts] - first, runs.value[heads])


def concat_runs(parts: Sequence[Runs]) -> Runs:
    """Join runs that follow each other; neighbours of one value become one run."""
    if not parts:
        return EMPTY
    if len(parts) == 1:
        return parts[0]
    return merge_runs(join_runs(parts))


def sort_runs(runs: Runs) -> Runs:
    """Order runs that do not overlap by their first page, and join what touches."""
    order = np.argsort(runs.first, kind="stable")
    return merge_runs(Runs(runs.first[order], runs.pages[order], runs.value[order]))


def clip_runs(runs: Runs, start: int, stop: int) -> Runs:
    """
    Keep what lies in the half-open page range ``[start, stop)``.

    >>> list(clip_runs(encode_runs(np.zeros(9, np.uint8)), 2, 5))
    [(2, 3, 0)]
    """
    low = int(np.searchsorted(runs.stop, start, side="right"))
    high = int(np.searchsorted(runs.first, stop, side="left"))
    if low >= high or start >= stop:
        return EMPTY
    first = runs.first[low:high].copy()
    ends = runs.stop[low:high]
    first[0] = max(first[0], start)
    ends[-1] = min(ends[-1], stop)
    return Runs(first, ends - first, runs.value[low:high])


def decode_runs(runs: Runs, pages: int, fill: int = 0) -> NDArray[np.uint8]:
    """
    Return one value per page, ``(pages,)`` uint8; pages in no run get ``fill``.

    >>> decode_runs(encode_runs(np.array([1, 1, 2], np.uint8), first=1), 5)
    array([0, 1, 1, 2, 0], dtype=uint8)

    :raises ValueError: if a run ends after ``pages``.
    """
    if len(runs) and int(runs.stop[-1]) > pages:
        raise ValueError(f"run ends at page {int(runs.stop[-1])} of {pages}")
    if int(runs.pages.sum()) == pages:
        return np.repeat(runs.value, runs.pages)
    dense = np.full(pages, fill, np.uint8)
    steps = np.zeros(pages + 1, np.int8)
    # No page begins two runs or ends two, so that plain indexing counts right.
    steps[runs.first] += 1
    steps[runs.stop] -= 1
    dense[np.cumsum(steps[:-1], dtype=np.int8).astype(bool)] = np.repeat(runs.value, runs.pages)
    return dense


def replace_runs(base: Runs, patch: Runs) -> Runs:
    """
    Return ``base`` with the pages of ``patch`` taken from ``patch``.

    >>> old = encode_runs(np.zeros(6, np.uint8))
    >>> list(replace_runs(old, encode_runs(np.ones(2, np.uint8), first=2)))
    [(0, 2, 0), (2, 2, 1), (4, 2, 0)]

    :param base: sorted runs without overlap.
    :param patch: sorted runs without overlap, all inside those of ``base``.
    """
    if not len(patch):
        return base
    edges = _edges(base, patch)
    first, stop = edges[:-1], edges[1:]
    in_patch, patch_value = _value_at(patch, first)
    in_base, base_value = _value_at(base, first)
    value = np.where(in_patch, patch_value, base_value)
    keep = in_patch | in_base
    return merge_runs(Runs(first[keep], (stop - first)[keep], value[keep]))


def restrict_runs(runs: Runs, within: Runs) -> Runs:
    """
    Keep the pages of ``runs`` that are also in ``within``.

    >>> runs = encode_runs(np.zeros(9, np.uint8))
    >>> list(restrict_runs(runs, encode_runs(np.ones(2, np.uint8), first=3)))
    [(3, 2, 0)]
    """
    if not len(runs) or not len(within):
        return EMPTY
    edges = _edges(runs, within)
    first, stop = edges[:-1], edges[1:]
    has_value, value = _value_at(runs, first)
    keep = has_value & _value_at(within, first)[0]
    return merge_runs(Runs(first[keep], (stop - first)[keep], value[keep]))


def union_runs(parts: Sequence[Runs]) -> Runs:
    """
    Return the pages that are in any of the runs, with value 1.

    >>> one = Runs(np.array([0, 4]), np.array([2, 1]), np.ones(2, np.uint8))
    >>> list(union_runs([one, Runs(np.array([1]), np.array([2]), np.ones(1, np.uint8))]))
    [(0, 3, 1), (4, 1, 1)]
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return EMPTY
    edges = np.concatenate([np.concatenate([part.first, part.stop]) for part in parts])
    steps = np.concatenate(
        [np.concatenate([np.ones(len(p), np.int64), -np.ones(len(p), np.int64)]) for p in parts]
    )
    order = np.argsort(edges, kind="stable")
    edges, depth = edges[order], np.cumsum(steps[order])
    keep = (edges[1:] > edges[:-1]) & (depth[:-1] > 0)
    first = edges[:-1][keep]
    return merge_runs(Runs(first, edges[1:][keep] - first, np.ones(len(first), np.uint8)))


def fill_runs(runs: Runs, start: int, stop: int, value: int) -> Runs:
    """
    Give every page of ``[start, stop)`` that is in no run the value ``value``.

    >>> list(fill_runs(encode_runs(np.ones(2, np.uint8), first=3), 0, 6, 7))
    [(0, 3, 7), (3, 2, 1), (5, 1, 7)]

    :param runs: sorted runs inside the range.
    """
    if not len(runs):
        return one_run(start, stop - start, value) if start < stop else EMPTY
    edges = np.empty((len(runs) + 1, 2), np.int64)
    edges[0, 0], edges[-1, 1] = start, stop
    edges[:-1, 1] = runs.first
    np.add(runs.first, runs.pages, out=edges[1:, 0])
    is_gap = edges[:, 0] < edges[:, 1]
    if not is_gap.any():
        return runs
    # A gap and the run after it, over and over; what is empty is left out.
    first = np.append(edges.ravel()[:-1], stop)
    values = np.full(len(first) - 1, value, np.uint8)
    values[1::2] = runs.value
    keep = np.ones(len(values), bool)
    keep[::2] = is_gap
    pages = first[1:] - first[:-1]
    return merge_runs(Runs(first[:-1][keep], pages[keep], values[keep]))


def one_run(first: int, pages: int, value: int) -> Runs:
    """Return a single run."""
    return Runs(np.array([first]), np.array([pages]), np.array([value], np.uint8))


def shift_runs(runs: Runs, by: int) -> Runs:
    """Return the same runs with ``by`` added to their page numbers."""
    return Runs(runs.first + by, runs.pages, runs.value)


def pick_runs(
    runs: Runs, first: NDArray[np.int64], pages: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Runs]:
    """
    Return what runs hold in each of some ranges, which may overlap and be in any order.

    >>> runs = encode_runs(np.array([7, 7, 8], np.uint8))
    >>> number, parts = pick_runs(runs, np.array([1, 0]), np.array([2, 1]))
    >>> number.tolist(), list(parts)
    ([0, 0, 1], [(1, 1, 7), (2, 1, 8), (0, 1, 7)])

    :param first: first page of each range, ``(n,)`` int64.
    :param pages: length of each range in pages, ``(n,)`` int64.
    :return: number of the range of each part, and the parts, range by range.
    """
    stop = first + pages
    low = np.searchsorted(runs.stop, first, side="right")
    count = np.searchsorted(runs.first, stop, side="left") - low
    number = np.repeat(np.arange(len(first)), count)
    # The runs from low on, as many as there are, for one range after the other.
    begins = np.cumsum(count) - count
    index = np.arange(len(number)) - np.repeat(begins - low, count)
    begin = np.maximum(runs.first[index], first[number])
    end = np.minimum(runs.stop[index], stop[number])
    return number, Runs(begin, end - begin, runs.value[index])


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Put runs behind each other as they are; nothing is joined where they touch."""
    if len(parts) == 1:
        return parts[0]
    return Runs(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.value for part in parts]),
    )


def window_runs(runs: Runs, gap: int) -> list[tuple[int, int]]:
    """
    Return the ranges that cover all runs, joined where less than ``gap`` pages are between.

    >>> window_runs(encode_runs(np.array([1, 2], np.uint8), first=5), gap=1)
    [(5, 7)]
    """
    if not len(runs):
        return []
    breaks = np.flatnonzero(runs.first[1:] - runs.stop[:-1] >= gap) + 1
    first = runs.first[np.append(0, breaks)]
    stop = runs.stop[np.append(breaks, len(runs)) - 1]
    return list(zip(first.tolist(), stop.tolist(), strict=True))


def cut_points(runs: Runs, pages: int) -> list[int]:
    """
    Return at which pages to cut runs into parts that hold this many pages each, or less.

    >>> cut_points(encode_runs(np.zeros(9, np.uint8), first=3), 4)
    [7, 11]
    """
    held = np.cumsum(runs.pages)
    wanted = np.arange(pages, int(held[-1]) if len(held) else 0, pages)
    index = np.searchsorted(held, wanted)
    points: list[int] = (runs.stop[index] - (held[index] - wanted)).tolist()
    return points


def count_runs(runs: Runs, values: int) -> NDArray[np.int64]:
    """Return the pages of each value, ``(values,)`` int64."""
    # bincount makes copies eight times as large as the values.
    total = np.zeros(values, np.float64)
    for begin in range(0, len(runs), _COUNTED_AT_ONCE):
        part = slice(begin, begin + _COUNTED_AT_ONCE)
        total += np.bincount(runs.value[part], weights=runs.pages[part], minlength=values)
    return total.astype(np.int64)


def select_runs(runs: Runs, wanted: NDArray[np.bool_]) -> Runs:
    """Keep the runs where ``wanted``, ``(n,)`` bool, is true."""
    return Runs(runs.first[wanted], runs.pages[wanted], runs.value[wanted])


def _edges(one: Runs, other: Runs) -> NDArray[np.int64]:
    """Return every page where a run begins or ends, sorted, each once."""
    # np.unique does the same, but its first call imports numpy.ma, which takes 20 ms.
    edges: NDArray[np.int64]
    edges = np.concatenate([one.first, one.stop, other.first, other.stop])
    # Four sorted parts: the stable sort merges them, twenty times faster than the other.
    edges = np.sort(edges, kind="stable")
    is_new = np.ones(len(edges), bool)
    np.not_equal(edges[1:], edges[:-1], out=is_new[1:])
    return edges[is_new]


def _value_at(
    runs: Runs, pages: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    index = np.searchsorted(runs.first, pages, side="right") - 1
    clipped = np.maximum(index, 0)
    if not len(runs):
        return np.zeros(len(pages), bool), np.zeros(len(pages), np.uint8)
    return (index >= 0) & (pages < runs.stop[clipped]), runs.value[clipped]


class RunJoiner:
    """
    Joins runs that follow each other without a gap, as they come.

    They are kept small until the end, so that a million of them are not in memory twice.

    >>> joiner = RunJoiner()
    >>> joiner.add(one_run(5, 2, 7))
    >>> joiner.add(one_run(7, 1, 7))
    >>> list(joiner.finish())
    [(5, 3, 7)]
    """

    def __init__(self) -> None:
        self._first = 0
        self._parts: list[tuple[NDArray[np.uint32] | NDArray[np.int64], NDArray[np.uint8]]] = []

    def add(self, runs: Runs) -> None:
        """Add runs that begin where the last ended and touch each other."""
        if not len(runs):
            return
        pages, value = runs.pages, runs.value
        if not self._parts:
            self._first = int(runs.first[0])
        elif self._parts[-1][1][-1] == value[0]:
            pages = pages.copy()
            last_pages, last_value = self._parts.pop()
            pages[0] += last_pages[-1]
            if len(last_pages) > 1:
                self._parts.append((last_pages[:-1], last_value[:-1]))
        is_small = int(pages.max()) <= _UINT32_MAX
        self._parts.append((pages.astype(np.uint32) if is_small else pages, value))

    def finish(self) -> Runs:
        """Return all runs, and forget them."""
        count = sum(len(value) for _, value in self._parts)
        if not count:
            return EMPTY
        first, pages = np.empty(count, np.int64), np.empty(count, np.int64)
        values = np.empty(count, np.uint8)
        stop = count
        while self._parts:
            part_pages, part_value = self._parts.pop()
            begin = stop - len(part_value)
            pages[begin:stop], values[begin:stop] = part_pages, part_value
            stop = begin
        first[0] = self._first
        np.cumsum(pages[:-1], out=first[1:])
        first[1:] += self._first
        return Runs(first, pages, values)


_UINT32_MAX = (1 << 32) - 1
