"""
What the page-cache walk gives: its records as columns, and the check that they can be.

Anything impossible makes the whole answer void (``CacheWalkInvalid``), so that a
kernel whose structures came to mean something else gives no wrong verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.mounts import TMPFS_MAGIC
from memlens.kernel.procfs import Host
from memlens.kernel.swapareas import NumberedArea, find_impossible, read_areas

# These mirror bpf/cachewalk.bpf.c.
RECORD = np.dtype(
    [
        ("index", "<i8"),
        ("value", "<u8"),
        ("cgroup", "<u8"),
        ("pages", "<u4"),
        ("kind", "u1"),
        ("order", "u1"),
        ("unused", "<u2"),
    ]
)
KIND_SWAP, KIND_UPTODATE, KIND_DIRTY, KIND_WRITEBACK = 1, 2, 4, 8

# include/linux/swapops.h: the area is in the top 5 of the 63 bits of a value entry.
_AREA_SHIFT = np.uint64(58)
_SLOT = np.uint64((1 << 58) - 1)
_MAX_ORDER = 30
Records = NDArray[np.void]


class CacheWalkInvalid(MemlensError):
    """The walk gave something that cannot be: its answer is void, ask another way."""


@dataclass(frozen=True, slots=True)
class CacheObject:
    """
    The object that was walked, as it was when the walk began.

    :param magic: of its file system, as statfs(2) gives it.
    :param device: of its superblock, as ``os.makedev`` makes it.
    :param inode: its inode number.
    :param size_bytes: its length.
    :param nrpages: pages in its page cache, in RAM.
    :param alloced: shmem only: pages allocated, in RAM or swapped.
    :param swapped: shmem only: pages swapped out.
    :param vma: ``(start, stop, offset)`` in bytes of the mapping that was walked by,
        None for a file descriptor.
    """

    magic: int
    device: int
    inode: int
    size_bytes: int
    nrpages: int
    alloced: int
    swapped: int
    vma: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class CacheRecords:
    """
    Runs of pages that are in RAM or swapped out, in order; pages in none are neither.

    :param object: what was walked.
    :param index: first page, from the start of the object, ``(n,)`` int64.
    :param pages: length of the run, ``(n,)`` int64.
    :param is_swap: swapped out, ``(n,)`` bool; else in RAM.
    :param area: number of the swap area of the run, ``(n,)`` uint8, 0 if in RAM.
    :param slot: slot of its first page; each next page has the next slot, ``(n,)``
        uint64, 0 if in RAM.
    :param order: the run is of folios of ``1 << order`` pages, ``(n,)`` uint8.
    :param is_uptodate: in RAM and filled, ``(n,)`` bool; a page of shmem in RAM
        without this was allocated by fallocate(2) and never written.
    :param is_dirty: in RAM and to be written back or swapped, ``(n,)`` bool.
    :param is_writeback: in RAM and being written, ``(n,)`` bool.
    :param flags: ``folio->flags`` below the zone and node, ``(n,)`` uint64, 0 if
        swapped.  Bits move between kernels; these four columns are the decoded ones.
    :param cgroup_id: memory cgroup that is charged, ``(n,)`` uint64; 0 if swapped, or
        if none is.

    A swapped page may also have a copy in RAM, in the swap cache: this does not show.
    """

    object: CacheObject
    index: NDArray[np.int64]
    pages: NDArray[np.int64]
    is_swap: NDArray[np.bool_]
    area: NDArray[np.uint8]
    slot: NDArray[np.uint64]
    order: NDArray[np.uint8]
    is_uptodate: NDArray[np.bool_]
    is_dirty: NDArray[np.bool_]
    is_writeback: NDArray[np.bool_]
    flags: NDArray[np.uint64]
    cgroup_id: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class RawRecords:
    """
    What the program wrote, and the pages that it was asked about.

    :param records: ``(n,)`` of ``RECORD``.
    :param start: first page asked for.
    :param stop: page to stop before.
    """

    records: Records
    start: int
    stop: int


def in_base_pages(records: Records) -> Records:
    """
    Return records of hugetlbfs with index and length in base pages.

    Before commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in
    filemap.c") (in v6.7) its page cache counts in huge pages: the record of a folio,
    of which each has its own, is then one page long instead of ``1 << order``.
    """
    order = records["order"].astype(np.int64)
    is_in_base_pages = records["pages"] >= np.left_shift(1, order)
    if is_in_base_pages.all():
        return records
    scaled = records.copy()
    scaled["index"] = records["index"] << order
    scaled["pages"] = records["pages"] << order
    return scaled


def clip_records(records: Records, start: int, stop: int) -> Records:
    """Keep what lies in ``[start, stop)`` of records of pages in RAM."""
    first = np.maximum(records["index"], start)
    last = np.minimum(records["index"] + records["pages"], stop)
    clipped = records.copy()
    clipped["index"] = first
    clipped["pages"] = np.maximum(last - first, 0)
    inside: Records = clipped[last > first]
    return inside


def decode_records(
    raw: RawRecords, described: CacheObject, areas: Sequence[NumberedArea] | None
) -> CacheRecords:
    """
    Return the records as columns, or find them impossible.

    :param areas: the swap areas in use; read from /proc/swaps if None.
    :raises CacheWalkInvalid: if the answer is void.
    """
    records = _columns(raw.records, described)
    _check_order(records, raw)
    if areas is not None:
        check_slots(records, areas)
        return records
    if not records.is_swap.any():
        return records
    try:
        check_slots(records, read_areas(Host()))
    except CacheWalkInvalid:
        check_slots(records, read_areas(Host()))  # one may have been switched on just now
    return records


def _columns(records: Records, described: CacheObject) -> CacheRecords:
    kind, value = records["kind"], records["value"]
    is_swap = (kind & KIND_SWAP).astype(bool)
    location = np.where(is_swap, value, 0)
    return CacheRecords(
        object=described,
        index=records["index"].copy(),
        pages=records["pages"].astype(np.int64),
        is_swap=is_swap,
        area=(location >> _AREA_SHIFT).astype(np.uint8),
        slot=location & _SLOT,
        order=records["order"].copy(),
        is_uptodate=(kind & KIND_UPTODATE).astype(bool),
        is_dirty=(kind & KIND_DIRTY).astype(bool),
        is_writeback=(kind & KIND_WRITEBACK).astype(bool),
        flags=np.where(is_swap, 0, value),
        cgroup_id=records["cgroup"].copy(),
    )


def _check_order(records: CacheRecords, raw: RawRecords) -> None:
    if not len(records):
        return
    stop = records.index + records.pages
    if (records.pages <= 0).any() or (records.index[1:] < stop[:-1]).any():
        raise CacheWalkInvalid("the walk gave pages out of order")
    if records.index[0] < raw.start or stop[-1] > raw.stop:
        raise CacheWalkInvalid("the walk gave pages that were not asked for")
    if (records.order > _MAX_ORDER).any():
        raise CacheWalkInvalid("the walk gave a folio of impossible size")
    if records.object.magic != TMPFS_MAGIC and records.is_swap.any():
        raise CacheWalkInvalid("the walk gave swapped pages of what is not shmem")


def check_slots(records: CacheRecords, areas: Sequence[NumberedArea]) -> None:
    """
    Check every swap slot against the areas in use, as ``find_impossible`` does.

    :raises CacheWalkInvalid: if a slot is in no area, or past the end of its area.
    """
    kept = records.is_swap
    slot = records.slot[kept].astype(np.int64)
    reason = find_impossible(records.area[kept], slot, records.pages[kept], areas)
    if reason:
        raise CacheWalkInvalid(f"the walk gave {reason}")
