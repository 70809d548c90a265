"""How often each word occurs, for few distinct words among very many."""

import numpy as np
from numpy.typing import NDArray

# Odd numbers without a pattern: powers of a constant of Knuth's.
_MULTIPLIERS = tuple(np.uint64(pow(6364136223846793005, i, 1 << 64)) for i in range(1, 65))
_BITS_AT_LEAST = 10

# Neighbours are mostly alike; runs shorter than this on average are not worth finding.
_RUN_PAGES = 4
_NO_BITS = np.uint64(0)


class WordCounts:
    """
    Counts of 64-bit words.

    Flags repeat: the millions of pages of a machine hold some hundred different words.  So
    each word is hashed by one multiplication that is known to give every word met so far
    a slot of its own, which takes a few ns a page, where sorting takes 15.

    >>> counts = WordCounts()
    >>> counts.add(np.array([7, 1, 7], dtype=np.uint64))
    >>> counts.totals()
    (array([1, 7], dtype=uint64), array([1, 2]))
    """

    def __init__(self) -> None:
        # An empty slot holds 0, so that 0 has to be known from the start.
        self._known = np.zeros(1, np.uint64)
        self._build()

    def add(
        self, words: NDArray[np.uint64], times: int = 1, common: np.uint64 = _NO_BITS
    ) -> None:
        """
        Count every word of ``(n,)`` uint64; ``times=-1`` takes them away again.

        :param common: bits to set in each of them.
        """
        if not len(words):
            return
        heads = np.flatnonzero(words[1:] != words[:-1]) + 1
        if len(heads) > len(words) // _RUN_PAGES:
            self._add(words | common, None, times)
            return
        heads = np.append(0, heads)
        self._add(words[heads] | common, np.diff(heads, append=len(words)), times)

    def _add(
        self, words: NDArray[np.uint64], pages: NDArray[np.int64] | None, times: int
    ) -> None:
        slots = self._slots(words)
        is_unknown = self._table[slots] != words
        if is_unknown.any():
            self._learn(words[is_unknown])
            slots = self._slots(words)
        found = np.bincount(slots, pages, len(self._table))
        self._counts += found.astype(np.int64) * times

    def totals(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the words that were counted, ``(n,)`` uint64, sorted, and how often."""
        pages = self._counts[self._slots(self._known)]
        return self._known[pages != 0], pages[pages != 0]

    def _slots(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        slots: NDArray[np.uint64] = words * self._multiplier
        slots >>= self._shift
        return slots.view(np.int64)

    def _learn(self, words: NDArray[np.uint64]) -> None:
        known, counted = self._known, self._counts[self._slots(self._known)]
        # np.unique would import numpy.ma, which takes 15 ms.
        every = np.sort(np.concatenate((known, words)))
        self._known = every[np.append(True, every[1:] != every[:-1])]
        self._build()
        self._counts[self._slots(known)] = counted

    def _build(self) -> None:
        """Find a multiplier that gives every known word a slot of its own."""
        # With a fourth of the square of their number in slots, every tenth one does or so.
        bits = max(_BITS_AT_LEAST, 2 * len(self._known).bit_length() - 3)
        while True:
            self._shift = np.uint64(64 - bits)
            table = np.zeros(1 << bits, np.uint64)
            for multiplier in _MULTIPLIERS:
                self._multiplier = multiplier
                slots = self._slots(self._known)
                table[slots] = self._known
                if np.array_equal(table[slots], self._known):
                    self._table = table
                    self._counts = np.zeros(1 << bits, np.int64)
                    return
                table[slots] = 0
            bits += 1
