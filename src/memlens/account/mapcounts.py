"""How often page frames are mapped, and what that makes of the frames of processes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.frames import Frames
from memlens.account.frametable import ANSWER_LIMIT, FrameTable
from memlens.account.ownmaps import OWN_TRIES, find_own_pid, read_own_maps
from memlens.kernel.kpage import KpageFile

# Sums are held back until so many pages have come.  Reading what this process maps costs
# about as much as asking of a hundredth of these.
_HELD_PAGES = 1 << 20


class FrameSums(NamedTuple):
    """RSS, PSS and USS in pages; ``private_pages`` are those of USS that are of no file."""

    rss_pages: int
    pss_pages: float
    uss_pages: int
    private_pages: int


class MapCounts:
    """
    Sums up what processes map, each page by how often it is mapped.

    :param file: an open kpagecount.
    :param proc: root of the /proc whose processes are summed up.

    The maps of this process are taken off, but for its own sums, which are as the kernel has
    them.  It maps more while it runs: reading brings in pages of libraries.  So what it maps
    is read before and after frames are asked about, and those that it maps another number of
    times are asked about again.  What remains: a frame that it maps only in between, or only
    before and after.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """

    def __init__(self, file: KpageFile, proc: str = "/proc") -> None:
        self._table = FrameTable(file, self._reduce)
        self._own_pid = find_own_pid(proc)
        self._own = read_own_maps()
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
        self._table.of(held.pfn)
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
        for _ in range(OWN_TRIES):
            before, self._own = self._own, read_own_maps()
            if not self._table.ask_again(before.changed(self._own)):
                break
        for held in self._held:
            counts = self._table.of(held.pfn)
            if held.pid == self._own_pid:
                own = self._own.times_of(held.pfn.astype(np.int64))
                counts = np.minimum(counts + own, ANSWER_LIMIT).astype(np.uint16)
            self._sums[held.pid] = held.sums(counts)
        self._held, self._held_pages = [], 0

    def _reduce(self, words: NDArray[np.uint64], pfns: NDArray[np.int64]) -> NDArray[np.uint16]:
        return np.minimum(self._own.take_off(words, pfns), ANSWER_LIMIT).astype(np.uint16)


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
