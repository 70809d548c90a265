"""Decoding whole arrays equals decoding one word at a time, in plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.classes import Entry
from memlens.pages.decode import decode_entries, decode_pfn, decode_swap, is_maybe_zero_page

flags = st.sets(st.integers(55, 63)).map(lambda bits: sum(1 << bit for bit in bits))
# Both ends of the area's numbers matter, and so does a field that is hidden.
fields = st.just(0) | st.integers(0, 31) | st.integers(0, (1 << 55) - 1)
words = st.lists(st.builds(lambda high, low: high | low, flags, fields), max_size=30)


def entry_of(word: int) -> Entry:
    """Return the entry of one word, as Documentation/admin-guide/mm/pagemap.rst reads."""

    def has(bit: int) -> bool:
        return bool(word >> bit & 1)

    area, field = word & 31, word & ((1 << 55) - 1)
    if has(62):
        if has(58):
            return Entry.GUARD
        if field == 0:
            if has(61):
                return Entry.TRANSIT
            return Entry.HIDDEN_WP if has(57) else Entry.HIDDEN
        if area == 31:
            return Entry.WP_MARKER if has(57) else Entry.POISON
        return Entry.SWAP if area < 23 else Entry.TRANSIT
    if has(63):
        return Entry.FILE_PAGE if has(61) else Entry.PRESENT
    return Entry.WP_MARKER if has(57) else Entry.EMPTY


@given(words)
def test_entries_equal_one_word_at_a_time(given_words: list[int]) -> None:
    found = decode_entries(np.array(given_words, np.uint64))
    assert [Entry(value) for value in found] == [entry_of(word) for word in given_words]


@given(words)
def test_swap_fields_rebuild_the_word(given_words: list[int]) -> None:
    swapped = [word | 1 << 62 for word in given_words]
    area, slot = decode_swap(np.array(swapped, np.uint64))
    rebuilt = [a | s << 5 for a, s in zip(area.tolist(), slot.tolist(), strict=True)]
    assert rebuilt == [word & ((1 << 55) - 1) for word in swapped]


@given(words)
def test_pfns_and_flags_make_up_the_word(given_words: list[int]) -> None:
    pfns = decode_pfn(np.array(given_words, np.uint64)).tolist()
    assert [word - pfn for word, pfn in zip(given_words, pfns, strict=True)] == [
        word >> 55 << 55 for word in given_words
    ]


@given(words)
def test_maybe_zero_page_equals_one_word_at_a_time(given_words: list[int]) -> None:
    found = is_maybe_zero_page(np.array(given_words, np.uint64)).tolist()
    assert found == [
        bool(word >> 63 & 1) and not word >> 61 & 1 and not word >> 56 & 1
        for word in given_words
    ]
