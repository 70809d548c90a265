"""
Mappings made on purpose: mmap(2), madvise(2), userfaultfd(2), SysV shared memory.

Only for memory of our own, in the process that the demo starts.  Each specimen lies
in a frame of inaccessible pages, so that no two become one mapping.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

import numpy as np

from memlens.kernel.syscalls import MAP_FAILED, libc, raise_last_errno

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE_PAGE = 2 << 20

PROT_NONE, PROT_RW = 0, 3
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MAP_NORESERVE, MAP_HUGETLB = 0x4000, 0x40000

MADV_WILLNEED, MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK = 3, 4, 9, 10
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_PAGEOUT, MADV_GUARD_INSTALL = 14, 15, 21, 102

_NR_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282}.get(os.uname().machine)
_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFDIO_POISON = 0xC020AA08
_REGISTER_MISSING, _REGISTER_WP = 1, 2
_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
_FEATURE_WP_UNPOPULATED = 1 << 13
_FEATURE_POISON = 1 << 14
_IPC_RMID = 0

libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


@dataclass(frozen=True, slots=True)
class Region:
    """
    Pages of our own.

    :param address: of the first.
    :param pages: how many.
    """

    address: int
    pages: int

    def part(self, first: int, pages: int) -> "Region":
        """Return some of the pages."""
        return Region(self.address + first * PAGE, pages)

    def write(self) -> "Region":
        """Write to every page; what is written is not the same in any two."""
        for page in range(self.pages):
            text = os.urandom(64)
            ctypes.memmove(self.address + page * PAGE, text, len(text))
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
        if libc.madvise(self.address, self.pages * PAGE, advice) != 0:
            raise_last_errno()
        return self

    def resident(self) -> int:
        """Return how many pages mincore(2) calls resident."""
        vector = np.empty(self.pages, np.uint8)
        if libc.mincore(self.address, self.pages * PAGE, vector.ctypes.data) != 0:
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
    A userfaultfd; it must stay open as long as what it made is wanted.

    :raises OSError: if this kernel or this user has none.
    """

    def __init__(self) -> None:
        if _NR_USERFAULTFD is None:
            raise OSError("the number of userfaultfd(2) is not known on this machine")
        self.fd = libc.syscall(_NR_USERFAULTFD, os.O_CLOEXEC | _UFFD_USER_MODE_ONLY)
        if self.fd < 0:
            raise_last_errno()
        wanted = _FEATURE_WP_HUGETLBFS_SHMEM | _FEATURE_WP_UNPOPULATED | _FEATURE_POISON
        self._call(_UFFDIO_API, struct.pack("QQQ", _UFFD_API, wanted, 0))

    def protect(self, region: Region) -> None:
        """Write-protect pages, of which those that are not there get a marker."""
        self._register(region, _REGISTER_WP)
        start, size = region.address, region.pages * PAGE
        self._call(_UFFDIO_WRITEPROTECT, struct.pack("QQQ", start, size, 1))

    def poison(self, region: Region) -> None:
        """Make accesses to pages that are not there fail with SIGBUS."""
        self._register(region, _REGISTER_MISSING)
        start, size = region.address, region.pages * PAGE
        self._call(_UFFDIO_POISON, struct.pack("QQQq", start, size, 0, 0))

    def _register(self, region: Region, mode: int) -> None:
        start, size = region.address, region.pages * PAGE
        self._call(_UFFDIO_REGISTER, struct.pack("QQQQ", start, size, mode, 0))

    def _call(self, request: int, argument: bytes) -> None:
        buffer = ctypes.create_string_buffer(argument, len(argument))
        if libc.ioctl(self.fd, request, buffer) != 0:
            raise_last_errno()


def _map(address: int, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    found = libc.mmap(address or None, size, prot, flags, fd, offset)
    if found == MAP_FAILED:
        raise_last_errno()
    return int(found)
