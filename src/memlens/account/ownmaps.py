"""
What this process maps itself: how often a frame is mapped counts that in.

A reader maps the same libraries as those that it looks at.  Were it to count as one more
process that shares them, each look would change what it looks at.
"""

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.flagpages import KERNEL_HALF
from memlens.account.frames import read_frames
from memlens.kernel import features
from memlens.kernel.maps import parse_maps
from memlens.kernel.outline import mapped_ranges
from memlens.kernel.procfs import read_file
from memlens.pages.distinct import count_distinct, is_in

# What this process maps may go on to change while it is asked about, each time less.
OWN_TRIES = 4

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


def read_own_maps() -> OwnMaps:
    """
    Return what this process maps now.

    :raises MemlensError: as the reads give it.

    It is read page by page, and reading allocates memory: true of the pages of files, and of
    others where nothing comes or goes meanwhile.
    """
    pagemap = features.open_own_pagemap()
    if pagemap is None or not features.is_pfn_visible():
        return OwnMaps(np.empty(0, np.int64), np.empty(0, np.int64))
    size = features.page_size_bytes()
    use_scan = "pagemap_scan" not in features.read_disabled() and features.has_pagemap_scan()
    try:
        ranges = _read_ranges(use_scan)
        pages = [(start // size, stop // size) for start, stop in ranges]
        frames = read_frames(pagemap, pages, use_scan)
    finally:
        pagemap.close()
    # A private page of its own alone is nobody else's; a file's may become so meanwhile.
    is_kept = frames.is_file | ~frames.is_alone
    return OwnMaps(*count_distinct(frames.pfn[is_kept].astype(np.int64)))


def find_own_pid(proc: str) -> int:
    """Return the PID of this process in a /proc, 0 if it has none there."""
    try:
        return int(os.readlink(f"{proc}/self"))
    except (OSError, ValueError):
        return 0


def _read_ranges(use_scan: bool) -> list[tuple[int, int]]:
    """Return ranges of addresses that cover what this process maps."""
    raw = read_file(_OWN_MAPS)
    if use_scan:
        return mapped_ranges(raw, [])
    every = parse_maps(raw, _OWN_MAPS)
    return [(m.start, m.stop) for m in every if m.start < KERNEL_HALF]
