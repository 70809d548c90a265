"""The rows of the swap areas in the ledger, with the numbers that page tables name them by."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.swapareas import number_areas
from memlens.kernel.swaps import Swap
from memlens.pages.arrays import count_distinct
from memlens.pages.bits import PM_SWAP_AREA
from memlens.scan.machine import Machine
from memlens.swap.records import AreaSwap


def area_rows(
    swap: Swap, private: NDArray[np.uint64], seen: Iterable[int], machine: Machine
) -> Iterator[AreaSwap]:
    """
    Yield a row for each area, in the order of /proc/swaps.

    :param private: the slots of private pages, each once, as ``ProcessFacts.swap_words``.
    :param seen: numbers of other areas that pages were seen in.
    :param machine: whose areas they are.
    """
    numbers, counts = count_distinct(private & PM_SWAP_AREA)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    known = _numbers_by_path({*found, *seen}, machine)
    zram = {figures.device: figures for figures in swap.zram}
    for area in swap.areas:
        figures = zram.get(area.device)
        number = known.get((area.line, area.path))
        yield AreaSwap(
            area=number,
            path=area.path,
            kind=area.kind,
            size_pages=area.size_pages,
            used_pages=area.used_pages,
            priority=area.priority,
            private_pages=_count_in(found, number),
            stored_bytes=None if figures is None else figures.stored_bytes,
            compressed_bytes=None if figures is None else figures.used_bytes,
        )


def _count_in(found: dict[int, int], number: int | None) -> int | None:
    if number is None:
        # No page table names any slot: none of this area, then, whatever its number.
        return None if found else 0
    return found.get(number, 0)


def _numbers_by_path(seen: set[int], machine: Machine) -> dict[tuple[int, str], int | None]:
    try:
        listed = number_areas(machine, seen)
    except (MemlensError, OSError):
        return {}
    return {(row.area.line, row.area.path): row.number for row in listed}
