"""What the kernel says of page frames, each asked once in a scan of many processes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import distinct

ANSWER_LIMIT = 0xFFFE
_ROOM_TO_GROW = 5 / 4


class FrameTable:
    """
    Answers about frames; for one thread.

    :param file: an open kpageflags or kpagecount.
    :param reduce: makes an answer, at most ``ANSWER_LIMIT``, of each word; it is given the
        words and their frames.

    Takes two bytes for every frame of a part of memory where any is asked about.
    """

    def __init__(
        self,
        file: KpageFile,
        reduce: Callable[[NDArray[np.uint64], NDArray[np.int64]], NDArray[np.uint16]],
    ) -> None:
        self.file = file
        self._reduce = reduce
        # Answers plus one; 0 is not known yet.  The kernel gives zeros no memory before they
        # are written, so that room for every frame of the machine costs nothing.
        self._table = np.zeros(count_frames(file.host), np.uint16)

    def of(self, pfns: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.uint16]:
        """
        Return the answers for frames in any order, repeated or not, ``(n,)`` uint16.

        :raises MemlensError: as the reads give it.
        """
        if not len(pfns):
            return np.empty(0, np.uint16)
        numbers = pfns.astype(np.int64)
        self._make_room(int(numbers.max()))
        answers = self._table[numbers]
        is_new = answers == 0
        if is_new.any():
            fresh = distinct(numbers[is_new])
            words = read_sorted(self.file, fresh)
            self._table[fresh] = self._reduce(words, fresh) + np.uint16(1)
            answers[is_new] = self._table[numbers[is_new]]
        answers -= np.uint16(1)
        return answers

    def ask_again(self, pfns: NDArray[np.int64]) -> bool:
        """
        Ask anew of those of some frames that were asked about, and return if there are any.

        :param pfns: ``(n,)`` int64, each once.
        :raises MemlensError: as the reads give it.
        """
        inside = pfns[pfns < len(self._table)]
        known = inside[self._table[inside] != 0]
        self._table[known] = 0
        self.of(known.view(np.uint64))
        return bool(len(known))

    def _make_room(self, last: int) -> None:
        """Grow for memory that came after the start, or was not known of."""
        if last >= len(self._table):
            grown = np.zeros(int(last * _ROOM_TO_GROW) + 1, np.uint16)
            grown[: len(self._table)] = self._table
            self._table = grown
