"""
/proc/PID/pagemap: words of the page table, and the PAGEMAP_SCAN ioctl.

Documentation/admin-guide/mm/pagemap.rst.  Reads are bounded: a piece of words is
64 KiB, since larger ones fall out of the cache, and one PAGEMAP_SCAN call ends
after ``SCAN_PAGES`` found or ``SCAN_SPAN`` pages looked at, since the mmap lock
of the target is held meanwhile.
"""

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from memlens.errors import Unsupported
from memlens.kernel.procfs import Host, raise_errno

PIECE_PAGES = 8192
WORD_BYTES = 8

# One found page takes about 2 ns and, alone in its page-table page, 1 us: this
# bounds a call to some 2 ms in the worst case.
SCAN_PAGES = 1 << 14
SCAN_SPAN = 1 << 20

# The kernel drops the mmap lock each time its own buffer of 512 regions is full.
SCAN_REGIONS = 1 << 9
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6

# A reader that takes the mmap lock again at once steals it from a waiting writer until the
# writer's patience ends (RWSEM_WAIT_TIMEOUT, 4 ms), so each so many seconds of reading are
# followed by a moment outside the lock, unless there was one in between.
_READ_S = 0.0005
_PAUSE_S = 0.000001
_GAP_S = 0.00006
_PRESENT = np.uint64(1 << 63)
_PAGEMAP_SCAN = (3 << 30) | (96 << 16) | (ord("f") << 8) | 16


class _ScanArgument(ctypes.Structure):
    """struct pm_scan_arg of include/uapi/linux/fs.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    ]


class Pagemap:
    """
    The page table of one process.

    :param fd: an open /proc/PID/pagemap, closed with this object.
    :param host: says how large a page is; its meter counts what is read.
    :param path: for errors.
    """

    def __init__(self, fd: int, host: Host, path: str) -> None:
        self.fd = fd
        self.page_size_bytes = host.page_size_bytes
        self.meter = host.meter
        self.path = path
        self._unpaused_s = 0.0
        self._last_read_s = 0.0
        self._regions = np.empty((SCAN_REGIONS, 3), np.uint64)
        self._argument = _ScanArgument(
            size=ctypes.sizeof(_ScanArgument),
            vec=self._regions.ctypes.data,
            vec_len=SCAN_REGIONS,
        )

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_words(self, first_page: int, pages: int) -> NDArray[np.uint64]:
        """
        Return the words of consecutive pages of address space.

        :param first_page: address divided by the page size.
        :param pages: how many; read in pieces of 64 KiB.
        :return: ``(m,)`` uint64, ``m <= pages``: shorter where the address space of
            the process ends, and empty when the process is gone.
        :raises MemlensError: as ``raise_errno`` tells.
        """
        words = np.empty(pages, np.uint64)
        done = 0
        while done < pages:
            piece = words[done : done + PIECE_PAGES]
            got = self._read_piece(piece, first_page + done)
            done += got
            if got < len(piece):
                break
        return words[:done]

    def has_pages(self, start: int, stop: int) -> bool:
        """
        Return whether every page of a range of addresses is mapped; not if it is empty.

        :param start: first address, in bytes.
        :param stop: address after the last.
        """
        if start >= stop:
            return False
        size = self.page_size_bytes
        first, pages = start // size, -(-stop // size) - start // size
        words = self.read_words(first, pages)
        return len(words) == pages and bool((words & _PRESENT).all())

    def iter_words(
        self, first_page: int, pages: int
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """
        Yield ``(page, words)`` piece by piece; the array is used again for the next.

        Ends early where the address space ends or the process is gone.
        """
        buffer = np.empty(min(pages, PIECE_PAGES), np.uint64)
        for page in range(first_page, first_page + pages, PIECE_PAGES):
            piece = buffer[: first_page + pages - page]
            got = self._read_piece(piece, page)
            if got:
                yield page, piece[:got]
            if got < len(piece):
                return

    def scan(
        self, first_page: int, pages: int, any_of: int, wanted: int
    ) -> Iterator[NDArray[np.uint64]]:
        """
        Yield the regions of one category set, in order, from PAGEMAP_SCAN.

        :param any_of: a page is reported if it is in one of these ``PAGE_IS_`` categories.
        :param wanted: categories to report.
        :return: arrays ``(n, 3)`` uint64 of start address, stop address, categories.
        :raises Unsupported: if the kernel has no PAGEMAP_SCAN.
        :raises ProcessGone: if the process is gone.

        A region ends at the end of a piece, not only where categories change.
        """
        page, stop = first_page, first_page + pages
        while page < stop:
            regions, page = self.scan_once(page, stop, any_of, wanted)
            if len(regions):
                yield regions

    def scan_once(
        self, first_page: int, stop_page: int, any_of: int, wanted: int
    ) -> tuple[NDArray[np.uint64], int]:
        """
        Return the regions that one call of PAGEMAP_SCAN gives, and the page to go on from.

        Parameters and errors as of ``scan``.
        """
        size = self.page_size_bytes
        argument = self._argument
        argument.category_anyof_mask = any_of
        argument.return_mask = wanted
        argument.max_pages = SCAN_PAGES
        argument.start = first_page * size
        argument.end = min(first_page + SCAN_SPAN, stop_page) * size
        before = self._begin()
        try:
            # The argument is below 1 KiB, so that ioctl runs without the GIL.
            found = fcntl.ioctl(self.fd, _PAGEMAP_SCAN, argument)
        except OSError as error:
            self._raise(error)
        self._account(found * 24, before)
        regions = self._regions[:found].copy()
        return regions, self._scanned_to(regions, argument.end) // size

    def _scanned_to(self, regions: NDArray[np.uint64], stop: int) -> int:
        """
        Return the address up to which a call has looked.

        ``walk_end`` is not asked: after a call that filled the kernel's own buffer and
        went on, v6.18 leaves the older position in it, and regions come twice.
        """
        found_bytes = int(regions[:, 1].sum()) - int(regions[:, 0].sum())
        is_full = (
            len(regions) == SCAN_REGIONS or found_bytes >= SCAN_PAGES * self.page_size_bytes
        )
        return int(regions[-1, 1]) if is_full else stop

    def _read_piece(self, piece: NDArray[np.uint64], page: int) -> int:
        before = self._begin()
        try:
            got = os.preadv(self.fd, [piece.data], page * WORD_BYTES)
        except OSError as error:
            self._raise(error)
        except OverflowError:
            return 0
        self._account(got, before)
        return got // WORD_BYTES

    def _begin(self) -> float:
        """Return the time, after a pause if it is due and there was none in between."""
        now = time.perf_counter()
        if now - self._last_read_s >= _GAP_S:
            self._unpaused_s = 0.0
        elif self._unpaused_s >= _READ_S:
            self._unpaused_s = 0.0
            time.sleep(_PAUSE_S)
            now = time.perf_counter()
        return now

    def _account(self, read_bytes: int, before: float) -> None:
        """Count a read that began at ``before``."""
        now = time.perf_counter()
        self.meter.add(read_bytes, now - before)
        self._unpaused_s += now - before
        self._last_read_s = now

    def _raise(self, error: OSError) -> NoReturn:
        if error.errno == errno.EINVAL:
            raise Unsupported("this PAGEMAP_SCAN lacks a category", path=self.path) from error
        raise_errno(error, "cannot read the page table", self.path)
