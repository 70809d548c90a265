"""
The page frames that hold a file: /proc/self/pagemap of a mapping of our own.

Documentation/admin-guide/mm/pagemap.rst.  The frame of a cached page that nobody maps is
told nowhere else, so the page is mapped here for a moment, as the kernel's page-types
does.  Only pages in RAM are touched, without readahead, and in a mapping that is advised
so that the kernel does not take it for a use of the page (MADV_SEQUENTIAL).
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel import features
from memlens.kernel.mounts import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.procfs import Host, raise_errno
from memlens.kernel.syscalls import (
    MAP_FAILED,
    Cachestat,
    cachestat,
    fstatfs_type,
    libc,
    mincore,
    raise_last_errno,
)
from memlens.objects.backing import open_quietly
from memlens.objects.leases import LEASED, Leases

PIECE_PAGES = 1 << 14
_MAP_SHARED, _PROT_READ = 1, 1
_MADV_RANDOM, _MADV_SEQUENTIAL = 1, 2

# writev(2) takes so many pieces (UIO_MAXIOV), and a pipe holds more bytes than that.
_PIECES = 1024
_NEEDS = "to own the file, to be able to write it, or CAP_FOWNER"


class CachedFile:
    """
    A regular file, open to look at its page cache.

    :param path: its name; links are followed.
    :param host: lists the leases; its meter counts what is read.
    :raises MemlensError: if it cannot be opened, is no regular file, or is under a write
        lease, which opening would break.
    :raises AccessDenied: if the kernel would not say which pages are in RAM.
    :raises Unsupported: for hugetlbfs, where mapping reserves huge pages.

    """

    def __init__(self, path: str, host: Host) -> None:
        self.path = path
        self.page_size_bytes = host.page_size_bytes
        self.fd = _open(path, host)
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise MemlensError("not a regular file", path=path)
            self._magic = fstatfs_type(self.fd)
            if self._magic == HUGETLBFS_MAGIC:
                raise Unsupported("hugetlbfs: mapping it would reserve pages", path=path)
            self._raise_if_kept_secret(status)
            own = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise
        self.pages = -(-status.st_size // self.page_size_bytes)
        self._pagemap = Pagemap(own, host, "/proc/self/pagemap")
        self._pipe = os.pipe()

    def __enter__(self) -> "CachedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; twice is fine."""
        if self.fd >= 0:
            for fd in (self.fd, *self._pipe):
                os.close(fd)
            self._pagemap.close()
            self.fd = -1

    def iter_words(
        self, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """
        Yield ``(page, words)``: pagemap words of a mapping of ours that is gone again.

        :raises MemlensError: if the file cannot be mapped.
        """
        end = self.pages if stop is None else min(stop, self.pages)
        for page in range(first, end, PIECE_PAGES):
            yield page, self._read_piece(page, min(PIECE_PAGES, end - page))

    def _read_piece(self, page: int, pages: int) -> NDArray[np.uint64]:
        size = self.page_size_bytes
        address = libc.mmap(None, pages * size, _PROT_READ, _MAP_SHARED, self.fd, page * size)
        try:
            if address in (None, MAP_FAILED):
                raise_last_errno()
            try:
                is_cached = self._find_cached(page, pages)
                _advise(address, pages * size, _MADV_RANDOM)
                self._touch(address + np.flatnonzero(is_cached) * size)
                _advise(address, pages * size, _MADV_SEQUENTIAL)
                return self._pagemap.read_words(address // size, pages)
            finally:
                libc.munmap(address, pages * size)
        except OSError as error:
            raise_errno(error, "cannot look at the page cache", self.path)

    def _find_cached(self, page: int, pages: int) -> NDArray[np.bool_]:
        size = self.page_size_bytes
        is_cached = mincore(self.fd, page * size, pages * size)
        if self._magic == TMPFS_MAGIC and features.has_cachestat():
            # mincore also means copies in the swap cache; a touch would swap these in.
            self._leave_swap(is_cached, page, 0, pages)
        return is_cached

    def _leave_swap(self, is_cached: NDArray[np.bool_], page: int, low: int, high: int) -> None:
        """Unmark pages that are not in the page cache, by halves."""
        wanted = int(is_cached[low:high].sum())
        if not wanted:
            return
        if self._cachestat(page + low, high - low).nr_evicted == 0:
            return
        if high - low == 1:
            is_cached[low] = self._cachestat(page + low, 1).nr_cache == 1
            return
        middle = (low + high) // 2
        self._leave_swap(is_cached, page, low, middle)
        self._leave_swap(is_cached, page, middle, high)

    def _cachestat(self, page: int, pages: int) -> Cachestat:
        return cachestat(self.fd, page * self.page_size_bytes, pages * self.page_size_bytes)

    def _touch(self, addresses: NDArray[np.int64]) -> None:
        """
        Read a byte of each page, through the kernel.

        A page that is truncated away meanwhile gives EFAULT here, where an access of our
        own would be SIGBUS.  MADV_POPULATE_READ would count as a use of the page.
        """
        pieces = np.ones((len(addresses), 2), np.uint64)
        pieces[:, 0] = addresses.astype(np.uint64)
        place = 0
        while place < len(pieces):
            batch = pieces[place : place + _PIECES]
            wrote = libc.writev(self._pipe[1], ctypes.c_void_p(batch.ctypes.data), len(batch))
            if wrote < 0:
                if ctypes.get_errno() == errno.EFAULT:
                    place += 1
                    continue
                raise_last_errno()
            os.read(self._pipe[0], wrote)
            place += wrote

    def _raise_if_kept_secret(self, status: os.stat_result) -> None:
        """Without this right mincore says that every page is in RAM."""
        try:
            if features.has_cachestat():
                self._cachestat(0, 1)
                return
        except OSError as error:
            if error.errno == errno.EPERM:
                raise self._refusal() from error
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise_errno(error, "cannot look at the page cache", self.path)
        if os.geteuid() not in (0, status.st_uid) and not os.access(self.path, os.W_OK):
            raise self._refusal()

    def _refusal(self) -> AccessDenied:
        return AccessDenied(
            "the kernel does not say what of it is in RAM", path=self.path, needs=_NEEDS
        )


def _open(path: str, host: Host) -> int:
    try:
        if Leases(host).has_named(path, None, os.stat(path).st_ino):
            raise MemlensError(LEASED, path=path)
        # Mapping counts as reading.
        return open_quietly(path)
    except FileNotFoundError as error:
        raise MemlensError("no such file", path=path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):
            raise MemlensError("not a file name", path=path) from error
        raise_errno(error, "cannot open the file", path)


def _advise(address: int, size_bytes: int, advice: int) -> None:
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), advice) != 0:
        raise_last_errno()
