"""
An open object, and what it says of its pages: SEEK_DATA, cachestat, mincore.

lseek(2), mincore(2), and cachestat (commit cf264e1329fb ("cachestat: implement cachestat
syscall") (in v6.5)); its structures are in include/uapi/linux/mman.h.
None of these touches a page: nothing is faulted in, and no accessed bit is set.
"""

import errno
import fcntl
import os
import stat
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.mounts import BTRFS_MAGIC, KIND_BY_MAGIC
from memlens.kernel.procfs import Host, read_file
from memlens.kernel.syscalls import cachestat, fstatfs_type, mincore

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_OF_HUGETLB = "cachestat and mincore say nothing of files on hugetlbfs"
_NEEDS_OWNER = "the kernel says it only to the owner, to who may write it, or with CAP_FOWNER"
_MINCORE_PAGES = 1 << 20
_CAP_FOWNER = 3
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
        size = self.host.page_size_bytes
        found = cachestat(self.fd, first * size, pages * size)
        self.host.meter.used.add("cachestat")
        return found.nr_cache, found.nr_evicted

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
        found = mincore(self.fd, first * size, pages * size)
        self.host.meter.used.add("mincore")
        self.host.meter.add(pages, 0.0)
        return found


_NOWHERE = (1 << 62, 1 << 62)
_NO_EXTENTS = np.empty((0, 2), np.int64)


def is_all_data(backing: Backing) -> bool:
    """
    Return whether every page that a shmem object owns is data: none is preallocated.

    All that it owns counts in st_blocks, but only what was written is data.
    """
    extents = backing.data_extents(0, backing.size_pages())
    return int((extents[:, 1] - extents[:, 0]).sum()) == backing.allocated_pages()


# What of a file is in the page cache: cachestat, else mincore.
#
# Nothing here disturbs a file: it is opened without a change of its access time, never if
# that would break a lease, never if it is a device, a pipe or a socket, and no page of it is
# touched.


class Figures(NamedTuple):
    """
    Pages of a file, or of a range of it; None is not known.

    :param cached: in the page cache.
    :param dirty: of these, newer than what is on disk.
    :param writeback: of these, being written.
    :param evicted: not in the page cache any more, but the kernel remembers them; of
        shared memory: on swap.
    :param recently_evicted: of these, so recently that reading them again would count as
        a sign that memory is short.
    """

    cached: int | None
    dirty: int | None = None
    writeback: int | None = None
    evicted: int | None = None
    recently_evicted: int | None = None


NOTHING = Figures(0, 0, 0, 0, 0)
UNKNOWN = Figures(None)


class CacheReader:
    """
    Asks thousands of files, a call or two each.

    :param host: says how large a page is, and what is switched off.
    """

    def __init__(self, host: Host) -> None:
        self.page_size_bytes = host.page_size_bytes
        self.has_cachestat = "cachestat" not in host.disabled
        self.has_mincore = "mincore" not in host.disabled
        self._is_any_owner: bool | None = None

    def kind(self, fd: int) -> str:
        """Return ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``btrfs`` or ``file``."""
        magic = fstatfs_type(fd)
        return "btrfs" if magic == BTRFS_MAGIC else KIND_BY_MAGIC.get(magic, "file")

    def ask(
        self, fd: int, kind: str, start: int, stop: int, is_quiet: bool = True
    ) -> tuple[Figures, str]:
        """
        Return the figures of a range of a file, and why they are not known.

        :param fd: a regular file, open for reading.
        :param kind: as ``kind`` gives it.
        :param start: first byte; a multiple of the page size.
        :param stop: byte after the last.
        :param is_quiet: whether mapping the file leaves its access time as it is.
        """
        if stop <= start:
            return NOTHING, ""
        if kind == "hugetlb":
            return UNKNOWN, _NOT_OF_HUGETLB
        # On overlayfs cachestat asks the overlay's own inode, which has no pages.
        if self.has_cachestat and kind != "overlay":
            try:
                return Figures._make(cachestat(fd, start, stop - start)), ""
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EACCES):
                    return UNKNOWN, _NEEDS_OWNER
                if error.errno != errno.ENOSYS:
                    return UNKNOWN, f"cachestat: {error.strerror}"
                self.has_cachestat = False
        return self._ask_mincore(fd, start, stop, is_quiet)

    def _ask_mincore(
        self, fd: int, start: int, stop: int, is_quiet: bool
    ) -> tuple[Figures, str]:
        if not self.has_mincore:
            return UNKNOWN, "cachestat and mincore are not to be had"
        if not self._is_honest(fd):
            return UNKNOWN, _NEEDS_OWNER
        if not is_quiet:
            return UNKNOWN, "mincore would change the access time of a file of another user"
        try:
            return Figures(self._mincore(fd, start, stop)), ""
        except OSError as error:
            return UNKNOWN, f"mincore: {os.strerror(error.errno or 0)}"

    def _is_honest(self, fd: int) -> bool:
        """
        Return whether mincore tells this reader the truth, rather than that all is there.

        commit 134fca9063ad ("mm/mincore.c: make mincore() more conservative") (in v5.2)
        """
        if self._is_any_owner is None:
            self._is_any_owner = _has_capability(_CAP_FOWNER)
        is_owner = self._is_any_owner or os.fstat(fd).st_uid == os.geteuid()
        return is_owner or os.access(f"/proc/self/fd/{fd}", os.W_OK)

    def _mincore(self, fd: int, start: int, stop: int) -> int:
        step = _MINCORE_PAGES * self.page_size_bytes
        pieces = ((begin, min(step, stop - begin)) for begin in range(start, stop, step))
        return sum(int(mincore(fd, *piece).sum()) for piece in pieces)


def open_quietly(name: str | bytes, dir_fd: int | None = None, flags: int = 0) -> int:
    """
    Open for reading without a change of the access time, where this user may do that.

    :raises OSError: as open(2) gives it.
    """
    try:
        return os.open(name, _OPEN_FLAGS | os.O_NOATIME | flags, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, _OPEN_FLAGS | flags, dir_fd=dir_fd)


def is_quiet(fd: int) -> bool:
    """
    Return whether mapping an open file leaves its access time as it is.

    O_NOATIME is only for the owner and CAP_FOWNER.
    """
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME:
        return True
    return bool(os.fstatvfs(fd).f_flag & (os.ST_NOATIME | os.ST_RDONLY))


def special_kind(mode: int) -> str:
    """Return what a file is that is never opened, "" for a regular file."""
    names = {
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
    }
    return "" if stat.S_ISREG(mode) else names.get(stat.S_IFMT(mode), "a special file")


def _has_capability(number: int) -> bool:
    try:
        lines = read_file("/proc/self/status").split(b"\n")
    except OSError:
        return False
    held = [int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:")]
    return bool(held and held[0] >> number & 1)
