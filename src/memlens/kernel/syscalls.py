"""System calls that Python does not wrap, through the C library."""

import ctypes
import errno
import os
import platform
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel.procfs import Host, page_size_bytes, read_file

libc = ctypes.CDLL(None, use_errno=True)

# One number on every architecture but alpha (include/uapi/asm-generic/unistd.h).
NR_CACHESTAT = 451 if platform.machine() != "alpha" else 561
MAP_PRIVATE = 0x02
MAP_NORESERVE = 0x4000
PROT_NONE = 0
MAP_FAILED = ctypes.c_void_p(-1).value


class Cachestat(NamedTuple):
    """struct cachestat of include/uapi/linux/mman.h; all in pages."""

    nr_cache: int
    nr_dirty: int
    nr_writeback: int
    nr_evicted: int
    nr_recently_evicted: int


# More than struct statfs has on any 64-bit architecture; its type comes first.
_Statfs = ctypes.c_ulong * 32

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
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


# A handle of its own, so that its argument types bind no other call.
_cachestat = ctypes.CDLL(None, use_errno=True).syscall
_cachestat.restype = ctypes.c_long
_cachestat.argtypes = [
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint,
]
_CachestatRange, _CachestatFigures = ctypes.c_uint64 * 2, ctypes.c_uint64 * 5


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
    if libc.fstatfs(fd, buffer) != 0:
        raise_last_errno()
    return int(buffer[0]) & 0xFFFFFFFF


def cachestat(fd: int, start: int, size_bytes: int) -> Cachestat:
    """
    Return what the page cache holds of a range of an open file.

    :param start: first byte.
    :param size_bytes: how many; 0 for all there are from the first on, also beyond the end.
    :raises OSError: EPERM if the reader may not know, ENOSYS before commit cf264e1329fb
        ("cachestat: implement cachestat syscall") (in v6.5), EOPNOTSUPP on hugetlbfs.
    """
    found = _CachestatFigures()
    if _cachestat(NR_CACHESTAT, fd, _CachestatRange(start, size_bytes), found, 0) != 0:
        raise_last_errno()
    return Cachestat._make(found)


def mincore(fd: int, start: int, size_bytes: int) -> NDArray[np.bool_]:
    """
    Return whether each page of a range of an open file is in RAM.

    :param start: first byte, at a page.
    :return: ``(pages,)`` bool: in the page cache or the swap cache.
    :raises OSError: as mmap(2) and mincore(2) give it.
    """
    # A private PROT_NONE mapping of a read-only descriptor: it hinders no seal, reserves
    # nothing and can never fault a page in.
    address = libc.mmap(None, size_bytes, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, fd, start)
    if address == MAP_FAILED:
        raise_last_errno()
    vector = np.empty(-(-size_bytes // page_size_bytes()), np.uint8)
    try:
        if libc.mincore(address, size_bytes, vector.ctypes.data) != 0:
            raise_last_errno()
    finally:
        libc.munmap(address, size_bytes)
    # Only the lowest bit has a meaning; the others are reserved.
    return (vector & 1).astype(bool)


class _Statx(ctypes.Structure):
    """Head of struct statx of include/uapi/linux/stat.h."""

    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("spare", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("times", ctypes.c_uint64 * 8),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 14),
    ]


_STATX_BASIC = 0x7FF
_STATX_BTIME = 0x800
_STATX_MNT_ID = 0x1000

# No server and no daemon is asked: a mount that hangs gives what is known already.
_AT_STATX_DONT_SYNC = 0x4000
AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_EMPTY_PATH = 0x1000


class FileStatus(NamedTuple):
    """
    What statx(2) says of a file, without asking anyone outside the kernel.

    ``device`` as ``st_dev``; ``born_s`` and ``changed_s`` seconds since 1970, ``born_s`` 0.0
    if not known; ``mount_id`` of the mount it was reached through, as in mountinfo, 0 before
    commit fa2fcf4f1df1 ("statx: add mount ID") (in v5.8).
    """

    mode: int
    device: int
    inode: int
    links: int
    uid: int
    size_bytes: int
    blocks: int
    born_s: float
    changed_s: float
    mount_id: int


class _FileHandle(ctypes.Structure):
    """struct file_handle of include/linux/fs.h, with room for any."""

    _fields_ = [
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int32),
        ("handle", ctypes.c_ubyte * 128),
    ]


_AT_SYMLINK_FOLLOW = 0x400


