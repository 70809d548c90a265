"""
What this kernel lets this reader see, probed once by round trips on memory of our own.

Versions are never compared: a kernel with backports has what its number lacks.
"""

import ctypes
import gzip
import mmap
import os
from functools import lru_cache

import numpy as np

from memlens.errors import MemlensError
from memlens.kernel.pagemap import PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Pagemap
from memlens.kernel.procfs import Host, page_size_bytes, read_file
from memlens.kernel.syscalls import MAP_FAILED, MAP_PRIVATE, cachestat, libc

_PFN = (1 << 55) - 1
_CAP_SYS_PTRACE = 1 << 19
# Inode of the first user namespace (include/linux/proc_ns.h), the same since v3.8.
_INIT_USER = "user:[4026531837]"


@lru_cache(maxsize=1)
def has_pagemap_scan() -> bool:
    """Return whether PAGEMAP_SCAN works here (commit 52526ca7fdb9, in v6.7)."""
    page = _own_page(is_written=True)
    pagemap = open_own_pagemap()
    if pagemap is None:
        return False
    try:
        number = _address(page) // page_size_bytes()
        wanted = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO
        regions = list(pagemap.scan(number, 1, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, wanted))
        return len(regions) == 1 and len(regions[0]) == 1
    except MemlensError:
        return False
    finally:
        pagemap.close()


def can_look_at_others() -> bool:
    """Return whether this reader is refused no process for lack of privilege."""
    try:
        if os.readlink("/proc/self/ns/user") != _INIT_USER:
            return False
        for line in read_file("/proc/self/status").split(b"\n"):
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_PTRACE)
    except (OSError, ValueError):
        pass
    return False


@lru_cache(maxsize=1)
def zero_pfn() -> int:
    """Return the PFN of the zero page of one base page, 0 if PFNs are hidden."""
    return _own_pfn(_own_page(is_written=False))


@lru_cache(maxsize=1)
def is_pfn_visible() -> bool:
    """Return whether pagemap shows PFNs and swap slots (needs CAP_SYS_ADMIN)."""
    return _own_pfn(_own_page(is_written=True)) != 0


@lru_cache(maxsize=1)
def has_cachestat() -> bool:
    """Return whether cachestat works here (commit cf264e1329fb, in v6.5)."""
    fd = os.memfd_create("memlens", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"x")
        return cachestat(fd, 0, page_size_bytes()).nr_cache == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _own_page(is_written: bool) -> mmap.mmap:
    """Return an anonymous page of ours, written, or only read: the zero page."""
    page = mmap.mmap(-1, page_size_bytes(), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if is_written:
        page[0] = 1
    else:
        page[0]
    return page


def _address(page: mmap.mmap) -> int:
    return int(np.frombuffer(page, np.uint8).ctypes.data)


def open_own_pagemap() -> Pagemap | None:
    """Open our own page table; None for one who may not, as what is not dumpable."""
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    return Pagemap(fd, Host(), "/proc/self/pagemap")


def _own_pfn(page: mmap.mmap) -> int:
    pagemap = open_own_pagemap()
    if pagemap is None:
        return 0
    try:
        words = pagemap.read_words(_address(page) // page_size_bytes(), 1)
        return int(words[0]) & _PFN if len(words) else 0
    finally:
        pagemap.close()


# Whether /proc/kpagecount counts pages, or gives averages over large folios.
#
# CONFIG_NO_PAGE_MAPCOUNT (commit 749492229e3b "mm: stop maintaining the per-page mapcount of
# large folios (CONFIG_NO_PAGE_MAPCOUNT)") (in v6.15): a page of a folio that is mapped in
# part reads as the average of its folio, at least 1 if any page of it is mapped.


_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_PROT_READ_WRITE, _MAP_ANONYMOUS = 3, 0x20


def has_average_counts(host: Host) -> bool | None:
    """Return whether kpagecount gives averages; None if that cannot be found out."""
    configured = _read_config(host)
    return _try_huge_page(host) if configured is None else configured


def parse_config(text: str) -> bool | None:
    """
    Return what a kernel configuration says of CONFIG_NO_PAGE_MAPCOUNT.

    >>> parse_config("CONFIG_PAGE_MAPCOUNT=y")
    False

    :return: None if it is no configuration at all.
    """
    if "CONFIG_" not in text:
        return None
    return "\nCONFIG_NO_PAGE_MAPCOUNT=y" in f"\n{text}"


def _read_config(host: Host) -> bool | None:
    try:
        return parse_config(gzip.decompress(read_file(f"{host.root}/config.gz")).decode())
    except (OSError, EOFError, UnicodeDecodeError):
        pass
    try:
        return parse_config(read_file(f"/boot/config-{os.uname().release}").decode())
    except (OSError, UnicodeDecodeError):
        return None


def _try_huge_page(host: Host) -> bool | None:
    """Make a huge page, give one page of it back, and see if that still counts as mapped."""
    try:
        size = int(read_file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"))
    except (OSError, ValueError):
        return None
    base = libc.mmap(None, 2 * size, _PROT_READ_WRITE, MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
    if base == MAP_FAILED:
        return None
    try:
        start = -(-base // size) * size
        page = os.sysconf("SC_PAGE_SIZE")
        libc.madvise(start, size, _MADV_HUGEPAGE)
        ctypes.memset(start, 1, page)
        frame = _frame(start + page, page)
        if not frame or _frame(start, page) + 1 != frame:
            return None
        libc.madvise(start + page, page, _MADV_DONTNEED)
        with open(f"{host.root}/kpagecount", "rb", buffering=0) as file:
            return os.pread(file.fileno(), 8, frame * 8) != bytes(8)
    except OSError:
        return None
    finally:
        libc.munmap(base, 2 * size)


def _frame(address: int, page: int) -> int:
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        word = int.from_bytes(os.pread(file.fileno(), 8, address // page * 8), "little")
    return word & _PFN if word >> 63 else 0
