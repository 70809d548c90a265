"""How often page frames are mapped, and what that makes of the frames of a process."""

from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from memlens.account.frames import Frames
from memlens.kernel.kpage import KpageFile, merge_pfns
from memlens.pages.distinct import distinct

# A block holds the counts of so many frames: 8 KiB for 16 MiB of memory.
_BLOCK_BITS = 12
_BLOCK = 1 << _BLOCK_BITS
_UNKNOWN = 0xFFFF


@dataclass(frozen=True, slots=True)
class FrameSums:
    """RSS, PSS and USS in pages; ``private_pages`` are those of USS that are of no file."""

    rss_pages: int
    pss_pages: float
    uss_pages: int
    private_pages: int


class MapCounts:
    """
    How often page frames are mapped, each asked of the kernel once; for many threads.

    :param file: an open kpagecount.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """

    def __init__(self, file: KpageFile) -> None:
        self._file = file
        self._lock = Lock()
        self._rows = np.full(1, -1, np.int64)
        self._table = np.empty((0, _BLOCK), np.uint16)

    def of(self, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.uint16]:
        """
        Return how often frames are mapped, in any order, repeated or not.

        :return: ``(n,)`` uint16, at least 1 and at most 65534.
        """
        if not len(pfns):
            return np.empty(0, np.uint16)
        numbers = pfns.astype(np.int64)
        with self._lock:
            self._make_room(numbers)
            counts = self._look_up(numbers)
            is_new = counts == _UNKNOWN
            if is_new.any():
                self._learn(distinct(numbers[is_new]))
                counts[is_new] = self._look_up(numbers[is_new])
        return counts

    def _make_room(self, pfns: NDArray[np.int64]) -> None:
        blocks = distinct(pfns >> _BLOCK_BITS)
        last = int(blocks[-1])
        if last >= len(self._rows):
            more = np.full(last + 1 - len(self._rows), -1, np.int64)
            self._rows = np.concatenate([self._rows, more])
        fresh = blocks[self._rows[blocks] < 0]
        if len(fresh):
            self._rows[fresh] = np.arange(len(fresh)) + len(self._table)
            rows = np.full((len(fresh), _BLOCK), _UNKNOWN, np.uint16)
            self._table = np.concatenate([self._table, rows])

    def _look_up(self, pfns: NDArray[np.int64]) -> NDArray[np.uint16]:
        rows = self._rows[pfns >> _BLOCK_BITS]
        return np.asarray(self._table[rows, pfns & (_BLOCK - 1)])

    def _learn(self, pfns: NDArray[np.int64]) -> None:
        """Ask the kernel about frames, sorted and distinct."""
        # Frames that vanished meanwhile are mapped no more: those who saw them count once.
        self._store(pfns, np.ones(len(pfns), np.uint16))
        for first, stop in merge_pfns(pfns.astype(np.uint64)).tolist():
            words = self._file.read_range(first, stop - first)
            counts = np.clip(words, 1, _UNKNOWN - 1).astype(np.uint16)
            low, high = np.searchsorted(pfns, (first, first + len(counts)))
            known = pfns[low:high]
            self._store(known, counts[known - first])

    def _store(self, pfns: NDArray[np.int64], counts: NDArray[np.uint16]) -> None:
        self._table[self._rows[pfns >> _BLOCK_BITS], pfns & (_BLOCK - 1)] = counts


def sum_frames(frames: Frames, counts: MapCounts) -> FrameSums:
    """Return the sums over what a process maps."""
    mapped = counts.of(frames.pfn)
    is_alone = mapped == 1
    return FrameSums(
        rss_pages=len(frames.pfn),
        pss_pages=float((1.0 / mapped).sum()),
        uss_pages=int(is_alone.sum()),
        private_pages=int((is_alone & ~frames.is_file).sum()),
    )
