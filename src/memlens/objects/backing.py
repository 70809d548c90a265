"""
An open object, and what it says of its pages: SEEK_DATA, cachestat, mincore.

lseek(2), mincore(2), and cachestat (commit cf264e1329fb ("cachestat: implement cachestat
syscall") (in v6.5)); its structures are in include/uapi/linux/mman.h.
None of these touches a page: nothing is faulted in, and no accessed bit is set.
"""

import ctypes
import errno
import os
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.procfs import Host
from memlens.kernel.syscalls import (
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    NR_CACHESTAT,
    PROT_NONE,
    Cachestat,
    CachestatRange,
    libc,
    raise_last_errno,
)
from memlens.objects.cachestat import is_quiet

_BLOCK_BYTES = 512


@dataclass(slots=True)
class Backing:
    """
    An open object.

    :param fd: open for reading, closed with this object.
    :param kind: ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``block`` or ``file``.
    :param host: says how large a page is; its meter counts what is read.
    :param is_writable: whether mincore and cachestat are honest for this reader.
    :param path: where it was opened, for errors.
    """

    fd: int
    kind: str
    host: Host
    is_writable: bool
    path: str = ""
    _extent: tuple[int, int] = field(default=(0, 0), init=False)

    def close(self) -> None:
        """Close the object; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def size_pages(self) -> int:
        """Return the pages up to the end of the object, the last one perhaps in part."""
        if self.kind == "block":
            end = os.lseek(self.fd, 0, os.SEEK_END)
        else:
            end = os.fstat(self.fd).st_size
        return -(-end // self.host.page_size_bytes)

    def allocated_pages(self) -> int:
        """Return the pages that the object owns, in RAM or on swap (st_blocks)."""
        return os.fstat(self.fd).st_blocks * _BLOCK_BYTES // self.host.page_size_bytes

    def is_quiet(self) -> bool:
        """Return whether mapping it leaves its access time as it is."""
        return is_quiet(self.fd)

    def has_part_pages(self) -> bool:
        """
        Return whether it is on a disk with blocks smaller than pages.

        A page of which only some blocks were read or written is in the page cache, but not
        up to date, so that mincore calls it absent; cachestat counts it.
        """
        if self.kind not in ("file", "block", "overlay"):
            return False
        block_bytes = min(os.fstat(self.fd).st_blksize, os.fstatvfs(self.fd).f_bsize)
        return block_bytes < self.host.page_size_bytes

    def data_extents(self, first: int, stop: int) -> NDArray[np.int64]:
        """
        Return where SEEK_DATA says that there is data.

        :param first: first page of the object.
        :param stop: page after the last.
        :return: ``(n, 2)`` int64, half-open page ranges inside ``[first, stop)``.
        :raises OSError: EINVAL for block devices.

        A page that holds any data counts whole: blocks may be smaller than pages.
        """
        found = array("q")
        position = first
        while position < stop:
            begin, end = self._extent_at(position, stop)
            if begin >= stop:
                break
            found.append(max(begin, position))
            found.append(min(end, stop))
            position = end
        self.host.meter.used.add("seek_data")
        return np.frombuffer(found, np.int64).reshape(-1, 2) if found else _NO_EXTENTS

    def is_cached_hole(self, first: int, stop: int) -> bool:
        """Return whether all pages are a hole, in the page cache, and still a hole."""
        before = self._extent_asked(first, stop)
        cached, _ = self.cachestat(first, stop - first)
        after = self._extent_asked(first, stop)
        return before == after == _NOWHERE and cached == stop - first

    def forget_extent(self) -> None:
        """Ask anew about data that was seen to reach beyond the range asked for."""
        self._extent = (0, 0)

    def _extent_at(self, page: int, stop: int) -> tuple[int, int]:
        """
        Return the first stretch of data between two pages, ``_NOWHERE`` if there is none.

        SEEK_HOLE looks at all of a stretch, however long, so the last one is remembered:
        else piece after piece of it would be looked at to its end.
        """
        if self._extent[0] <= page < self._extent[1]:
            return self._extent
        found = self._extent_asked(page, stop)
        if found != _NOWHERE:
            self._extent = found
        return found

    def _extent_asked(self, page: int, stop: int) -> tuple[int, int]:
        size = self.host.page_size_bytes
        try:
            data = os.lseek(self.fd, page * size, os.SEEK_DATA)
            if data < page * size:
                raise OSError(errno.EINVAL, "lseek went backwards")
            if data >= stop * size:
                return _NOWHERE
            hole = os.lseek(self.fd, data, os.SEEK_HOLE)
        except OSError as error:
            # Past the last data, or cut short between the two calls: nothing is left here.
            if error.errno == errno.ENXIO:
                return _NOWHERE
            raise
        return data // size, max(-(-hole // size), page + 1)

    def cachestat(self, first: int, pages: int) -> tuple[int, int]:
        """
        Return how many pages of a range are in the page cache, and how many were evicted.

        :param pages: how many; 0 for all there are from the first on, also beyond the end.
        :return: ``nr_cache`` and ``nr_evicted``.  On shmem an evicted page is on swap;
            elsewhere it is only a note that the page was here once.
        :raises OSError: EPERM if the reader may not know, ENOSYS before v6.5,
            EOPNOTSUPP on hugetlbfs.
        """
        found = self.cachestat_all(first, pages)
        return found.nr_cache, found.nr_evicted

    def cachestat_all(self, first: int, pages: int) -> Cachestat:
        """Return every figure of cachestat for a range of pages."""
        size = self.host.page_size_bytes
        asked = CachestatRange(first * size, pages * size)
        found = Cachestat()
        if (
            libc.syscall(NR_CACHESTAT, self.fd, ctypes.byref(asked), ctypes.byref(found), 0)
            != 0
        ):
            raise_last_errno(self.path)
        self.host.meter.used.add("cachestat")
        return found

    def mincore(self, first: int, pages: int) -> NDArray[np.bool_]:
        """
        Return whether each page is in RAM, in the page cache or the swap cache.

        :return: ``(pages,)`` bool.
        :raises OSError: as mmap(2) and mincore(2) give it.
        :raises ValueError: for hugetlbfs, where the answer is always 0.

        For a file that the reader may not write the kernel answers 1 for everything:
        ask only if ``is_writable``.
        """
        if self.kind == "hugetlb":
            raise ValueError("mincore says nothing on hugetlbfs")
        size = self.host.page_size_bytes
        # A private PROT_NONE mapping of a read-only descriptor: it hinders no seal, reserves
        # nothing and can never fault a page in.
        address = libc.mmap(
            None, pages * size, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, self.fd, first * size
        )
        if address == MAP_FAILED:
            raise_last_errno(self.path)
        vector = np.empty(pages, np.uint8)
        try:
            if libc.mincore(address, pages * size, vector.ctypes.data) != 0:
                raise_last_errno(self.path)
        finally:
            libc.munmap(address, pages * size)
        self.host.meter.used.add("mincore")
        self.host.meter.add(pages, 0.0)
        return (vector & 1).astype(bool)


_NOWHERE = (1 << 62, 1 << 62)
_NO_EXTENTS = np.empty((0, 2), np.int64)


def is_all_data(backing: Backing) -> bool:
    """
    Return whether every page that a shmem object owns is data: none is preallocated.

    All that it owns counts in st_blocks, but only what was written is data.
    """
    extents = backing.data_extents(0, backing.size_pages())
    return int((extents[:, 1] - extents[:, 0]).sum()) == backing.allocated_pages()
