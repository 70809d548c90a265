"""
What of a file is in the page cache: cachestat, else mincore.

cachestat(2), in v6.5 (commit cf264e1329fb "cachestat: implement cachestat syscall"),
mincore(2).  This module imports no numpy: thousands of files are asked, two calls each.

Nothing here disturbs a file: it is opened without a change of its access time, never if
that would break a lease, never if it is a device, a pipe or a socket, and no page of it
is touched.
"""

import ctypes
import errno
import fcntl
import os
import stat
from typing import NamedTuple

from memlens.kernel.mounts import (
    BTRFS_MAGIC,
    HUGETLBFS_MAGIC,
    OVERLAYFS_MAGIC,
    RAMFS_MAGIC,
    TMPFS_MAGIC,
)
from memlens.kernel.procfs import Host, read_file
from memlens.kernel.syscalls import (
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    NR_CACHESTAT,
    PROT_NONE,
    libc,
    raise_last_errno,
)

OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
KIND_BY_MAGIC = {
    TMPFS_MAGIC: "shmem",
    RAMFS_MAGIC: "ramfs",
    HUGETLBFS_MAGIC: "hugetlb",
    OVERLAYFS_MAGIC: "overlay",
    BTRFS_MAGIC: "btrfs",
}
NOT_OF_HUGETLB = "cachestat and mincore say nothing of files on hugetlbfs"
NEEDS_OWNER = "the kernel says it only to the owner, to who may write it, or with CAP_FOWNER"
_MINCORE_PAGES = 1 << 20
_CAP_FOWNER = 3

# More than struct statfs has on any architecture; its type comes first.
_STATFS_WORDS = 32
_LOST = 0xFFFFFFFFFFFFFFFF

# A handle of its own, so that its argument types bind no other module.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint,
]


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
    Asks files; made once, for it keeps its buffers.

    :param host: says how large a page is, and what is switched off.
    """

    def __init__(self, host: Host) -> None:
        self.page_size_bytes = host.page_size_bytes
        self.has_cachestat = "cachestat" not in host.disabled
        self.has_mincore = "mincore" not in host.disabled
        self._range = (ctypes.c_uint64 * 2)()
        self._found = (ctypes.c_uint64 * 5)()
        self._status = (ctypes.c_ulong * _STATFS_WORDS)()
        self._status_address = ctypes.addressof(self._status)
        self._range_address = ctypes.addressof(self._range)
        self._found_address = ctypes.addressof(self._found)
        self._is_any_owner: bool | None = None

    def kind(self, fd: int) -> str:
        """Return ``shmem``, ``ramfs``, ``hugetlb``, ``overlay``, ``btrfs`` or ``file``."""
        if libc.fstatfs(fd, self._status_address) != 0:
            raise_last_errno()
        return KIND_BY_MAGIC.get(self._status[0] & 0xFFFFFFFF, "file")

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
            return UNKNOWN, NOT_OF_HUGETLB
        # On overlayfs cachestat asks the overlay's own inode, which has no pages.
        if self.has_cachestat and kind != "overlay":
            code = self._cachestat(fd, start, stop)
            if code == 0:
                return Figures._make(self._found[:]), ""
            if code in (errno.EPERM, errno.EACCES):
                return UNKNOWN, NEEDS_OWNER
            if code == errno.ENOSYS:
                self.has_cachestat = False
            else:
                return UNKNOWN, f"cachestat: {os.strerror(code)}"
        return self._ask_mincore(fd, start, stop, is_quiet)

    def _cachestat(self, fd: int, start: int, stop: int) -> int:
        self._range[0], self._range[1] = start, stop - start
        if (
            _syscall(NR_CACHESTAT, fd, self._range_address, self._found_address, 0) & _LOST
            == _LOST
        ):
            return ctypes.get_errno()
        return 0

    def _ask_mincore(
        self, fd: int, start: int, stop: int, is_quiet: bool
    ) -> tuple[Figures, str]:
        if not self.has_mincore:
            return UNKNOWN, "cachestat and mincore are not to be had"
        if not self._is_honest(fd):
            return UNKNOWN, NEEDS_OWNER
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
        size, cached = self.page_size_bytes, 0
        for begin in range(start, stop, _MINCORE_PAGES * size):
            length = min(_MINCORE_PAGES * size, stop - begin)
            pages = -(-length // size)
            # Never faulted in: PROT_NONE, and private, so that no seal is in the way.
            address = libc.mmap(
                None, pages * size, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, fd, begin
            )
            if address == MAP_FAILED:
                raise_last_errno()
            vector = ctypes.create_string_buffer(pages)
            try:
                if libc.mincore(address, pages * size, vector) != 0:
                    raise_last_errno()
            finally:
                libc.munmap(address, pages * size)
            # Only the lowest bit has a meaning; the others are reserved.
            cached += vector.raw.translate(_LOWEST_BIT).count(b"\x01")
        return cached


def open_quietly(name: str | bytes, dir_fd: int | None = None, flags: int = 0) -> int:
    """
    Open for reading without a change of the access time, where this user may do that.

    :raises OSError: as open(2) gives it.
    """
    try:
        return os.open(name, OPEN_FLAGS | os.O_NOATIME | flags, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, OPEN_FLAGS | flags, dir_fd=dir_fd)


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


_LOWEST_BIT = bytes(value & 1 for value in range(256))
