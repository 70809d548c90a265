"""Which processes map which page frames, a bit for each."""

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.scan.machine import Machine
from memlens.scan.mapcounts import OWN_TRIES, OwnMaps, read_own_maps

_COUNTED_AT_ONCE = 1 << 18
_POPCOUNTS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class FrameRanks:
    """
    Numbers frames in the order in which they come, and knows how often each is mapped.

    :param frames: page frames of the machine, 0 if that is not known.

    Takes four bytes for every frame of a part of memory where any is used.
    """

    def __init__(self, frames: int) -> None:
        self.size = 0
        self._rank = np.zeros(max(frames, 1), np.uint32)
        self._counts = np.empty(0, np.uint32)

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

    def read_counts(self, file: KpageFile, machine: Machine) -> OwnMaps:
        """
        Ask how often every frame is mapped by others than this process.

        :param file: kpagecount.
        :param machine: of which it is.
        :return: what this process maps.

        This process maps more while it runs: reading brings in pages of libraries.  So what
        it maps is read before and after, and frames that it maps another number of times
        are asked about again.
        """
        pfns = np.flatnonzero(self._rank)
        self._counts = np.zeros(self.size, np.uint32)
        own = read_own_maps(machine)
        for _ in range(OWN_TRIES):
            for at in range(0, len(pfns), _COUNTED_AT_ONCE):
                self._read_counts(file, pfns[at : at + _COUNTED_AT_ONCE], own)
            before, own = own, read_own_maps(machine)
            pfns = before.changed(own)
            pfns = pfns[self.find(pfns) >= 0]
            if not len(pfns):
                break
        return own

    def counts(self, ranks: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return how often others than this process map frames, by number."""
        return self._counts[ranks]

    def _read_counts(self, file: KpageFile, pfns: NDArray[np.int64], own: OwnMaps) -> None:
        counts = own.take_off(read_sorted(file, pfns), pfns)
        self._counts[self._rank[pfns] - 1] = np.minimum(counts, np.uint64(0xFFFFFFFF))


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
