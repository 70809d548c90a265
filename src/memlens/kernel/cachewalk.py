"""
The page-cache walk: for each page of an object, folio or swap slot.

"In kernel space, the swap location can still be retrieved from the page cache"
(Documentation/admin-guide/mm/pagemap.rst, "Exceptions for Shared Memory").  A BPF
program (bpf/cachewalk.bpf.c) does that.  It touches no page and takes no lock of
the object; what its answer is worth while pages move is in docs/how-it-works/cachewalk.md.
"""

import copy
import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from memlens.errors import MemlensError, Unsupported
from memlens.kernel import bpf
from memlens.kernel.cacherecords import (
    RECORD,
    CacheObject,
    CacheRecords,
    CacheWalkInvalid,
    RawRecords,
    Records,
    clip_records,
    decode_records,
    in_base_pages,
)
from memlens.kernel.mounts import HUGETLBFS_MAGIC, OVERLAYFS_MAGIC
from memlens.kernel.swapareas import NumberedArea

_ALL_PAGES = 1 << 52
_MAX_CALLS_WITHOUT_PROGRESS = 8

# These mirror bpf/cachewalk.bpf.c.
_MAX_RECORDS = 1 << 16


class _Control(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint64),
        ("stop", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("fd", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("error", ctypes.c_int64),
        ("next", ctypes.c_uint64),
        ("records", ctypes.c_uint64),
        ("magic", ctypes.c_uint64),
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("size_bytes", ctypes.c_uint64),
        ("nrpages", ctypes.c_uint64),
        ("alloced", ctypes.c_uint64),
        ("swapped", ctypes.c_uint64),
        ("vma_start", ctypes.c_uint64),
        ("vma_stop", ctypes.c_uint64),
        ("vma_pgoff", ctypes.c_uint64),
    ]


class CacheWalker:
    """
    The loaded program.  One walk runs at a time; threads wait for each other.

    >>> import os
    >>> fd = os.memfd_create("example")
    >>> os.pwrite(fd, b"memlens", 4096)
    7
    >>> with CacheWalker() as walker:  # doctest: +SKIP
    ...     records = walker.walk_fd(fd)
    >>> records.index, records.is_uptodate  # doctest: +SKIP
    (array([1]), array([ True]))
    >>> os.close(fd)

    :raises AccessDenied: if this process may not load BPF programs.
    :raises Unsupported: if this kernel cannot run this one.
    """

    def __init__(self) -> None:
        bpf.raise_if_unusable()
        self._lock = threading.Lock()
        self._skeleton = bpf.Skeleton("cachewalk")
        try:
            self._map()
        except BaseException:
            self._skeleton.close()
            raise

    def _map(self) -> None:
        self._control_mmap = self._skeleton.mmap_array("control", mmap.PAGESIZE, True)
        self._records_mmap = self._skeleton.mmap_array(
            "records", _MAX_RECORDS * RECORD.itemsize
        )
        self._control: _Control | None = _Control.from_buffer(self._control_mmap)
        self._records = np.frombuffer(self._records_mmap, RECORD)

    def close(self) -> None:
        """Unmap and close everything; a second time does nothing."""
        with self._lock:
            if self._control is None:
                return
            self._control = None
            self._records = np.empty(0, RECORD)
            self._control_mmap.close()
            self._records_mmap.close()
            self._skeleton.close()

    def abandon(self) -> None:
        """Close in a forked child, where a thread that is gone may hold the lock."""
        self._lock = threading.Lock()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def walk_fd(
        self,
        fd: int,
        start_page: int = 0,
        stop_page: int = _ALL_PAGES,
        areas: Sequence[NumberedArea] | None = None,
    ) -> CacheRecords:
        """
        Walk the pages ``[start_page, stop_page)`` of an open file.

        :param fd: a file descriptor of this process that is not O_PATH.
        :param areas: the swap areas in use; read from /proc/swaps if None.
        :raises CacheWalkInvalid: if the answer is void.
        :raises Unsupported: for a file of overlayfs, whose pages are in the page cache
            of the file below, which ``walk_vma`` sees.
        :raises OSError: EBADF if ``fd`` is not an open file.
        """

        def call(control: _Control) -> None:
            control.fd = fd
            control.error = -errno.EBADF
            self._skeleton.run("by_fd")
            if control.error:
                raise OSError(-control.error, os.strerror(-control.error))

        with self._lock:
            described = self._describe(call)
            if described.magic == OVERLAYFS_MAGIC:
                raise Unsupported("a file of overlayfs has its pages in the file below")
            raw = self._walk(call, described, start_page, stop_page)
            return decode_records(raw, described, areas)

    def walk_vma(
        self,
        pid: int,
        address: int,
        start_page: int | None = None,
        stop_page: int | None = None,
        areas: Sequence[NumberedArea] | None = None,
    ) -> CacheRecords:
        """
        Walk the object that is mapped at ``address`` of a task; no file is opened.

        :param pid: process or thread ID, in the PID namespace of this process.
        :param start_page: first page of the *object*; that of the mapping if None.
        :param stop_page: page of the object to stop before; the mapping's end if None.
        :raises CacheWalkInvalid: if the answer is void, or the mapping changed meanwhile.
        :raises MemlensError: if no file is mapped there, or the task is gone.
        """

        def call(control: _Control) -> None:
            control.address = address
            control.error = -errno.EFAULT
            self._skeleton.iterate_task("by_vma", pid)
            if control.error == -errno.EBADF:
                raise MemlensError(f"nothing but anonymous memory at {address:#x}")
            if control.error:
                raise MemlensError(f"task {pid} has no mapping at {address:#x}")

        with self._lock:
            described = self._describe(call)
            first, last = _vma_pages(described)
            raw = self._walk(
                call,
                described,
                first if start_page is None else start_page,
                last if stop_page is None else stop_page,
            )
            return decode_records(raw, described, areas)

    def _call(self, call: Callable[[_Control], None], start: int, stop: int) -> _Control:
        control = self._control
        if control is None:
            raise ValueError("the walker is closed")
        ctypes.memset(ctypes.addressof(control), 0, ctypes.sizeof(control))
        control.start, control.stop = start, stop
        try:
            call(control)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            raise Unsupported(f"the page-cache walk failed: {error}") from error
        return control

    def _describe(self, call: Callable[[_Control], None]) -> CacheObject:
        return _object_of(self._call(call, 0, 0))

    def _walk(
        self,
        call: Callable[[_Control], None],
        described: CacheObject,
        start: int,
        stop: int,
    ) -> RawRecords:
        stop = min(stop, _ALL_PAGES)
        if described.magic != HUGETLBFS_MAGIC:
            return RawRecords(self._collect(call, described, start, stop), start, stop)
        # Its unit shows only in the records; a page is large, so all of them are few.
        records = in_base_pages(self._collect(call, described, 0, _ALL_PAGES))
        return RawRecords(clip_records(records, start, stop), start, stop)

    def _collect(
        self,
        call: Callable[[_Control], None],
        described: CacheObject,
        start: int,
        stop: int,
    ) -> Records:
        """
        Call until the walk has come to ``stop``; a call ends early to stay short.

        The records of a single call are those in the map, valid until the next call.
        """
        parts: list[Records] = []
        stuck = 0
        while start < stop:
            control = self._call(call, start, stop)
            if not _is_same_object(_object_of(control), described):
                raise CacheWalkInvalid("another object came to be there during the walk")
            if control.records > len(self._records):
                raise CacheWalkInvalid(f"the walk claims {control.records} records")
            found = self._records[: control.records]
            if not parts and control.next >= stop:
                return found
            parts.append(found.copy())
            stuck = stuck + 1 if control.next <= start else 0
            if stuck > _MAX_CALLS_WITHOUT_PROGRESS:
                raise CacheWalkInvalid(f"page {start} changes faster than it can be read")
            start = max(start, control.next)
        return np.concatenate(parts) if parts else np.empty(0, RECORD)


def _object_of(control: _Control) -> CacheObject:
    vma = None
    if control.vma_stop:
        offset = control.vma_pgoff * mmap.PAGESIZE
        vma = control.vma_start, control.vma_stop, offset
    return CacheObject(
        magic=control.magic,
        device=os.makedev(control.device >> 20, control.device & 0xFFFFF),
        inode=control.inode,
        size_bytes=control.size_bytes,
        nrpages=control.nrpages,
        alloced=control.alloced,
        swapped=control.swapped,
        vma=vma,
    )


def _is_same_object(one: CacheObject, other: CacheObject) -> bool:
    return (one.magic, one.device, one.inode, one.vma) == (
        other.magic,
        other.device,
        other.inode,
        other.vma,
    )


def _vma_pages(described: CacheObject) -> tuple[int, int]:
    start, stop, offset = described.vma or (0, 0, 0)
    first = offset // mmap.PAGESIZE
    return first, first + (stop - start) // mmap.PAGESIZE


_shared_lock = threading.Lock()
_shared: CacheWalker | MemlensError | None = None


def walker() -> CacheWalker:
    """
    Return the walker that this process shares; loaded when first asked for.

    Why it cannot be had is found once too: asking again costs microseconds.

    :raises AccessDenied: if this process may not load BPF programs.
    :raises Unsupported: if this kernel cannot run this one.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            try:
                _shared = CacheWalker()
            except MemlensError as error:
                _shared = error
        if isinstance(_shared, MemlensError):
            raise copy.copy(_shared)
        return _shared


def close_walker() -> None:
    """Close the shared walker, if there is one; the next ``walker()`` loads it again."""
    global _shared
    with _shared_lock:
        if isinstance(_shared, CacheWalker):
            _shared.close()
        _shared = None


def _forget_after_fork() -> None:
    """Let a forked child load its own: two processes cannot share one output."""
    global _shared, _shared_lock
    _shared_lock = threading.Lock()
    if isinstance(_shared, CacheWalker):
        _shared.abandon()
    _shared = None


os.register_at_fork(after_in_child=_forget_after_fork)
