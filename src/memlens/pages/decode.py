"""Words of kernel files -> columns."""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.arrays import look_up
from memlens.pages.bits import (
    PAGEMAP_BITS,
    PM_FILE,
    PM_GUARD_REGION,
    PM_MMAP_EXCLUSIVE,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_AREA,
    PM_SWAP_SLOT,
    PM_SWAP_SLOT_SHIFT,
    PM_UFFD_WP,
    SWAP_AREAS,
    SWAP_MARKER,
)
from memlens.pages.classes import Entry


@dataclass(frozen=True, slots=True)
class Words:
    """
    Raw pagemap words; pages not listed read zero.

    :param page: number of the page from the mapping's start, ``(n,)`` int64.
    :param word: the word the kernel gave, ``(n,)`` uint64.
    """

    page: NDArray[np.int64]
    word: NDArray[np.uint64]


class SwapEntries(NamedTuple):
    """Where swapped pages are: ``area`` uint8 and ``slot`` uint64, both ``(n,)``."""

    area: NDArray[np.uint8]
    slot: NDArray[np.uint64]


def decode_swap(words: NDArray[np.uint64]) -> SwapEntries:
    """
    Return the swap area and the slot of swapped-out pages.

    >>> decode_swap(np.array([1 << 62 | 3 << 5 | 1], dtype=np.uint64))
    SwapEntries(area=array([1], dtype=uint8), slot=array([3], dtype=uint64))

    :param words: pagemap words, ``(n,)`` uint64, each with ``PM_SWAP`` set.
    :return: ``area``, ``(n,)`` uint8: number of the swap area, 0 to 31.
        ``slot``, ``(n,)`` uint64: offset in that area, in pages.
    :raises ValueError: if a word lacks ``PM_SWAP``.

    A reader without CAP_SYS_ADMIN gets 0 in both, which looks like slot 0 of area 0.
    Areas from 23 up are markers and migrations, not swap.
    """
    if not np.all(words & PM_SWAP):
        raise ValueError("word without PM_SWAP")
    return SwapEntries(
        area=(words & PM_SWAP_AREA).astype(np.uint8),
        slot=(words & PM_SWAP_SLOT) >> PM_SWAP_SLOT_SHIFT,
    )


def find_swap_entries(
    words: NDArray[np.uint64], first_page: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """
    Return area and slot, and the page number, of each word that is a swap entry.

    >>> find_swap_entries(np.array([0, 1 << 62 | 3 << 5], dtype=np.uint64), 10)
    (array([96], dtype=uint64), array([11]))

    :param words: pagemap words of consecutive pages.
    :param first_page: number of the first.
    :return: the low 55 bits of the words, uint64, and page numbers, int64.
    """
    is_swap = ((words & PM_SWAP) != 0) & ((words & PM_SWAP_AREA) < SWAP_AREAS)
    where = np.flatnonzero(is_swap)
    return words[where] & PM_PFN, where + first_page


def decode_pfn(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the PFN of present pages, ``(n,)`` uint64; 0 where it is hidden."""
    return words & PM_PFN


def decode_entries(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """
    Return what kind of page-table entry each word is.

    >>> words = np.array([0, 1 << 63, 1 << 62 | 31 | 1 << 58], dtype=np.uint64)
    >>> [Entry(value).name for value in decode_entries(words)]
    ['EMPTY', 'PRESENT', 'GUARD']

    :param words: pagemap words, ``(n,)`` uint64.
    :return: ``Entry`` values, ``(n,)`` uint8.

    The zero page of 4 KiB looks like any page here: only its PFN or PAGEMAP_SCAN tells.
    """
    entries = look_up(_ENTRY_OF_HIGH_BYTE, _high_bytes(words))
    is_swap = entries == _SWAP_LIKE
    if is_swap.any():
        entries[is_swap] = _decode_swap_like(words[is_swap])
    return entries


def _high_bytes(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return bits 56 to 63, which tell most pages, at an eighth of the memory."""
    return np.ascontiguousarray(words).view(np.uint8)[_HIGH_BYTE::8]


def _decode_swap_like(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    area = words & PM_SWAP_AREA
    has_wp = (words & PM_UFFD_WP) != 0
    is_hidden = (words & PM_PFN) == 0
    has_file = (words & PM_FILE) != 0
    entries = np.full(len(words), Entry.SWAP, np.uint8)
    entries[area >= SWAP_AREAS] = Entry.TRANSIT
    is_marker = area == SWAP_MARKER
    entries[is_marker & has_wp] = Entry.WP_MARKER
    entries[is_marker & ~has_wp] = Entry.POISON
    entries[is_hidden & has_wp] = Entry.HIDDEN_WP
    entries[is_hidden & ~has_wp] = Entry.HIDDEN
    # Swap entries and markers are never pages of a file; one in migration may be.
    entries[is_hidden & has_file] = Entry.TRANSIT
    entries[(words & PM_GUARD_REGION) != 0] = Entry.GUARD
    return entries


def is_maybe_zero_page(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which pages could be the zero page: present, of no file, not exclusive."""
    is_maybe: NDArray[np.bool_]
    is_maybe = (_high_bytes(words) & _ZERO_PAGE_MASK) == _ZERO_PAGE_BITS
    return is_maybe


def bit_names(word: int) -> list[str]:
    """
    Return the names of the flag bits of a word; unknown ones by number.

    >>> bit_names(1 << 63 | 1 << 56 | 1 << 59)
    ['exclusive', 'bit 59', 'present']
    """
    known = {row.bit: row.name for row in PAGEMAP_BITS}
    return [known.get(bit, f"bit {bit}") for bit in range(55, 64) if word >> bit & 1]


def _entry_of_high_byte() -> NDArray[np.uint8]:
    table = np.empty(256, np.uint8)
    for byte in range(256):
        word = byte << 56
        if word & int(PM_SWAP):
            table[byte] = _SWAP_LIKE
        elif word & int(PM_PRESENT):
            table[byte] = Entry.FILE_PAGE if word & int(PM_FILE) else Entry.PRESENT
        else:
            # On hugetlbfs a marker of write-protection has no PM_SWAP.
            table[byte] = Entry.WP_MARKER if word & int(PM_UFFD_WP) else Entry.EMPTY
    return table


# Stands for entries that more bits must tell.
_SWAP_LIKE = np.uint8(255)
_HIGH_BYTE = 7 if sys.byteorder == "little" else 0
_ENTRY_OF_HIGH_BYTE = _entry_of_high_byte()
_ZERO_PAGE_MASK = np.uint8(int(PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE) >> 56)
_ZERO_PAGE_BITS = np.uint8(int(PM_PRESENT) >> 56)
