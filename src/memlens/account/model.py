"""
The results of a capture: frozen dataclasses over numpy arrays.

Nothing here reads anything, so that every view also works on a saved capture.
"""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from memlens.account.cost import Cost
from memlens.pages.classes import PageClass
from memlens.pages.runs import Runs, count_runs, decode_runs
from memlens.pages.slotruns import SlotRuns


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    The kernel that answered.

    :param release: as ``uname -r`` says.
    :param page_size_bytes: size of a base page.
    """

    release: str
    page_size_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process, by more than its PID, which is reused.

    :param pid: as seen in the /proc that was read.
    :param name: the kernel's ``comm``, raw.
    :param cmdline: arguments, raw; empty if they are not in RAM.
    :param started_at: start time, UTC.
    """

    pid: int
    name: str
    cmdline: tuple[str, ...]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class UnknownRun:
    """Consecutive pages of a mapping that stay ``unknown``, and why."""

    first: int
    pages: int
    reason: str


@dataclass(frozen=True, slots=True)
class Words:
    """
    Raw pagemap words; pages not listed read zero.

    :param page: number of the page from the mapping's start, ``(n,)`` int64.
    :param word: the word the kernel gave, ``(n,)`` uint64.
    """

    page: NDArray[np.int64]
    word: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class MappingPages:
    """
    One mapping of a process and where each of its pages is.

    :param start: first address, in bytes.
    :param stop: address after the last, in bytes.
    :param permissions: four letters as in /proc/PID/maps, ``rw-s``.
    :param offset_bytes: offset of ``start`` in the object.
    :param device: ``major:minor`` in hexadecimal, as in /proc/PID/maps.
    :param inode: inode number of the object, 0 if there is none.
    :param path: last field of the line, raw; "" if there is none.
    :param object: ``anonymous``, ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``block``,
        ``file``, ``device`` or ``special``.
    :param page_size_bytes: size of a page.
    :param runs: a ``PageClass`` for every page, page numbers from the start.
    :param unknown: the runs of class ``UNKNOWN`` with the reason of each.
    :param words: the raw words, None unless asked for.
    :param slots: area and slot of pages on swap, None unless words were asked for; pages
        whose place is not known are in none.
    :param notes: what happened to this mapping during the scan.
    :param node_pages: pages of class ``PRESENT`` by NUMA node; empty where there is one
        node, or frames are hidden.

    With a range asked for, ``start`` and ``stop`` are the mapping's own and ``runs``
    cover only the pages in the range.
    """

    start: int
    stop: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    path: str
    object: str
    page_size_bytes: int
    runs: Runs
    unknown: tuple[UnknownRun, ...] = ()
    words: Words | None = None
    slots: SlotRuns | None = None
    notes: tuple[str, ...] = ()
    node_pages: dict[int, int] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        """Return the length of the mapping in pages."""
        return (self.stop - self.start) // self.page_size_bytes

    def counts(self) -> NDArray[np.int64]:
        """Return the pages in each class, ``(len(PageClass),)`` int64."""
        return count_runs(self.runs, len(PageClass))

    def classes(self) -> NDArray[np.uint8]:
        """
        Return the ``PageClass`` of every page, ``(pages,)`` uint8.

        Pages outside the range that was asked for are ``UNKNOWN``.
        """
        return decode_runs(self.runs, self.pages, fill=PageClass.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ProcessMap:
    """
    Where every page of one process is.

    :param evidence: name of each interface, and whether it could be used.
    :param used: names of the interfaces that were used.
    :param is_complete: False if the scan was stopped early.
    :param notes: what happened during the scan, one line each.
    """

    kernel: Kernel
    process: Process
    evidence: dict[str, bool]
    mappings: tuple[MappingPages, ...]
    cost: Cost
    is_complete: bool = True
    notes: tuple[str, ...] = ()
    used: tuple[str, ...] = ()

    def counts(self) -> NDArray[np.int64]:
        """Return the pages of the process in each class, ``(len(PageClass),)`` int64."""
        total = np.zeros(len(PageClass), np.int64)
        for mapping in self.mappings:
            total += mapping.counts()
        return total

    def node_pages(self) -> dict[int, int]:
        """Return the present pages of the process by NUMA node, as those of a mapping."""
        total: dict[int, int] = {}
        for mapping in self.mappings:
            for node, pages in mapping.node_pages.items():
                total[node] = total.get(node, 0) + pages
        return dict(sorted(total.items()))
