"""Runs of swapped pages at consecutive slots of a swap area."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.runs import Runs


@dataclass(frozen=True, slots=True)
class SlotRuns:
    """
    Consecutive pages at consecutive slots, in the order of pages and without overlap.

    :param first: number of the first page of each run, ``(n,)`` int64.
    :param pages: length of each run in pages, ``(n,)`` int64, all positive.
    :param area: number of the swap area, ``(n,)`` uint8.
    :param slot: slot of the first page; each next page has the next slot, ``(n,)`` int64.
    """

    first: NDArray[np.int64]
    pages: NDArray[np.int64]
    area: NDArray[np.uint8]
    slot: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        columns = (self.first, self.pages, self.area, self.slot)
        return zip(*(column.tolist() for column in columns), strict=True)

    @property
    def stop(self) -> NDArray[np.int64]:
        """Return the page after the last of each run, ``(n,)`` int64."""
        return self.first + self.pages


NO_SLOTS = SlotRuns(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64)
)


def encode_slots(
    page: NDArray[np.int64], area: NDArray[np.uint8], slot: NDArray[np.int64]
) -> SlotRuns:
    """
    Return the runs of single pages.

    >>> area, slot = np.zeros(3, np.uint8), np.array([7, 8, 5])
    >>> list(encode_slots(np.array([0, 1, 2]), area, slot))
    [(0, 2, 0, 7), (2, 1, 0, 5)]

    :param page: numbers of pages, ascending, ``(n,)`` int64.
    :param area: the area of each, ``(n,)`` uint8.
    :param slot: the slot of each, ``(n,)`` int64.
    """
    return merge_slots(SlotRuns(page, np.ones(len(page), np.int64), area, slot))


def merge_slots(slots: SlotRuns) -> SlotRuns:
    """Join neighbouring runs whose pages and slots both go on."""
    if len(slots) < 2:
        return slots
    is_new = np.ones(len(slots), bool)
    is_new[1:] = (
        (slots.first[1:] != slots.stop[:-1])
        | (slots.area[1:] != slots.area[:-1])
        | (slots.slot[1:] != slots.slot[:-1] + slots.pages[:-1])
    )
    heads = np.flatnonzero(is_new)
    first = slots.first[heads]
    last = np.append(heads[1:], len(slots)) - 1
    return SlotRuns(first, slots.stop[last] - first, slots.area[heads], slots.slot[heads])


def concat_slots(parts: Sequence[SlotRuns]) -> SlotRuns:
    """Join runs that do not overlap, in any order."""
    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return parts[0] if parts else NO_SLOTS
    first = np.concatenate([part.first for part in parts])
    order = np.argsort(first, kind="stable")
    return merge_slots(
        SlotRuns(
            first[order],
            np.concatenate([part.pages for part in parts])[order],
            np.concatenate([part.area for part in parts])[order],
            np.concatenate([part.slot for part in parts])[order],
        )
    )


def shift_slots(slots: SlotRuns, by: int) -> SlotRuns:
    """Return the same runs with ``by`` added to their page numbers."""
    return SlotRuns(slots.first + by, slots.pages, slots.area, slots.slot)


def restrict_slots(slots: SlotRuns, within: Runs) -> SlotRuns:
    """
    Keep the pages that are also in ``within``.

    >>> slots = encode_slots(np.arange(9), np.zeros(9, np.uint8), np.arange(9) + 100)
    >>> list(restrict_slots(slots, Runs(np.array([3]), np.array([2]), np.array([1], np.uint8))))
    [(3, 2, 0, 103)]
    """
    return _cut(slots, within, is_kept_inside=True)


def without_pages(slots: SlotRuns, gone: Runs) -> SlotRuns:
    """Keep the pages that are not in ``gone``."""
    return _cut(slots, gone, is_kept_inside=False)


def _cut(slots: SlotRuns, other: Runs, is_kept_inside: bool) -> SlotRuns:
    if not len(slots) or not len(other):
        return NO_SLOTS if is_kept_inside else slots
    edges = np.concatenate([slots.first, slots.stop, other.first, other.stop])
    edges = np.sort(edges, kind="stable")
    first, stop = edges[:-1], edges[1:]
    run = np.maximum(np.searchsorted(slots.first, first, side="right") - 1, 0)
    is_slot = (first >= slots.first[run]) & (first < slots.stop[run])
    inside = np.maximum(np.searchsorted(other.first, first, side="right") - 1, 0)
    is_inside = (first >= other.first[inside]) & (first < other.stop[inside])
    keep = (stop > first) & is_slot & (is_inside == is_kept_inside)
    first, stop, run = first[keep], stop[keep], run[keep]
    slot = slots.slot[run] + (first - slots.first[run])
    return merge_slots(SlotRuns(first, stop - first, slots.area[run], slot))
