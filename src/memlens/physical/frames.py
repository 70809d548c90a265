"""Page frames of the machine: their flags, the cgroup that is charged, and their kind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import distinct, is_in
from memlens.pages.flags import mask_of
from memlens.physical.records import KINDS
from memlens.scan.jobs import count_threads, share
from memlens.scan.machine import Machine

_PIECE = 1 << 16
_BEYOND = 1 << 52
_Result = TypeVar("_Result")

ANONYMOUS, SHMEM, FILE, HUGETLB, KERNEL = range(1, len(KINDS) + 1)
_ANON = mask_of("ANON")
_SWAPBACKED = mask_of("SWAPBACKED")
_HUGE = mask_of("HUGE")
_MMAP = mask_of("MMAP")
_OF_FOLIO = mask_of("COMPOUND_HEAD", "COMPOUND_TAIL", "THP")
_KERNELS_OWN = mask_of("SLAB", "PGTABLE", "BUDDY", "OFFLINE", "RESERVED")

# Pages that were read just now are on no list yet: any of these tells a page of a file.
_OF_FILE = mask_of("LRU", "UPTODATE", "MMAP", "DIRTY", "WRITEBACK", "REFERENCED", "UNEVICTABLE")


def iter_frames(
    machine: Machine,
    addresses: tuple[int, int] | None,
    read: Callable[[range], tuple[_Result, int]],
    *,
    at_once: int | None = None,
) -> Iterator[_Result]:
    """
    Yield what is read of the frames of the machine, piece by piece, in order.

    :param addresses: only this half-open range of physical addresses, in bytes.
    :param read: called by several threads; returns also of how many frames that is: less than
        asked for is the end of memory.
    :param at_once: pieces to read before the first is yielded.
    :raises Stopped: between them, if the scan is to end.
    """
    size = machine.page_size_bytes
    begin, stop = 0, _BEYOND
    if addresses is not None:
        begin, stop = addresses[0] // size, -(-addresses[1] // size)
    total = max(min(count_frames(machine), stop) - begin, 0)
    # A few at a time: what was read waits for nobody.
    step = _PIECE * (at_once or 4 * count_threads())
    for place in range(begin, stop, step):
        starts = range(place, min(place + step, stop), _PIECE)
        frames = [range(first, min(first + _PIECE, stop)) for first in starts]
        pieces = share(frames, read)
        yield from (piece for piece, _ in pieces)
        done = sum(found for _, found in pieces)
        machine.step(min(place + done - begin, total), total)
        if done < frames[-1].stop - place:
            return


def read_words(file: KpageFile, frames: range) -> tuple[NDArray[np.uint64], int]:
    """Return the words of a range of frames, and how many there are before memory ends."""
    # All memory is read faster in large pieces.
    pieces = file.iter_range(frames.start, len(frames), len(frames))
    words = next((words for _, words in pieces), np.empty(0, np.uint64))
    return words, len(words)


@dataclass(frozen=True, slots=True)
class Charged:
    """
    Charged frames, ``(n,)`` each.

    :param pfn: int64, sorted.
    :param inode: of the cgroup, uint64.
    :param flags: as kpageflags has them, uint64.
    """

    pfn: NDArray[np.int64]
    inode: NDArray[np.uint64]
    flags: NDArray[np.uint64]

    @classmethod
    def join(cls, pieces: Sequence[Self]) -> Self:
        """Return the frames of all pieces."""
        none = np.empty(0, np.uint64)
        return cls(
            np.concatenate([np.empty(0, np.int64), *(piece.pfn for piece in pieces)]),
            np.concatenate([none, *(piece.inode for piece in pieces)]),
            np.concatenate([none, *(piece.flags for piece in pieces)]),
        )


class ChargeReader:
    """
    Reads kpagecgroup and kpageflags of the machine.

    :param machine: whose files they are; told how far it is, and asked whether to stop.
    :raises AccessDenied: if this user may not open them.
    :raises Unsupported: if this kernel has no memory cgroups.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        with ExitStack() as files:
            self._owners = files.enter_context(KpageFile("kpagecgroup", machine))
            self._flags = files.enter_context(KpageFile("kpageflags", machine))
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def iter_charged(
        self,
        inodes: NDArray[np.uint64] | None = None,
        addresses: tuple[int, int] | None = None,
    ) -> Iterator[Charged]:
        """
        Yield the charged frames of the machine, piece by piece.

        :param inodes: of which cgroups, sorted; None for all.
        :param addresses: only this half-open range of physical addresses, in bytes.
        :raises Stopped: if the scan is to end.
        """

        def read(frames: range) -> tuple[Charged, int]:
            owners, found = read_words(self._owners, frames)
            is_wanted = owners != 0 if inodes is None else is_in(owners, inodes)
            pfns = np.flatnonzero(is_wanted) + frames.start
            flags = read_sorted(self._flags, pfns)
            return Charged(pfns, owners[is_wanted], flags), found

        return iter_frames(self._machine, addresses, read)

    def owners(self, pfns: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the cgroups that frames are charged to; PFNs sorted."""
        return read_sorted(self._owners, pfns)

    def are_mapped(
        self, pfns: NDArray[np.int64], flags: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """
        Return which frames a page table maps, ``(n,)`` bool.

        :param pfns: sorted.
        :param flags: of each, as kpageflags has them.

        ``mmap`` is a flag of the whole folio: of which of its pages, only kpagecount says,
        where the kernel counts pages (not with CONFIG_NO_PAGE_MAPCOUNT).
        """
        is_mapped: NDArray[np.bool_] = (flags & _MMAP) != 0
        is_asked = is_mapped & ((flags & _OF_FOLIO) != 0)
        if is_asked.any():
            with KpageFile("kpagecount", self._machine) as counts:
                is_mapped[is_asked] = read_sorted(counts, pfns[is_asked]) != 0
        return is_mapped


def classify_kinds(flags: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """
    Return the kind of charged frames: 1 + its place in ``KINDS``, ``(n,)`` uint8.

    >>> classify_kinds(np.array([1 << 12, 1 << 14, 1 << 5, 1 << 26], dtype=np.uint64))
    array([1, 2, 3, 5], dtype=uint8)
    """
    kinds = np.full(len(flags), KERNEL, np.uint8)
    is_own = (flags & _KERNELS_OWN) != 0
    kinds[((flags & _OF_FILE) != 0) & ~is_own] = FILE
    kinds[((flags & _SWAPBACKED) != 0) & ~is_own] = SHMEM
    kinds[(flags & _ANON) != 0] = ANONYMOUS
    kinds[(flags & _HUGE) != 0] = HUGETLB
    return kinds


def count_by_owner(piece: Charged) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the cgroups of a piece, and how many frames of each kind each is charged."""
    inodes, codes = distinct(piece.inode), len(KINDS) + 1
    place = np.searchsorted(inodes, piece.inode) * codes + classify_kinds(piece.flags)
    counts = np.bincount(place, minlength=len(inodes) * codes)
    return inodes, counts.reshape(-1, codes)[:, 1:]


def count_kinds(kinds: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many frames of each kind there are, ``(len(KINDS),)`` int64."""
    return np.bincount(kinds, minlength=len(KINDS) + 1)[1:]
