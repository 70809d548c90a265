"""
Mappings made on purpose: mmap(2), madvise(2), userfaultfd(2), SysV shared memory.

Only for memory of our own: in the process that the demo starts, and of probes.  Each lies
in a frame of inaccessible pages, so that no two become one mapping.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from memlens.kernel.syscalls import (
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    libc,
    raise_last_errno,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE_PAGE = 2 << 20
PROT_RW = 3
MAP_SHARED, MAP_FIXED, MAP_ANONYMOUS, MAP_HUGETLB = 0x01, 0x10, 0x20, 0x40000
MADV_WILLNEED, MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK = 3, 4, 9, 10
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_PAGEOUT, MADV_GUARD_INSTALL = 14, 15, 21, 102
_IPC_RMID = 0
_WRITTEN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Region:
    """
    Pages of our own.

    :param address: of the first.
    :param pages: how many.
    """

    address: int
    pages: int

    @property
    def size_bytes(self) -> int:
        """Return the size of all of it."""
        return self.pages * PAGE

    def part(self, first: int, pages: int) -> "Region":
        """Return some of the pages."""
        return Region(self.address + first * PAGE, pages)

    @property
    def first_page(self) -> int:
        """Return the number of the first page."""
        return self.address // PAGE

    def head(self) -> bytes:
        """Return the beginning of the first page, where ``write`` writes."""
        return ctypes.string_at(self.address, _WRITTEN_BYTES)

    def write(self) -> "Region":
        """Write to every page; what is written is not the same in any two."""
        for page in range(self.pages):
            text = os.urandom(_WRITTEN_BYTES)
            ctypes.memmove(self.address + page * PAGE, text, _WRITTEN_BYTES)
        return self

    def read(self) -> "Region":
        """Read from every page."""
        for page in range(self.pages):
            ctypes.string_at(self.address + page * PAGE, 1)
        return self

    def advise(self, advice: int) -> "Region":
        """
        Call madvise(2).

        :raises OSError: as it gives it.
        """
        if libc.madvise(self.address, self.size_bytes, advice) != 0:
            raise_last_errno()
        return self

    def in_base_pages(self) -> "Region":
        """Keep huge pages out of it, if there are any."""
        try:
            return self.advise(MADV_NOHUGEPAGE)
        except OSError:
            return self  # Built without huge pages.

    def resident(self) -> int:
        """Return how many pages mincore(2) calls resident."""
        vector = np.empty(self.pages, np.uint8)
        if libc.mincore(self.address, self.size_bytes, vector.ctypes.data) != 0:
            raise_last_errno()
        return int((vector & 1).sum())


def map_region(
    pages: int,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
    fd: int = -1,
    *,
    align: int = PAGE,
    offset: int = 0,
) -> Region:
    """
    Map pages inside a frame of their own.

    :param flags: of mmap(2).
    :param fd: the object, -1 for anonymous memory.
    :param align: of the first address, in bytes.
    :param offset: in the object, in bytes.
    :raises OSError: as mmap(2) gives it.
    """
    address = reserve(pages, align)
    return Region(_map(address, pages * PAGE, PROT_RW, flags | MAP_FIXED, fd, offset), pages)


def reserve(pages: int, align: int = PAGE) -> int:
    """Return an aligned address with room for so many pages and a frame around them."""
    size = pages * PAGE + 2 * align
    base = _map(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return (base + align) // align * align


@contextmanager
def borrow(pages: int, flags: int) -> Iterator[Region]:
    """
    Hold untouched anonymous memory, in base pages, that is gone afterwards.

    :param flags: of mmap(2).
    """
    region = map_region(pages, flags | MAP_ANONYMOUS)
    try:
        yield region.in_base_pages()
    finally:
        # With its frame.
        libc.munmap(region.address - PAGE, region.size_bytes + 2 * PAGE)


def attach_sysv(pages: int) -> Region:
    """Return a segment of SysV shared memory, which goes away with the last process."""
    key = libc.shmget(0, pages * PAGE, 0o600)
    if key < 0:
        raise_last_errno()
    address = libc.shmat(key, reserve(pages), 0x4000)  # SHM_REMAP: over the reservation
    failed = address == MAP_FAILED
    libc.shmctl(key, _IPC_RMID, None)
    if failed:
        raise_last_errno()
    return Region(address, pages)


class UserFault:
    """
    A userfaultfd; what it made is there as long as it is open.

    :raises OSError: EPERM if this user may have none, ENOSYS if this kernel has none, or if
        its number on this architecture is not known here.
    """

    def __init__(self) -> None:
        self.fd = -1
        number = _NUMBERS.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, f"not known how to ask on {platform.machine()}")
        # User mode only (v5.11): what anybody may ask for; we make no fault in the kernel.
        self.fd = int(libc.syscall(number, os.O_CLOEXEC | _USER_MODE_ONLY))
        if self.fd < 0:
            raise_last_errno()

    def __enter__(self) -> "UserFault":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def enable(self, features: int) -> None:
        """
        Ask for features, before anything else.

        :raises OSError: if the kernel lacks one of them.
        """
        self._call(_UFFDIO_API, _API, features, 0)

    def protect(self, address: int, size_bytes: int) -> None:
        """
        Write-protect pages, of which those that are not there get a marker.

        :raises OSError: as ioctl_userfaultfd(2) gives it.
        """
        self._call(_UFFDIO_REGISTER, address, size_bytes, _REGISTER_MODE_WP, 0)
        self._call(_UFFDIO_WRITEPROTECT, address, size_bytes, _WRITEPROTECT_MODE_WP)

    def poison(self, address: int, size_bytes: int) -> None:
        """
        Make accesses to pages that are not there fail with SIGBUS.

        :raises OSError: as ioctl_userfaultfd(2) gives it.
        """
        self._call(_UFFDIO_REGISTER, address, size_bytes, _REGISTER_MODE_MISSING, 0)
        self._call(_UFFDIO_POISON, address, size_bytes, 0, 0)

    def _call(self, request: int, *numbers: int) -> None:
        fcntl.ioctl(self.fd, request, struct.pack(f"{len(numbers)}Q", *numbers))


class HeldFault(UserFault):
    """A userfaultfd that is closed with this object."""

    def __init__(self) -> None:
        super().__init__()
        self.enable(FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_POISON)

    def __del__(self) -> None:
        self.close()


def _map(address: int, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    found = libc.mmap(address or None, size, prot, flags, fd, offset)
    if found == MAP_FAILED:
        raise_last_errno()
    return int(found)


# userfaultfd(2): write-protecting pages of our own, and poisoning them.
#
# Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.


FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
FEATURE_WP_UNPOPULATED = 1 << 13
FEATURE_POISON = 1 << 14
FEATURE_WP_ASYNC = 1 << 15

# Numbers in the order of arch/*/kernel/syscalls/*.tbl; the rest have the generic one.
_NUMBERS = {"x86_64": 323, "s390x": 355, "ppc64": 364, "ppc64le": 364}
_NUMBERS |= dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 282)
_USER_MODE_ONLY = 1
_API = 0xAA
_UFFDIO_API = (3 << 30) | (24 << 16) | (0xAA << 8) | 0x3F
_UFFDIO_REGISTER = (3 << 30) | (32 << 16) | (0xAA << 8) | 0x00
_UFFDIO_WRITEPROTECT = (3 << 30) | (24 << 16) | (0xAA << 8) | 0x06
_UFFDIO_POISON = (3 << 30) | (32 << 16) | (0xAA << 8) | 0x08
_REGISTER_MODE_MISSING, _REGISTER_MODE_WP = 1 << 0, 1 << 1
_WRITEPROTECT_MODE_WP = 1 << 0
