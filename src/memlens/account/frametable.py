"""What the kernel says of page frames, each asked once in a scan of many processes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile
from memlens.kernel.kpagebatch import read_sorted
from memlens.pages.distinct import distinct

# A block holds the answers for so many frames: 8 KiB for 16 MiB of memory.
_BLOCK_BITS = 12
_BLOCK = 1 << _BLOCK_BITS
ANSWER_LIMIT = 0xFFFE
_UNKNOWN = 0xFFFF


class FrameTable:
    """
    Answers about frames; for one thread.

    :param file: an open kpageflags or kpagecount.
    :param reduce: makes an answer, at most ``ANSWER_LIMIT``, of each word.
    """

    def __init__(
        self,
        file: KpageFile,
        reduce: Callable[[NDArray[np.uint64]], NDArray[np.uint16]],
    ) -> None:
        self.file = file
        self._reduce = reduce
        self._rows = np.full(1, -1, np.int64)
        self._table = np.empty(0, np.uint16)

    def of(self, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.uint16]:
        """
        Return the answers for frames in any order, repeated or not, ``(n,)`` uint16.

        :raises MemlensError: as the reads give it.
        """
        if not len(pfns):
            return np.empty(0, np.uint16)
        numbers = pfns.astype(np.int64)
        places = self._places(numbers)
        answers = self._table[places]
        is_new = answers == _UNKNOWN
        if is_new.any():
            self._learn(distinct(numbers[is_new]))
            answers = self._table[places]
        return answers

    def _places(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the answers stand, room made for those that have none."""
        blocks = pfns >> _BLOCK_BITS
        last = int(blocks.max())
        if last >= len(self._rows):
            more = np.full(last + 1 - len(self._rows), -1, np.int64)
            self._rows = np.concatenate([self._rows, more])
        rows = self._rows[blocks]
        if (rows < 0).any():
            fresh = distinct(blocks[rows < 0])
            self._rows[fresh] = np.arange(len(fresh)) + len(self._table) // _BLOCK
            room = np.full(len(fresh) * _BLOCK, _UNKNOWN, np.uint16)
            self._table = np.concatenate([self._table, room])
            rows = self._rows[blocks]
        places: NDArray[np.int64] = (rows << _BLOCK_BITS) | (pfns & (_BLOCK - 1))
        return places

    def _learn(self, pfns: NDArray[np.int64]) -> None:
        """Ask the kernel about frames, sorted and distinct."""
        answers = self._reduce(read_sorted(self.file, pfns))
        self._table[self._places(pfns)] = answers
