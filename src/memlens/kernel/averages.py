"""
Whether /proc/kpagecount counts pages, or gives averages over large folios.

CONFIG_NO_PAGE_MAPCOUNT (commit 749492229e3b "mm: stop maintaining the per-page mapcount of
large folios (CONFIG_NO_PAGE_MAPCOUNT)") (in v6.15): a page of a folio that is mapped in
part reads as the average of its folio, at least 1 if any page of it is mapped.
"""

import ctypes
import gzip
import os

from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import MAP_FAILED, MAP_PRIVATE, libc

_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_PROT_READ_WRITE, _MAP_ANONYMOUS = 3, 0x20
_PFN = (1 << 55) - 1


def has_average_counts(proc: str = "/proc") -> bool | None:
    """Return whether kpagecount gives averages; None if that cannot be found out."""
    configured = _read_config(proc)
    return _try_huge_page(proc) if configured is None else configured


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


def _read_config(proc: str) -> bool | None:
    try:
        return parse_config(gzip.decompress(read_file(f"{proc}/config.gz")).decode())
    except (OSError, EOFError, UnicodeDecodeError):
        pass
    try:
        return parse_config(read_file(f"/boot/config-{os.uname().release}").decode())
    except (OSError, UnicodeDecodeError):
        return None


def _try_huge_page(proc: str) -> bool | None:
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
        with open(f"{proc}/kpagecount", "rb", buffering=0) as file:
            return os.pread(file.fileno(), 8, frame * 8) != bytes(8)
    except OSError:
        return None
    finally:
        libc.munmap(base, 2 * size)


def _frame(address: int, page: int) -> int:
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        word = int.from_bytes(os.pread(file.fileno(), 8, address // page * 8), "little")
    return word & _PFN if word >> 63 else 0
