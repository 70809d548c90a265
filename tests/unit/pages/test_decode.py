"""Words as the kernel gives them, one row for each kind of page-table entry."""

import numpy as np
import pytest

from memlens.pages.classes import Entry
from memlens.pages.decode import (
    bit_names,
    decode_entries,
    decode_pfn,
    decode_swap,
    is_maybe_zero_page,
)

PRESENT, SWAP, FILE = 1 << 63, 1 << 62, 1 << 61
GUARD, UFFD_WP, EXCLUSIVE, SOFT_DIRTY = 1 << 58, 1 << 57, 1 << 56, 1 << 55
SLOT_MAX = (1 << 50) - 1


def swap(area: int, slot: int) -> int:
    return SWAP | slot << 5 | area


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


ENTRIES = [
    ("nothing", 0, Entry.EMPTY),
    ("soft-dirty mark of an empty entry", SOFT_DIRTY, Entry.EMPTY),
    ("private page", PRESENT | EXCLUSIVE | 0x1234, Entry.PRESENT),
    ("page of a file", PRESENT | FILE | 0x200, Entry.FILE_PAGE),
    ("private page, PFN hidden", PRESENT | EXCLUSIVE, Entry.PRESENT),
    ("page shared after fork", PRESENT | 0x1234, Entry.PRESENT),
    ("page under write-protection", PRESENT | UFFD_WP | EXCLUSIVE | 7, Entry.PRESENT),
    ("swapped", swap(0, 13825), Entry.SWAP),
    ("first slot after the header", swap(0, 1), Entry.SWAP),
    ("slot 0 of area 1", swap(1, 0), Entry.SWAP),
    ("last area that holds swap", swap(22, SLOT_MAX), Entry.SWAP),
    ("swapped, soft-dirty", swap(2, 5) | SOFT_DIRTY, Entry.SWAP),
    ("swapped under write-protection", swap(0, 5) | UFFD_WP, Entry.SWAP),
    ("swapped, exclusive", swap(0, 5) | EXCLUSIVE, Entry.SWAP),
    ("guard region", swap(31, 4) | GUARD, Entry.GUARD),
    ("guard region, area hidden", SWAP | GUARD, Entry.GUARD),
    ("write-protection of nothing", swap(31, 1) | UFFD_WP, Entry.WP_MARKER),
    ("write-protection of nothing on hugetlbfs", UFFD_WP, Entry.WP_MARKER),
    ("poison of userfaultfd", swap(31, 2), Entry.POISON),
    ("migration, numbers without extra options", swap(30, 0x1234), Entry.TRANSIT),
    ("migration, every option configured", swap(24, 0x1234), Entry.TRANSIT),
    ("hardware poison or device", swap(23, 0x1234), Entry.TRANSIT),
    ("migration of a page of a file", swap(30, 0x1234) | FILE, Entry.TRANSIT),
    ("area hidden", SWAP, Entry.HIDDEN),
    ("area hidden, soft-dirty", SWAP | SOFT_DIRTY, Entry.HIDDEN),
    ("area hidden under write-protection", SWAP | UFFD_WP, Entry.HIDDEN_WP),
    ("migration of a page of a file, hidden", SWAP | FILE, Entry.TRANSIT),
]


@pytest.mark.parametrize(
    ("word", "expected"), [row[1:] for row in ENTRIES], ids=[row[0] for row in ENTRIES]
)
def test_entry(word: int, expected: Entry) -> None:
    (found,) = decode_entries(words(word))
    assert Entry(found) is expected


def test_words_between_others() -> None:
    given = words(0, PRESENT, 0, swap(0, 1), 0, PRESENT | FILE)
    assert decode_entries(given[1::2]).tolist() == [
        Entry.PRESENT,
        Entry.SWAP,
        Entry.FILE_PAGE,
    ]


def test_no_words_no_entries() -> None:
    assert decode_entries(words()).tolist() == []


def test_decode_leaves_the_words_alone() -> None:
    given = words(*(word for _, word, _ in ENTRIES))
    given.flags.writeable = False
    decode_entries(given)


def test_swap_fields() -> None:
    found = decode_swap(
        words(swap(3, 13825), swap(31, SLOT_MAX), swap(0, 1) | GUARD | EXCLUSIVE)
    )
    assert found.area.tolist() == [3, 31, 0]
    assert found.slot.tolist() == [13825, SLOT_MAX, 1]
    assert (found.area.dtype, found.slot.dtype) == (np.uint8, np.uint64)


@pytest.mark.parametrize("word", [0, PRESENT | 5])
def test_swap_fields_of_a_page_are_refused(word: int) -> None:
    with pytest.raises(ValueError, match="PM_SWAP"):
        decode_swap(words(swap(0, 1), word))


def test_pfn_holds_no_flag() -> None:
    every_flag = PRESENT | FILE | EXCLUSIVE | SOFT_DIRTY | UFFD_WP
    assert decode_pfn(words(every_flag | 0x12345, every_flag)).tolist() == [0x12345, 0]


def test_maybe_zero_page() -> None:
    rows = [
        (PRESENT, True),
        (PRESENT | 0x99, True),
        (PRESENT | SOFT_DIRTY, True),
        (PRESENT | EXCLUSIVE, False),
        (PRESENT | FILE, False),
        (swap(0, 1), False),
        (0, False),
    ]
    found = is_maybe_zero_page(words(*(word for word, _ in rows)))
    assert found.tolist() == [expected for _, expected in rows]


def test_unknown_bits_are_named_by_number() -> None:
    assert bit_names(1 << 60 | PRESENT) == ["bit 60", "present"]
    assert bit_names((1 << 55) - 1) == []
