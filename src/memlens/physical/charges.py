"""Which page frames are charged to which memory cgroup, and of what kind they are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.flags import mask_of
from memlens.physical.records import KINDS
from memlens.scan.machine import Machine

_PIECE = 1 << 16
_THREADS = 2
ANONYMOUS, SHMEM, FILE, HUGETLB, KERNEL = range(1, len(KINDS) + 1)
_ANON = mask_of("ANON")
_SWAPBACKED = mask_of("SWAPBACKED")
_HUGE = mask_of("HUGE")
_MMAP = mask_of("MMAP")
_OF_FOLIO = mask_of("COMPOUND_HEAD", "COMPOUND_TAIL", "THP")
_KERNELS_OWN = mask_of("SLAB", "PGTABLE", "BUDDY", "OFFLINE", "RESERVED")

# Pages that were read just now are on no list yet: any of these tells a page of a file.
_OF_FILE = mask_of("LRU", "UPTODATE", "MMAP", "DIRTY", "WRITEBACK", "REFERENCED", "UNEVICTABLE")


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


class FrameReader:
    """
    Reads kpagecgroup and kpageflags of the machine.

    :param machine: whose files they are; told how far it is, and asked whether to stop.
    :raises AccessDenied: if this user may not open them.
    :raises Unsupported: if this kernel has no memory cgroups.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.frames = count_frames(machine)
        self._owners = KpageFile("kpagecgroup", machine)
        try:
            self._flags = KpageFile("kpageflags", machine)
        except BaseException:
            self._owners.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._owners.close()
        self._flags.close()

    def iter_charged(self, inodes: NDArray[np.uint64] | None) -> Iterator[Charged]:
        """
        Yield the charged frames of the machine, piece by piece.

        :param inodes: of which cgroups, sorted; None for all.
        """
        starts = range(0, self.frames or 1 << 40, _PIECE)
        with ThreadPoolExecutor(_THREADS) as pool:
            # A few at a time: what was read waits for nobody.
            for at in range(0, len(starts), 4 * _THREADS):
                batch = starts[at : at + 4 * _THREADS]
                pieces = list(pool.map(lambda start: self._read(start, inodes), batch))
                for piece, _ in pieces:
                    if len(piece.pfn):
                        yield piece
                self._machine.step(min(batch[-1] + _PIECE, self.frames), self.frames)
                if any(is_end for _, is_end in pieces):
                    return

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

    def _read(self, start: int, inodes: NDArray[np.uint64] | None) -> tuple[Charged, bool]:
        owners = self._owners.read_range(start, _PIECE)
        is_wanted = owners != 0 if inodes is None else _is_member(owners, inodes)
        pfns = np.flatnonzero(is_wanted) + start
        flags = read_sorted(self._flags, pfns)
        return Charged(pfns, owners[is_wanted], flags), len(owners) < _PIECE


def _is_member(values: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which values are among sorted ones; np.isin imports half of numpy."""
    if not len(wanted):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
    found: NDArray[np.bool_] = wanted[place] == values
    return found


def count_by_owner(piece: Charged) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each cgroup of a piece, and its frames of each kind."""
    order = np.argsort(piece.inode, kind="stable")
    inodes, kinds = piece.inode[order], classify_kinds(piece.flags)[order]
    edges = np.append(0, np.flatnonzero(inodes[1:] != inodes[:-1]) + 1)
    for first, stop in zip(edges, np.append(edges[1:], len(inodes)), strict=True):
        yield int(inodes[first]), count_codes(kinds[first:stop])


def count_codes(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each code occurs, ``(len(KINDS) + 1,)`` int64."""
    return np.bincount(codes, minlength=len(KINDS) + 1)
