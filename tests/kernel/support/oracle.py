"""
What the kernel says about pages, read with nothing of memlens in between.

Addresses, offsets and lengths are in bytes; every array has one element per page.
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = os.sysconf("SC_PAGE_SIZE")

PRESENT, SWAP, FILE = 1 << 63, 1 << 62, 1 << 61
GUARD, UFFD_WP, EXCLUSIVE = 1 << 58, 1 << 57, 1 << 56
MARKER_TYPE = 31
FIRST_SPECIAL_TYPE = 23

IS_FILE, IS_PRESENT, IS_SWAPPED = 4, 8, 16
IS_PFNZERO, IS_HUGE, IS_GUARD = 32, 64, 256
PAGEMAP_SCAN = 0xC0606610
SYS_CACHESTAT = 451
SYS_MEMFD_SECRET = 447

KPF_REFERENCED, KPF_ACTIVE, KPF_SWAPCACHE, KPF_THP, KPF_KSM = 2, 6, 13, 22, 21

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def read_pagemap(pid: int, start: int, pages: int) -> NDArray[np.uint64]:
    """Return the pagemap words; fewer than asked for at the end of user space."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        return np.frombuffer(os.pread(file.fileno(), pages * 8, start // PAGE * 8), np.uint64)


def read_scan(pid: int, start: int, pages: int) -> NDArray[np.uint64]:
    """Return the PAGEMAP_SCAN categories."""
    categories = np.zeros(pages, np.uint64)
    asked = IS_FILE | IS_PRESENT | IS_SWAPPED | IS_PFNZERO | IS_HUGE | IS_GUARD
    regions = ctypes.create_string_buffer(24 * max(pages, 1))
    request = struct.pack(
        "<12Q",
        *(96, 0, start, start + pages * PAGE, 0),
        *(ctypes.addressof(regions), max(pages, 1), 0),
        *(0, 0, asked, asked),
    )
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        found = fcntl.ioctl(file.fileno(), PAGEMAP_SCAN, bytearray(request), True)
    for number in range(found):
        first, stop, kinds = struct.unpack_from("<3Q", regions, number * 24)
        categories[(first - start) // PAGE : (stop - start) // PAGE] = kinds
    return categories


def read_cachestat(fd: int, offset: int, length: int) -> tuple[int, int]:
    """Return ``(nr_cache, nr_evicted)`` of a range of a file."""
    span = struct.pack("<2Q", offset, length)
    answer = ctypes.create_string_buffer(40)
    if libc.syscall(SYS_CACHESTAT, fd, span, answer, 0) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"cachestat: {os.strerror(code)}")
    cached, _, _, evicted, _ = struct.unpack("<5Q", answer.raw)
    return cached, evicted


def read_mincore(fd: int, offset: int, pages: int) -> NDArray[np.bool_]:
    """Return whether each page is resident, by a mapping of our own."""
    size = pages * PAGE
    where = libc.mmap(None, size, 0, 0x4001, fd, offset)  # PROT_NONE, SHARED|NORESERVE
    if where == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    vector = ctypes.create_string_buffer(pages)
    result = libc.mincore(where, size, vector)
    code = ctypes.get_errno()
    libc.munmap(where, size)
    if result == -1:
        raise OSError(code, "mincore")
    return (np.frombuffer(vector.raw, np.uint8) & 1).astype(bool)


def read_data(fd: int, offset: int, pages: int) -> NDArray[np.bool_]:
    """Return whether SEEK_DATA calls each page data."""

    def is_data(position: int) -> bool:
        try:
            return os.lseek(fd, position, os.SEEK_DATA) < position + PAGE
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False

    return np.array([is_data(offset + page * PAGE) for page in range(pages)], bool)


@dataclass(frozen=True)
class Vma:
    """One mapping of /proc/PID/smaps: its bounds and its fields in KiB."""

    start: int
    stop: int
    permissions: str
    offset: int
    path: str
    fields: dict[str, int]
    flags: tuple[str, ...]


_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+ *(.*)")


def read_smaps(pid: int | str) -> list[Vma]:
    """Return the mappings of a process with what smaps says of each."""
    mappings: list[Vma] = []
    with open(f"/proc/{pid}/smaps", errors="surrogateescape") as file:
        for line in file.read().split("\n"):
            if head := _HEAD.fullmatch(line):
                start, stop, permissions, offset, path = head.groups()
                place = int(start, 16), int(stop, 16), permissions, int(offset, 16), path
                mappings.append(Vma(*place, {}, ()))
            elif line.startswith("VmFlags:"):
                flags = tuple(line.split()[1:])
                last = mappings[-1]
                mappings[-1] = Vma(
                    *(last.start, last.stop, last.permissions, last.offset, last.path),
                    *(last.fields, flags),
                )
            elif line:
                name, value, *_ = line.split()
                mappings[-1].fields[name[:-1]] = int(value)
    return mappings


def smaps_at(pid: int, start: int, stop: int) -> list[Vma]:
    """Return the mappings that meet ``[start, stop)``."""
    return [vma for vma in read_smaps(pid) if vma.start < stop and vma.stop > start]


def read_kpageflags(words: NDArray[np.uint64]) -> list[int]:
    """Return the flags of the frames of present words, 0 for other words."""
    flags = []
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for word in words.tolist():
            frame = word & ((1 << 55) - 1)
            is_present = word & PRESENT
            data = os.pread(file.fileno(), 8, frame * 8) if is_present else bytes(8)
            flags.append(struct.unpack("<Q", data)[0])
    return flags


def open_object(pid: int, start: int) -> int:
    """Open what backs the mapping at ``start``, through map_files."""
    (vma,) = [vma for vma in read_smaps(pid) if vma.start <= start < vma.stop]
    path = f"/proc/{pid}/map_files/{vma.start:x}-{vma.stop:x}"
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)


def read_vmstat() -> dict[str, int]:
    """Return /proc/vmstat."""
    with open("/proc/vmstat") as file:
        return {name: int(value) for name, value in (line.split() for line in file)}


@dataclass(frozen=True)
class ObjectEvidence:
    """What the object says of each page; None where the interface does not work."""

    cached: NDArray[np.bool_] | None
    evicted: NDArray[np.bool_] | None
    resident: NDArray[np.bool_] | None
    data: NDArray[np.bool_] | None


def read_object(fd: int, offset: int, pages: int) -> ObjectEvidence:
    """Ask the three interfaces about every page, one page at a time."""

    def attempt(read: Any) -> Any:
        try:
            return read()
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                raise
            return None

    def counts() -> NDArray[np.int64]:
        return np.array([read_cachestat(fd, offset + i * PAGE, PAGE) for i in range(pages)])

    both = attempt(counts)
    return ObjectEvidence(
        None if both is None else both[:, 0] > 0,
        None if both is None else both[:, 1] > 0,
        attempt(lambda: read_mincore(fd, offset, pages)),
        attempt(lambda: read_data(fd, offset, pages)),
    )
