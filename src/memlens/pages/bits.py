"""
THE table of the bits that kernel files give for a page.

Documentation/admin-guide/mm/pagemap.rst.  Bits 0-54 of a present page hold its PFN;
bits 0-4 of a swapped one the swap area and bits 5-54 the slot.  A reader without
CAP_SYS_ADMIN gets zero in them.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Bit:
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
