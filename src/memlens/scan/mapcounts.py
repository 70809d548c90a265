"""How often page frames are mapped, and what that makes of the frames of processes."""

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import KERNEL_HALF, mapped_ranges, parse_maps
from memlens.kernel.procfs import read_file
from memlens.pages.arrays import count_distinct, is_in
from memlens.scan.frametable import ANSWER_LIMIT, Frames, FrameTable, read_frames
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable

# Sums are held back until so many pages have come.  Reading what this process maps costs
# about as much as asking of a hundredth of these.
_HELD_PAGES = 1 << 20


class FrameSums(NamedTuple):
    """RSS, PSS and USS in pages; ``private_pages`` are those of USS that are of no file."""

    rss_pages: int
    pss_pages: float
    uss_pages: int
    private_pages: int


class OtherMaps:
    """
    How often frames are mapped by others than this process, each asked once.

    :param file: an open kpagecount.
    :param machine: whose processes map them.

    The maps of this process are taken off, but for its own sums, which are as the kernel has
    them.  It maps more while it runs: reading brings in pages of libraries.  So what it maps
    is read before and after frames are asked about, and those that it maps another number of
    times are asked about again.  What remains: a frame that it maps only in between, or only
    before and after.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """

    def __init__(self, file: KpageFile, machine: Machine) -> None:
        self._table = FrameTable(file, self._reduce)
        self._own_pid = find_own_pid(machine)
        self._machine = machine
        self._own = read_own_maps(machine)

    def ask(self, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> None:
        """
        Ask about frames, unless that was done.

        :raises MemlensError: as the reads give it.
        """
        self._table.of(pfns)

    def settle(self) -> None:
        """
        Ask again about those that this process maps another number of times by now.

        :raises MemlensError: as the reads give it.
        """
        for _ in range(_OWN_TRIES):
            before, self._own = self._own, read_own_maps(self._machine)
            if not self._table.ask_again(before.changed(self._own)):
                break

    def of(self, pid: int, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.uint16]:
        """
        Return how often frames are mapped, at most ``ANSWER_LIMIT``, for the sums of a process.

        :param pid: the process; of what this one maps itself, it counts for itself alone.
        """
        counts = self._table.of(pfns)
        if pid == self._own_pid:
            own = self._own.times_of(pfns.astype(np.int64))
            counts = np.minimum(counts + own, ANSWER_LIMIT).astype(np.uint16)
        return counts

    def _reduce(self, words: NDArray[np.uint64], pfns: NDArray[np.int64]) -> NDArray[np.uint16]:
        return np.minimum(self._own.take_off(words, pfns), ANSWER_LIMIT).astype(np.uint16)


class MapCounts:
    """
    Sums up what processes map, each page by how often it is mapped.

    :param file: an open kpagecount.
    :param machine: whose processes are summed up.
    """

    def __init__(self, file: KpageFile, machine: Machine) -> None:
        self._counts = OtherMaps(file, machine)
        self._held: list[_Held] = []
        self._held_pages = 0
        self._sums: dict[int, FrameSums] = {}

    def add(self, pid: int, frames: Frames) -> None:
        """
        Take what a process maps, and ask of the frames that may be shared.

        :raises MemlensError: as the reads give it.
        """
        held = _Held.of(pid, frames)
        # Asked at once, while the process still has them.
        self._counts.ask(held.pfn)
        self._held.append(held)
        self._held_pages += len(held.pfn)
        if self._held_pages >= _HELD_PAGES:
            self._settle()

    def sums(self) -> dict[int, FrameSums]:
        """
        Return the sums of all processes so far, by PID.

        :raises MemlensError: as the reads give it.
        """
        self._settle()
        return self._sums

    def _settle(self) -> None:
        """Sum up what is held, once it is known what this process maps of it."""
        self._counts.settle()
        for held in self._held:
            self._sums[held.pid] = held.sums(self._counts.of(held.pid, held.pfn))
        self._held, self._held_pages = [], 0


class _Held(NamedTuple):
    """
    What a process maps, before it is summed up.

    :param pfn: frames that may be mapped elsewhere too.
    :param is_private: whether each is of no file.
    :param alone_pages: those that the page table says are mapped nowhere else.
    :param alone_private_pages: of these, those of no file.
    """

    pid: int
    pfn: NDArray[np.uint32] | NDArray[np.uint64]
    is_private: NDArray[np.bool_]
    alone_pages: int
    alone_private_pages: int

    @classmethod
    def of(cls, pid: int, frames: Frames) -> "_Held":
        # A page that this process maps too is not said to be alone, and is asked about.
        is_asked = ~frames.is_alone
        pfn = frames.pfn[is_asked]
        is_private = ~frames.is_file
        return cls(
            pid=pid,
            pfn=pfn,
            is_private=is_private[is_asked],
            alone_pages=len(frames.pfn) - len(pfn),
            alone_private_pages=int((is_private & frames.is_alone).sum()),
        )

    def sums(self, counts: NDArray[np.uint16]) -> FrameSums:
        """Return the sums, by how often each frame is mapped."""
        times = np.bincount(counts, minlength=2)
        # Frames that vanished meanwhile are mapped no more: those who saw them count once.
        times[1] += times[0]
        return FrameSums(
            rss_pages=self.alone_pages + len(self.pfn),
            pss_pages=self.alone_pages + float((times[1:] / np.arange(1, len(times))).sum()),
            uss_pages=self.alone_pages + int(times[1]),
            private_pages=self.alone_private_pages
            + int((self.is_private & (counts <= 1)).sum()),
        )


# What this process maps itself: how often a frame is mapped counts that in.
#
# A reader maps the same libraries as those that it looks at.  Were it to count as one more
# process that shares them, each look would change what it looks at.


# What this process maps may go on to change while it is asked about, each time less.
_OWN_TRIES = 4
_OWN_MAPS = "/proc/self/maps"


class OwnMaps(NamedTuple):
    """
    The frames that this process maps, but for those that are its alone.

    :param pfn: sorted, each once, ``(n,)`` int64.
    :param times: how often it maps each: a page of a file may be at two addresses, as where
        two segments of a library meet; ``(n,)`` int64.
    """

    pfn: NDArray[np.int64]
    times: NDArray[np.int64]

    def times_of(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return how often this process maps each of these frames, ``(m,)`` int64.

        >>> own = OwnMaps(np.array([3, 9]), np.array([1, 2]))
        >>> own.times_of(np.array([9, 4])).tolist()
        [2, 0]
        """
        found = np.zeros(len(pfns), np.int64)
        is_own = is_in(pfns, self.pfn)
        found[is_own] = self.times[np.searchsorted(self.pfn, pfns[is_own])]
        return found

    def changed(self, later: "OwnMaps") -> NDArray[np.int64]:
        """
        Return the frames that are mapped another number of times later, sorted.

        >>> own = OwnMaps(np.array([3, 9]), np.array([1, 2]))
        >>> own.changed(OwnMaps(np.array([9, 11]), np.array([2, 1]))).tolist()
        [3, 11]
        """
        either, _ = count_distinct(np.concatenate((self.pfn, later.pfn)))
        is_changed = self.times_of(either) != later.times_of(either)
        differing: NDArray[np.int64] = either[is_changed]
        return differing

    def take_off(
        self, counts: NDArray[np.uint64], pfns: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """
        Return how often others map frames.

        :param counts: what kpagecount says of them.
        """
        own = self.times_of(pfns).astype(np.uint64)
        others: NDArray[np.uint64] = counts - np.minimum(own, counts)
        return others


def read_own_maps(machine: Machine) -> OwnMaps:
    """
    Return what this process maps now.

    :raises MemlensError: as the reads give it.

    It is read page by page, and reading allocates memory: true of the pages of files, and of
    others where nothing comes or goes meanwhile.
    """
    pagemap = features.open_own_pagemap()
    if pagemap is None or not features.is_pfn_visible():
        return OwnMaps(np.empty(0, np.int64), np.empty(0, np.int64))
    size = machine.page_size_bytes
    try:
        ranges = _read_ranges(machine)
        pages = [(start // size, stop // size) for start, stop in ranges]
        frames = read_frames(PageTable(pagemap, machine.unfollowed()), pages)
    finally:
        pagemap.close()
    # A private page of its own alone is nobody else's; a file's may become so meanwhile.
    is_kept = frames.is_file | ~frames.is_alone
    return OwnMaps(*count_distinct(frames.pfn[is_kept].astype(np.int64)))


def find_own_pid(machine: Machine) -> int:
    """Return the PID of this process in a /proc, 0 if it has none there."""
    try:
        return int(os.readlink(f"{machine.root}/self"))
    except (OSError, ValueError):
        return 0


def _read_ranges(machine: Machine) -> list[tuple[int, int]]:
    """Return ranges of addresses that cover what this process maps."""
    raw = read_file(_OWN_MAPS)
    if machine.may("pagemap_scan"):
        return mapped_ranges(raw, [])
    every = parse_maps(raw, _OWN_MAPS)
    return [(m.start, m.stop) for m in every if m.start < KERNEL_HALF]
