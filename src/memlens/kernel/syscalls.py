"""System calls that Python does not wrap, through the C library."""

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)

# One number on every architecture but alpha (include/uapi/asm-generic/unistd.h).
NR_CACHESTAT = 451 if platform.machine() != "alpha" else 561

MAP_PRIVATE = 0x02
MAP_NORESERVE = 0x4000
PROT_NONE = 0
MAP_FAILED = ctypes.c_void_p(-1).value


class CachestatRange(ctypes.Structure):
    """struct cachestat_range of include/uapi/linux/mman.h; both in bytes."""

    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class Cachestat(ctypes.Structure):
    """struct cachestat of include/uapi/linux/mman.h; all in pages."""

    _fields_ = [
        ("nr_cache", ctypes.c_uint64),
        ("nr_dirty", ctypes.c_uint64),
        ("nr_writeback", ctypes.c_uint64),
        ("nr_evicted", ctypes.c_uint64),
        ("nr_recently_evicted", ctypes.c_uint64),
    ]


class _Statfs(ctypes.Structure):
    """Head of struct statfs of 64-bit architectures; only the type is used."""

    _fields_ = [("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248)]


libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def raise_last_errno(path: str = "") -> None:
    """Raise OSError for the errno that the last call of ``libc`` left."""
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)


def fstatfs_type(fd: int) -> int:
    """
    Return the magic number of the file system of an open file; O_PATH is enough.

    :raises OSError: as fstatfs(2) gives it.
    """
    buffer = _Statfs()
    if libc.fstatfs(fd, ctypes.byref(buffer)) != 0:
        raise_last_errno()
    return int(buffer.f_type) & 0xFFFFFFFF
