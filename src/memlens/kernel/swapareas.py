"""
The numbers of swap areas, and how far their slots go.

A swapped page names its area by number, the index in the kernel's ``swap_info[]``.
/proc/swaps lists the areas in the order of their numbers and leaves the numbers
out: one that was switched off leaves a gap that cannot be seen.  A BPF program
(bpf/swapareas.bpf.c) reads ``swap_info[]`` where the kernel tells its address:
``frameslots.number_areas`` runs it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.procfs import Host, read_file
from memlens.kernel.swaps import AREA_NUMBERS, SwapArea, parse_swaps

# Mirrors struct area of bpf/swapareas.bpf.c.
TABLE_ROW = np.dtype(
    [("is_used", "<u4"), ("slots", "<u4"), ("pages", "<u4"), ("unused", "<u4")]
)

# Of more areas than these, all have to be seen; nobody has tried so many.
_MOST_ORDERED = 8


@dataclass(frozen=True, slots=True)
class NumberedArea:
    """
    A swap area as entries name it.

    :param area: its line of /proc/swaps.
    :param number: the kernel's number of it, None if that is not known.
    :param slots: slots are numbered from 1 and below this.
    """

    area: SwapArea
    number: int | None
    slots: int


def read_areas(host: Host) -> list[NumberedArea]:
    """
    Return the swap areas in use, in the order of their numbers, without these.

    ``slots`` is one more than the size, for the header.  An area with bad pages
    (mkswap -c) has more, which only ``number_areas`` can know.
    """
    path = f"{host.root}/swaps"
    areas = parse_swaps(read_file(path), os.sysconf("SC_PAGE_SIZE"), path)
    return [NumberedArea(area, None, area.size_pages + 1) for area in areas]


def number_by_order(
    areas: Sequence[NumberedArea], seen: Iterable[int]
) -> list[NumberedArea] | None:
    """
    Return the areas with the numbers that their order and the ``seen`` ones leave no choice in.

    >>> line = SwapArea(0, "/a", "file", 8, 0, -2)
    >>> areas = [NumberedArea(line, None, 9), NumberedArea(line, None, 9)]
    >>> [area.number for area in number_by_order(areas, [0])]
    [0, None]
    >>> [area.number for area in number_by_order(areas, [2, 4])]
    [2, 4]

    Numbers rise from line to line, and each number that was seen is one of theirs.

    :param seen: numbers of areas that swapped pages are known to be in.
    :return: None if these cannot be, which one that came or went meanwhile explains.
    """
    numbers = sorted(set(seen))
    count = len(areas)
    if len(numbers) > count or (numbers and numbers[-1] >= AREA_NUMBERS):
        return None
    if len(numbers) == count:
        return _with_numbers(areas, numbers)
    if count > _MOST_ORDERED:
        return list(areas)
    possible: list[set[int]] = [set() for _ in areas]
    for lines in combinations(range(count), len(numbers)):
        ranges = _ranges(count, dict(zip(lines, numbers, strict=True)))
        if all(ranges):
            for found, choice in zip(possible, ranges, strict=True):
                found.update(choice)
    if not all(possible):
        return None
    return _with_numbers(areas, [min(p) if len(p) == 1 else None for p in possible])


def _ranges(count: int, known: dict[int, int]) -> list[range]:
    """Return the numbers that each line can have if some are known; empty if it cannot be."""
    lowest, highest = [0] * count, [0] * count
    before = -1
    for line in range(count):
        before = lowest[line] = known.get(line, before + 1)
    after = AREA_NUMBERS
    for line in reversed(range(count)):
        after = highest[line] = known.get(line, after - 1)
    ranges = [range(low, high + 1) for low, high in zip(lowest, highest, strict=True)]
    rises = all(a < b for a, b in pairwise(lowest)) and all(a < b for a, b in pairwise(highest))
    return ranges if rises else [range(0)] * count


def _with_numbers(
    areas: Sequence[NumberedArea], numbers: Sequence[int | None]
) -> list[NumberedArea]:
    return [replace(area, number=number) for area, number in zip(areas, numbers, strict=True)]


def find_impossible(
    area: NDArray[np.uint8],
    slot: NDArray[np.int64],
    pages: NDArray[np.int64],
    areas: Sequence[NumberedArea],
) -> str:
    """
    Return why slots cannot be in the areas in use, "" if they can.

    Where the number of an area is not known, the longest area is the bound.

    :param area: number of the area of each run of slots, ``(n,)`` uint8.
    :param slot: its first slot, ``(n,)`` int64.
    :param pages: its length, ``(n,)`` int64.
    """
    if not len(area):
        return ""
    seen = np.flatnonzero(np.bincount(area)).tolist()
    if seen[-1] >= AREA_NUMBERS or len(seen) > len(areas):
        return f"swap areas {seen} where /proc/swaps has {len(areas)}"
    ends = _ends_by_area(areas, seen)
    if ((slot <= 0) | (slot + pages > ends[area])).any():
        return "a slot past the end of its swap area"
    return ""


def _ends_by_area(areas: Sequence[NumberedArea], seen: Sequence[int]) -> NDArray[np.int64]:
    """Return the end of each area by number, as far as it is known."""
    if any(area.number is None for area in areas):
        areas = number_by_order(areas, seen) or areas
    ends = np.zeros(AREA_NUMBERS, np.int64)
    if any(area.number is None for area in areas):
        ends[:] = max(area.slots for area in areas)
    for area in areas:
        if area.number is not None:
            ends[area.number] = area.slots
    return ends


def number_by_table(
    areas: Sequence[NumberedArea], table: NDArray[np.void]
) -> list[NumberedArea] | None:
    """
    Return the areas with number and slots, None if lines and table do not fit.

    :param table: one row per number, ``(n,)`` of ``TABLE_ROW``.
    """
    numbers = np.flatnonzero(table["is_used"]).tolist()
    if [area.area.size_pages for area in areas] != table["pages"][numbers].tolist():
        return None  # the table was not read, or an area came or went meanwhile
    return [
        replace(area, number=number, slots=int(table["slots"][number]))
        for area, number in zip(areas, numbers, strict=True)
    ]
