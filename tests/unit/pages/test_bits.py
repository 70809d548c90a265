"""The table of bits against the kernel's documentation, written out a second time."""

import re

from memlens.pages import bits
from memlens.pages.bits import PAGEMAP_BITS

# Documentation/admin-guide/mm/pagemap.rst, v6.18.
DOCUMENTED = {
    "PM_SOFT_DIRTY": 55,
    "PM_MMAP_EXCLUSIVE": 56,
    "PM_UFFD_WP": 57,
    "PM_GUARD_REGION": 58,
    "PM_FILE": 61,
    "PM_SWAP": 62,
    "PM_PRESENT": 63,
}


def test_bits_are_those_of_the_documentation() -> None:
    assert {row.symbol: row.bit for row in PAGEMAP_BITS} == DOCUMENTED


def test_masks_agree_with_the_table() -> None:
    for row in PAGEMAP_BITS:
        assert int(getattr(bits, row.symbol)) == 1 << row.bit


def test_fields_do_not_reach_the_flags() -> None:
    assert int(bits.PM_PFN) == (1 << 55) - 1
    assert int(bits.PM_SWAP_AREA) | int(bits.PM_SWAP_SLOT) == int(bits.PM_PFN)
    assert int(bits.PM_SWAP_AREA) & int(bits.PM_SWAP_SLOT) == 0
    assert 1 << int(bits.PM_SWAP_SLOT_SHIFT) == int(bits.PM_SWAP_AREA) + 1


def test_rows_are_in_order_and_named_once() -> None:
    assert [row.bit for row in PAGEMAP_BITS] == sorted({row.bit for row in PAGEMAP_BITS})
    assert len({row.name for row in PAGEMAP_BITS}) == len(PAGEMAP_BITS)


def test_rows_say_since_when() -> None:
    assert all(re.fullmatch(r"\d+\.\d+(\.\d+)?", row.since) for row in PAGEMAP_BITS)
