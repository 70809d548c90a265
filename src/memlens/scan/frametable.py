"""What is known of page frames in a scan of many processes: answers, numbers, sets of them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import distinct

ANSWER_LIMIT = 0xFFFE
_ROOM_TO_GROW = 5 / 4
_POPCOUNTS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


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


class FrameRanks:
    """
    Numbers frames in the order in which they come.

    :param frames: page frames of the machine, 0 if that is not known.

    Takes four bytes for every frame of a part of memory where any is used.
    """

    def __init__(self, frames: int) -> None:
        self.size = 0
        self._rank = np.zeros(max(frames, 1), np.uint32)

    def learn(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return the numbers of frames, given to those that are new.

        :param pfns: ``(n,)`` int64, in any order, repeated or not.
        :return: ``(n,)`` int64, from 0.
        """
        if len(pfns) and int(pfns.max()) >= len(self._rank):
            grown = np.zeros(int(pfns.max()) * 5 // 4 + 1, np.uint32)
            grown[: len(self._rank)] = self._rank
            self._rank = grown
        fresh = np.sort(pfns[self._rank[pfns] == 0])
        if len(fresh):
            fresh = fresh[np.append(True, fresh[1:] != fresh[:-1])]
            numbers = np.arange(self.size + 1, self.size + 1 + len(fresh), dtype=np.uint32)
            self._rank[fresh] = numbers
            self.size += len(fresh)
        return self._rank[pfns].astype(np.int64) - 1

    def find(self, pfns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of frames, ``(n,)`` int64; -1 for those that never came."""
        is_inside = pfns < len(self._rank)
        found = self._rank[np.where(is_inside, pfns, 0)].astype(np.int64) - 1
        found[~is_inside] = -1
        return found

    def known(self) -> NDArray[np.uint64]:
        """Return the frames that came, sorted, ``(n,)`` uint64."""
        return np.flatnonzero(self._rank).view(np.uint64)


class FrameSet:
    """
    A set of numbered frames, a bit for each.

    >>> one, other = FrameSet(), FrameSet()
    >>> one.add(np.array([1, 9])), other.add(np.array([9, 70]))
    (None, None)
    >>> one.count_common(other)
    1
    """

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)

    def add(self, ranks: NDArray[np.int64]) -> None:
        """Put frames in, by number."""
        if not len(ranks):
            return
        first, stop = int(ranks.min()) // 8, int(ranks.max()) // 8 + 1
        if stop > len(self._bits):
            grown = np.zeros(max(stop, len(self._bits) * 5 // 4), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        dense = np.zeros((stop - first) * 8, bool)
        dense[ranks - first * 8] = True
        self._bits[first:stop] |= np.packbits(dense)

    def has(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which frames are in, ``(n,)`` bool; -1 never is."""
        place = ranks >> 3
        is_inside = (ranks >= 0) & (place < len(self._bits))
        if not len(self._bits):
            return is_inside
        bits = self._bits[np.where(is_inside, place, 0)]
        found: NDArray[np.bool_] = is_inside & ((bits >> (7 - (ranks & 7))) & 1).astype(bool)
        return found

    def count(self) -> int:
        """Return how many frames are in."""
        return _count_bits(self._bits)

    def count_common(self, other: "FrameSet") -> int:
        """Return how many frames are in both."""
        length = min(len(self._bits), len(other._bits))
        return _count_bits(self._bits[:length] & other._bits[:length])

    def include(self, other: "FrameSet") -> None:
        """Put everything in that another set has."""
        length = max(len(self._bits), len(other._bits))
        joined = np.zeros(length, np.uint8)
        joined[: len(self._bits)] = self._bits
        joined[: len(other._bits)] |= other._bits
        self._bits = joined


def _count_bits(bits: NDArray[np.uint8]) -> int:
    # numpy counts bits itself since 2.0.
    if hasattr(np, "bitwise_count"):
        whole = len(bits) // 8 * 8
        words = np.bitwise_count(bits[:whole].view(np.uint64))
        rest = np.bitwise_count(bits[whole:])
        return int(words.sum(dtype=np.int64)) + int(rest.sum(dtype=np.int64))
    return int(_POPCOUNTS[bits].sum(dtype=np.int64))
