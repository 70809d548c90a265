"""
THE table of the bits that kernel files give for a page.

Documentation/admin-guide/mm/pagemap.rst.  Bits 0-54 of a present page hold its PFN;
bits 0-4 of a swapped one the swap area and bits 5-54 the slot.  A reader without
CAP_SYS_ADMIN gets zero in them.
"""

from typing import NamedTuple

import numpy as np

PM_PFN = np.uint64((1 << 55) - 1)
PM_SWAP_AREA = np.uint64((1 << 5) - 1)
PM_SWAP_SLOT = np.uint64(((1 << 55) - 1) & ~((1 << 5) - 1))
PM_SWAP_SLOT_SHIFT = np.uint64(5)
PM_SOFT_DIRTY = np.uint64(1 << 55)
PM_MMAP_EXCLUSIVE = np.uint64(1 << 56)
PM_UFFD_WP = np.uint64(1 << 57)
PM_GUARD_REGION = np.uint64(1 << 58)
PM_FILE = np.uint64(1 << 61)
PM_SWAP = np.uint64(1 << 62)
PM_PRESENT = np.uint64(1 << 63)

# Swap areas are numbered from 0.  With every option configured the kernel keeps the
# numbers from 23 up for entries that are no swap (include/linux/swap.h); 31 is a PTE
# marker on every kernel since v5.19.
SWAP_AREAS = 23
SWAP_MARKER = 31


class Bit(NamedTuple):
    """
    One flag bit.

    :param bit: its number.
    :param symbol: as the kernel's headers or documentation name it.
    :param name: long name, lower case.
    :param since: first kernel version that sets it.
    :param meaning: one sentence.
    """

    bit: int
    symbol: str
    name: str
    since: str
    meaning: str


PAGEMAP_BITS = (
    Bit(55, "PM_SOFT_DIRTY", "soft_dirty", "3.11", "written since soft-dirty was cleared"),
    Bit(56, "PM_MMAP_EXCLUSIVE", "exclusive", "4.2", "mapped by this page table alone"),
    Bit(57, "PM_UFFD_WP", "uffd_wp", "5.14", "write-protected through userfaultfd"),
    Bit(58, "PM_GUARD_REGION", "guard", "6.15", "a guard region: every access faults"),
    Bit(61, "PM_FILE", "file", "3.5", "a page of a file or of shared memory"),
    Bit(62, "PM_SWAP", "swap", "2.6.25", "a swap entry or another entry that is no page"),
    Bit(63, "PM_PRESENT", "present", "2.6.25", "a page is mapped"),
)

