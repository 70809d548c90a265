"""
userfaultfd(2): write-protecting pages of our own, and poisoning them.

Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.
"""

import errno
import fcntl
import os
import platform
import struct

from memlens.kernel.syscalls import libc, raise_last_errno

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
