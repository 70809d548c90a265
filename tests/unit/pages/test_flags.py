"""Words of kpageflags: the table, names, and the two ways to show them."""

import re

import numpy as np
import pytest

from memlens.pages.bits import KPAGE_BITS
from memlens.pages.flags import (
    expand_words,
    flag_names,
    group_words,
    join_words,
    known_words,
    mask_of,
)

# include/uapi/linux/kernel-page-flags.h, in order from bit 0.
DOCUMENTED = tuple(
    name
    for line in (
        "LOCKED ERROR REFERENCED UPTODATE DIRTY LRU ACTIVE SLAB WRITEBACK RECLAIM BUDDY",
        "MMAP ANON SWAPCACHE SWAPBACKED COMPOUND_HEAD COMPOUND_TAIL HUGE UNEVICTABLE",
        "HWPOISON NOPAGE KSM THP OFFLINE ZERO_PAGE IDLE PGTABLE",
    )
    for name in line.split()
)


def words(*symbols: str) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array([mask_of(*symbols)], np.uint64)


def test_documented_bits_are_those_of_the_header() -> None:
    found = [row.symbol.removeprefix("KPF_") for row in KPAGE_BITS if row.bit < 32]
    assert tuple(found) == DOCUMENTED
    assert [row.bit for row in KPAGE_BITS][: len(DOCUMENTED)] == list(range(27))


def test_rows_are_in_order_and_named_once() -> None:
    assert [row.bit for row in KPAGE_BITS] == sorted({row.bit for row in KPAGE_BITS})
    assert len({row.name for row in KPAGE_BITS}) == len(KPAGE_BITS)
    assert all(re.fullmatch(r"\d+\.\d+(\.\d+)?", row.since) for row in KPAGE_BITS)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (("ANON", "OWNER_2"), ("ANON", "ANON_EXCLUSIVE")),
        (("OWNER_2",), ("OWNER_2",)),
        (("SLAB", "ACTIVE", "ERROR"), ("SLAB", "SLUB_FROZEN", "SLUB_DEBUG")),
        (("RECLAIM",), ("READAHEAD",)),
        (("RECLAIM", "WRITEBACK"), ("RECLAIM", "WRITEBACK")),
    ],
)
def test_bits_with_two_meanings_are_told_apart(
    given: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    assert expand_words(words(*given)).tolist() == words(*shown).tolist()


def test_what_pagemap_says_goes_to_bits_of_its_own() -> None:
    pagemap = np.array([1 << 63 | 1 << 61 | 1 << 56 | 1 << 55 | 77], np.uint64)
    joined = join_words(words("LRU"), pagemap)
    assert flag_names(int(expand_words(joined)[0])) == [
        "lru",
        "softdirty",
        "file",
        "mmap_exclusive",
    ]
    assert flag_names(int(known_words(joined)[0])) == ["lru"]


def test_compound_shows_for_hugetlb_only() -> None:
    assert known_words(words("THP", "COMPOUND_TAIL")).tolist() == words("THP").tolist()
    huge = words("HUGE", "COMPOUND_TAIL")
    assert known_words(huge).tolist() == huge.tolist()


def test_unknown_bits_are_kept_by_number() -> None:
    unknown = np.array([1 << 30 | 1 << 60], np.uint64)
    assert flag_names(int(expand_words(unknown)[0])) == ["bit 30", "bit 60"]


def test_equal_words_are_added() -> None:
    found = group_words(np.array([5, 5, 9], np.uint64), np.array([1, 2, 4]))
    assert [column.tolist() for column in found] == [[5, 9], [3, 4]]
