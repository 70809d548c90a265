"""
The numbers of swap areas, and how far their slots go.

A swapped page names its area by number, the index in the kernel's ``swap_info[]``.
/proc/swaps lists the areas in the order of their numbers and leaves the numbers
out: one that was switched off leaves a gap that cannot be seen.  A BPF program
(bpf/swapareas.bpf.c) reads ``swap_info[]`` where the kernel tells its address.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel import bpf
from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import SwapArea, parse_swaps

# Mirrors struct area of bpf/swapareas.bpf.c.
TABLE_ROW = np.dtype(
    [("is_used", "<u4"), ("slots", "<u4"), ("pages", "<u4"), ("unused", "<u4")]
)
_TABLE_ROWS = 32


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


def read_areas(proc: str = "/proc") -> list[NumberedArea]:
    """
    Return the swap areas in use, in the order of their numbers, without these.

    ``slots`` is one more than the size, for the header.  An area with bad pages
    (mkswap -c) has more, which only ``number_areas`` can know.
    """
    path = f"{proc}/swaps"
    areas = parse_swaps(read_file(path), os.sysconf("SC_PAGE_SIZE"), path)
    return [NumberedArea(area, None, area.size_pages + 1) for area in areas]


def number_areas(seen: Iterable[int] = (), proc: str = "/proc") -> list[NumberedArea]:
    """
    Return the swap areas in use with their numbers, as far as these can be known.

    If pages were seen in as many areas as there are, no number can be missing and
    the order of /proc/swaps is enough.  Otherwise a BPF program reads the kernel's
    table; it needs what the page-cache walk needs, CAP_SYSLOG, and a kernel whose
    kallsyms holds data.  Failing that too, ``number`` is None: it is never guessed.

    The numbers hold until an area is switched on or off.

    :param seen: numbers of areas that swapped pages are known to be in.
    """
    areas = read_areas(proc)
    return number_by_order(areas, seen) or _number_by_table(proc) or areas


def number_by_order(
    areas: Sequence[NumberedArea], seen: Iterable[int]
) -> list[NumberedArea] | None:
    """Return the areas with the numbers ``seen``, None unless there is one for each."""
    numbers = sorted(set(seen))
    if len(numbers) != len(areas):
        return None
    return [replace(area, number=number) for area, number in zip(areas, numbers, strict=True)]


def _number_by_table(proc: str) -> list[NumberedArea] | None:
    """Return the areas as the kernel's table has them, None if it cannot be read."""
    try:
        bpf.raise_if_unusable()
        skeleton = bpf.Skeleton("swapareas")
    except MemlensError:
        return None
    try:
        skeleton.run("list_areas")
        with skeleton.mmap_array("areas", mmap.PAGESIZE) as array:
            table = np.frombuffer(bytes(array), TABLE_ROW, _TABLE_ROWS)
    except OSError:
        return None
    finally:
        skeleton.close()
    return number_by_table(read_areas(proc), table)


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