# /proc/kpageflags: include/uapi/linux/kernel-page-flags.h up to bit 26; from 32 up what
# the kernel calls "kernel hacking assistances: subject to change"
# (include/linux/kernel-page-flags.h).  The names are those of the kernel's page-types,
# so that they can be searched for.  Rows from 47 up are bits that the kernel never gives
# here: page-types tells meanings apart that share a bit, or comes from pagemap.
KPAGE_BITS = (
    Bit(0, "KPF_LOCKED", "locked", "2.6.25", "locked for exclusive access, as during I/O"),
    Bit(1, "KPF_ERROR", "error", "2.6.25", "I/O failed; unused since 6.12"),
    Bit(2, "KPF_REFERENCED", "referenced", "2.6.25", "used since it was last queued"),
    Bit(3, "KPF_UPTODATE", "uptodate", "2.6.25", "holds valid data"),
    Bit(4, "KPF_DIRTY", "dirty", "2.6.25", "newer than what is on disk or swap"),
    Bit(5, "KPF_LRU", "lru", "2.6.25", "on a list of pages to reclaim"),
    Bit(6, "KPF_ACTIVE", "active", "2.6.25", "on the active one of these lists"),
    Bit(7, "KPF_SLAB", "slab", "2.6.25", "memory of the kernel's slab allocator"),
    Bit(8, "KPF_WRITEBACK", "writeback", "2.6.25", "being written to disk or swap"),
    Bit(9, "KPF_RECLAIM", "reclaim", "2.6.25", "to be reclaimed as soon as it is written"),
    Bit(10, "KPF_BUDDY", "buddy", "2.6.25", "free, held by the buddy allocator"),
    Bit(11, "KPF_MMAP", "mmap", "2.6.31", "mapped by a page table"),
    Bit(12, "KPF_ANON", "anonymous", "2.6.31", "mapped, and of no file"),
    Bit(13, "KPF_SWAPCACHE", "swapcache", "2.6.31", "has a slot in a swap area"),
    Bit(14, "KPF_SWAPBACKED", "swapbacked", "2.6.31", "goes to swap, not to a file"),
    Bit(15, "KPF_COMPOUND_HEAD", "compound_head", "2.6.31", "first page of a larger one"),
    Bit(16, "KPF_COMPOUND_TAIL", "compound_tail", "2.6.31", "later page of a larger one"),
    Bit(17, "KPF_HUGE", "huge", "2.6.31", "part of a hugetlb page"),
    Bit(18, "KPF_UNEVICTABLE", "unevictable", "2.6.31", "cannot be reclaimed: mlock, ramfs"),
    Bit(19, "KPF_HWPOISON", "hwpoison", "2.6.32", "the hardware found it damaged"),
    Bit(20, "KPF_NOPAGE", "nopage", "2.6.31", "no memory at this address"),
    Bit(21, "KPF_KSM", "ksm", "2.6.32", "merged with equal pages by KSM"),
    Bit(22, "KPF_THP", "thp", "3.4", "part of a transparent huge page of any size"),
    Bit(23, "KPF_OFFLINE", "offline", "3.18", "logically offline; before 5.1: ballooned"),
    Bit(24, "KPF_ZERO_PAGE", "zero_page", "4.0", "the zero page, small or huge"),
    Bit(25, "KPF_IDLE", "idle_page", "4.3", "not used since it was marked idle"),
    Bit(26, "KPF_PGTABLE", "pgtable", "4.18", "a page table"),
    Bit(32, "KPF_RESERVED", "reserved", "2.6.31", "set aside by kernel or firmware"),
    Bit(33, "KPF_MLOCKED", "mlocked", "2.6.31", "locked in memory by mlock"),
    Bit(34, "KPF_OWNER_2", "owner_2", "2.6.31", "for its owner; before 6.12: mappedtodisk"),
    Bit(35, "KPF_PRIVATE", "private", "2.6.31", "the file system keeps data with it"),
    Bit(36, "KPF_PRIVATE_2", "private_2", "2.6.31", "a second such bit"),
    Bit(37, "KPF_OWNER_PRIVATE", "owner_private", "2.6.31", "for its owner"),
    Bit(38, "KPF_ARCH", "arch", "2.6.31", "for the architecture"),
    Bit(39, "KPF_UNCACHED", "uncached", "2.6.31", "not cached by the CPU; unused since 6.12"),
    Bit(40, "KPF_SOFTDIRTY", "softdirty", "3.11", "pagemap: written since last cleared"),
    Bit(41, "KPF_ARCH_2", "arch_2", "5.10", "for the architecture"),
    Bit(42, "KPF_ARCH_3", "arch_3", "6.2", "for the architecture"),
    Bit(47, "KPF_ANON_EXCLUSIVE", "anon_exclusive", "5.19", "owner_2 of an anonymous page"),
    Bit(48, "KPF_READAHEAD", "readahead", "2.6.31", "reclaim of a page not in writeback"),
    Bit(50, "KPF_SLUB_FROZEN", "slub_frozen", "2.6.31", "active of a slab page"),
    Bit(51, "KPF_SLUB_DEBUG", "slub_debug", "2.6.31", "error of a slab page"),
    Bit(61, "KPF_FILE", "file", "3.5", "pagemap: of a file or shared memory"),
    Bit(62, "KPF_SWAP", "swap", "2.6.25", "pagemap: swapped out, or a marker: no page"),
    Bit(63, "KPF_MMAP_EXCLUSIVE", "mmap_exclusive", "4.2", "pagemap: mapped here alone"),
)

# PAGEMAP_SCAN, include/uapi/linux/fs.h: names of the PAGE_IS_ categories, by bit.
CATEGORIES = (
    "WPALLOWED",
    "WRITTEN",
    "FILE",
    "PRESENT",
    "SWAPPED",
    "PFNZERO",
    "HUGE",
    "SOFT_DIRTY",
    "GUARD",
)
