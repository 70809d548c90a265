"""
Words of /proc/kpageflags -> names, and the two ways to show them.

The kernel's page-types shows the documented bits by default and all of them with -r;
``known_words`` and ``expand_words`` do the same, bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

from memlens.pages.bits import (
    KPAGE_BITS,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
)

NUMBER_OF = {row.symbol: row.bit for row in KPAGE_BITS}


def mask_of(*symbols: str) -> np.uint64:
    """Return the mask of bits by symbol, without its ``KPF_``."""
    return np.uint64(sum(1 << NUMBER_OF[f"KPF_{symbol}"] for symbol in symbols))


KPF_ANON = mask_of("ANON")
KPF_HEAD = mask_of("COMPOUND_HEAD")
KPF_TAIL = mask_of("COMPOUND_TAIL")
KPF_HUGE = mask_of("HUGE")
KPF_KSM = mask_of("KSM")
KPF_NOPAGE = mask_of("NOPAGE")
KPF_THP = mask_of("THP")
KPF_ZERO_PAGE = mask_of("ZERO_PAGE")
COMPOUND = KPF_HEAD | KPF_TAIL

# Bits that page-types hides without -r.
HIDDEN_BITS = np.uint64(0xFFFF << 32)

# The bits of a pagemap word that page-types shows; no bit of kpageflags is there.
PAGEMAP_PART = PM_SOFT_DIRTY | PM_MMAP_EXCLUSIVE | PM_FILE | PM_SWAP

# The same bits where ``expand_words`` puts them: what is known where flags are hidden.
PAGEMAP_FLAGS = int(mask_of("SOFTDIRTY", "FILE", "SWAP", "MMAP_EXCLUSIVE"))
_NAMES = {row.bit: row.name for row in KPAGE_BITS}
_PAGEMAP_BITS = (
    (PM_SOFT_DIRTY, mask_of("SOFTDIRTY")),
    (PM_FILE, mask_of("FILE")),
    (PM_SWAP, mask_of("SWAP")),
    (PM_MMAP_EXCLUSIVE, mask_of("MMAP_EXCLUSIVE")),
)


def join_words(
    flags: NDArray[np.uint64], pagemap_words: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """
    Put what pagemap says of each page beside its flags.

    :return: ``(n,)`` uint64; ``expand_words`` brings the bits to their places.
    """
    joined: NDArray[np.uint64] = flags | (pagemap_words & PAGEMAP_PART)
    return joined


def expand_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """
    Tell apart the meanings that share a bit, and name what pagemap says.

    >>> [hex(word) for word in expand_words(np.array([1 << 9 | 1 << 61], np.uint64))]
    ['0x2001000000000000']

    :param words: joined words, ``(n,)`` uint64.
    :return: words whose bits are rows of ``KPAGE_BITS``, as ``page-types -r`` has them.
    """
    flags = words & ~(PAGEMAP_PART | PM_PRESENT)
    flags = _move(flags, mask_of("ANON"), "OWNER_2", "ANON_EXCLUSIVE")
    flags = _move(flags, mask_of("SLAB"), "ACTIVE", "SLUB_FROZEN")
    flags = _move(flags, mask_of("SLAB"), "ERROR", "SLUB_DEBUG")
    is_written = (flags & mask_of("WRITEBACK")) != 0
    flags = np.where(is_written, flags, _move(flags, np.uint64(0), "RECLAIM", "READAHEAD"))
    for theirs, ours in _PAGEMAP_BITS:
        flags = flags | np.where((words & theirs) != 0, ours, np.uint64(0))
    return flags


def known_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """
    Keep the documented bits, as page-types does without -r.

    >>> known_words(np.array([1 << 5 | 1 << 15 | 1 << 35], dtype=np.uint64)).tolist()
    [32]

    :param words: joined words, ``(n,)`` uint64.

    Heads and tails of compound pages are only kept for hugetlb pages.
    """
    flags = words & ~(PAGEMAP_PART | PM_PRESENT | HIDDEN_BITS)
    is_compound = ((flags & COMPOUND) != 0) & ((flags & KPF_HUGE) == 0)
    return np.where(is_compound, flags & ~COMPOUND, flags)


def flag_names(word: int) -> list[str]:
    """
    Return the names of the bits of a word, lowest first; unknown ones by number.

    >>> flag_names(1 << 5 | 1 << 29)
    ['lru', 'bit 29']
    """
    return [_NAMES.get(bit, f"bit {bit}") for bit in range(64) if word >> bit & 1]


def group_words(
    words: NDArray[np.uint64], pages: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """
    Add up the pages of equal words.

    >>> group_words(np.array([7, 1, 7], dtype=np.uint64), np.array([1, 2, 3]))
    (array([1, 7], dtype=uint64), array([2, 4]))
    """
    distinct, places = np.unique(words, return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, places.reshape(-1), pages)
    return distinct, sums


def _move(
    flags: NDArray[np.uint64], if_set: np.uint64, old: str, new: str
) -> NDArray[np.uint64]:
    """Replace one bit by another where it is set, and ``if_set`` too."""
    has_both = (flags & (if_set | mask_of(old))) == (if_set | mask_of(old))
    return np.where(has_both, flags ^ (mask_of(old) | mask_of(new)), flags)