def file_handle(path: str) -> bytes:
    """
    Return what tells a file from others on its file system, also where inodes are equal.

    :raises OSError: as name_to_handle_at(2) gives it.
    """
    found, mount = _FileHandle(handle_bytes=128), ctypes.c_int()
    handle = ctypes.byref(found), ctypes.byref(mount)
    if libc.name_to_handle_at(-1, os.fsencode(path), *handle, _AT_SYMLINK_FOLLOW) != 0:
        raise_last_errno(path)
    return bytes(found.handle[: found.handle_bytes])


def statx_cached(path: str | bytes, dir_fd: int, flags: int = 0) -> FileStatus:
    """
    Return the status of a file; links are followed, automounts are not made.

    :param flags: ``AT_SYMLINK_NOFOLLOW`` for that of a link itself.
    :raises OSError: as statx(2) gives it.
    """
    name = os.fsencode(path)
    buffer = _Statx()
    mask = _STATX_BASIC | _STATX_BTIME | _STATX_MNT_ID
    flags |= _AT_STATX_DONT_SYNC | _AT_NO_AUTOMOUNT
    if libc.statx(dir_fd, name, flags, mask, ctypes.byref(buffer)) != 0:
        raise_last_errno(os.fsdecode(name))
    # Pairs of seconds and nanoseconds: stx_atime, stx_btime, stx_ctime, stx_mtime.
    times = buffer.times
    return FileStatus(
        mode=buffer.mode,
        device=os.makedev(buffer.dev_major, buffer.dev_minor),
        inode=buffer.ino,
        links=buffer.nlink,
        uid=buffer.uid,
        size_bytes=buffer.size,
        blocks=buffer.blocks,
        born_s=float(times[2]) if buffer.mask & _STATX_BTIME else 0.0,
        changed_s=times[4] + (times[5] & 0xFFFFFFFF) / 1e9,
        mount_id=buffer.rest[0] if buffer.mask & _STATX_MNT_ID else 0,
    )


def status_of(fd: int) -> FileStatus:
    """
    Return the status of an open file; O_PATH is enough.

    :raises OSError: as statx(2) gives it.
    """
    return statx_cached(b"", fd, _AT_EMPTY_PATH)


# Whether two tasks run in one memory: kcmp(2).
#
# Processes made by clone(2) with CLONE_VM and without CLONE_THREAD do; nothing in /proc tells
# them from forked ones whose memory is alike.


_KCMP_VM = 1

# The system call tables of the kernel; most of the newer ones share the generic one.
_NUMBERS = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "ppc64le": 354,
    "ppc64": 354,
    "s390x": 343,
}
_ORDERS = {0: 0, 1: -1, 2: 1}


def compare_memory(one: int, other: int) -> int:
    """
    Return 0 if two tasks run in one memory, else -1 or 1: the kernel has an order of them.

    :param one: PID or TID, in the namespace of this process.
    :raises ProcessGone: if one of them is gone.
    :raises AccessDenied: if this reader may not ask.
    :raises Unsupported: if this kernel has no kcmp, or nobody knows its number here.

    Two that have ended and not been waited for are alike: they have no memory.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise Unsupported("kcmp has no known number on this machine")
    order = libc.syscall(number, one, other, _KCMP_VM, 0, 0)
    if order < 0:
        _raise_last(one)
    if order not in _ORDERS:
        raise Unsupported("kcmp gives no order of memories")
    return _ORDERS[order]


def _raise_last(pid: int) -> None:
    try:
        raise_last_errno()
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise ProcessGone(f"process {pid} or another has ended") from error
        if error.errno in (errno.EPERM, errno.EACCES):
            message = "kcmp is not permitted"
            raise AccessDenied(message, needs="CAP_SYS_PTRACE") from error
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            message = "this kernel has no kcmp (CONFIG_KCMP)"
            raise Unsupported(message) from error
        raise MemlensError(f"kcmp: {error.strerror}") from error


def has_memory(tid: int, host: Host) -> bool:
    """Return whether a task still has memory, as one that has ended has not."""
    try:
        return int(read_file(f"{host.root}/{tid}/statm").split()[0]) > 0
    except (OSError, ValueError, IndexError):
        return False


def is_own_namespace(host: Host) -> bool:
    """Return whether the PIDs of a /proc are those that system calls of this process take."""
    try:
        if int(os.readlink(f"{host.root}/self")) != os.getpid():
            return False
        lines = read_file(f"{host.root}/self/status").split(b"\n")
    except (OSError, ValueError):
        return False
    # One number for each namespace from that of the mount inwards.
    numbers = [line.split()[1:] for line in lines if line.startswith(b"NSpid:")]
    return all(len(row) == 1 for row in numbers)
