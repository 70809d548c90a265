"""An object as a page cache in plain Python: a state per page, and the kernel's answers."""

import numpy as np

from memlens.pages.classes import PageClass
from memlens.scan.machine import Machine

# Per state: the class, and whether it is data, resident, in the page cache, evicted.
SHMEM = {
    "written": (PageClass.CACHED, True, True, True, False),
    "on zram": (PageClass.SWAPPED, True, False, False, True),
    "in the swap cache": (PageClass.SWAP_CACHED, True, True, False, True),
    "fallocated": (PageClass.PREALLOCATED, False, False, True, False),
    "hole": (PageClass.NONE, False, False, False, False),
}
FILE = {
    "cached": (PageClass.CACHED, True, True, True, False),
    "hole, read": (PageClass.CACHED, False, True, True, False),
    "cached in part": (PageClass.CACHED, True, False, True, False),
    "on disk": (PageClass.ON_DISK, True, False, False, False),
    "on disk, once here": (PageClass.ON_DISK, True, False, False, True),
    "hole": (PageClass.NONE, False, False, False, False),
    "hole, once read": (PageClass.NONE, False, False, False, True),
}
STATES = {"shmem": SHMEM, "file": FILE}


class PlainMachine(Machine):
    """Every interface works that is not switched off, whatever kernel runs the test."""

    def may(self, interface: str) -> bool:
        return interface not in self.disabled


class PlainObject:
    """Answers as the kernel does for pages of known states."""

    def __init__(self, kind: str, states: list[str]) -> None:
        self.kind = kind
        self.rows = [STATES[kind][state] for state in states]
        self.is_writable = True
        self.path = ""
        self.fd = -1
        self.calls = 0

    def size_pages(self) -> int:
        return len(self.rows)

    def allocated_pages(self) -> int:
        return sum(row[3] or row[4] for row in self.rows)

    def is_quiet(self) -> bool:
        return True

    def has_part_pages(self) -> bool:
        return FILE["cached in part"] in self.rows

    def is_cached_hole(self, first: int, stop: int) -> bool:
        rows = self.rows[first:stop]
        return all(row[3] and not row[1] for row in rows)

    def forget_extent(self) -> None:
        pass

    def data_extents(self, first: int, stop: int) -> np.ndarray:
        self.calls += 1
        is_data = [False, *(row[1] for row in self.rows[first:stop]), False]
        edges = np.flatnonzero(np.diff(np.array(is_data, np.int8)))
        return (edges + first).reshape(-1, 2)

    def cachestat(self, first: int, pages: int) -> tuple[int, int]:
        self.calls += 1
        rows = self.rows[first : first + pages]
        return sum(row[3] for row in rows), sum(row[4] for row in rows)

    def mincore(self, first: int, pages: int) -> np.ndarray:
        self.calls += 1
        return np.array([row[2] for row in self.rows[first : first + pages]], bool)
