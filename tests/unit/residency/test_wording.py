"""Words and answers in words: what must and must not be said."""

import numpy as np
import pytest

from memlens.pages.classes import Entry
from memlens.pages.decode import decode_entries
from memlens.residency.onepage import Call, Trace
from memlens.residency.wording import (
    call_answer,
    call_meaning,
    categories_meaning,
    kpage_meaning,
    word_meaning,
)

PRESENT, SWAP, FILE, GUARD, WP = 1 << 63, 1 << 62, 1 << 61, 1 << 58, 1 << 57

WORDS = [
    (PRESENT | 99, Entry.PRESENT, "a page is mapped"),
    (PRESENT | FILE | 99, Entry.FILE_PAGE, "the object's own"),
    (SWAP | 5 << 5 | 2, Entry.SWAP, "swap area 2, slot 5"),
    (SWAP | GUARD | 31, Entry.GUARD, "not a swapped page"),
    (SWAP | WP | 1 << 5 | 31, Entry.WP_MARKER, "not swap"),
    (SWAP | 1 << 5 | 31, Entry.POISON, "SIGBUS"),
    (SWAP | 9 << 5 | 29, Entry.TRANSIT, "migration"),
    (SWAP, Entry.HIDDEN, "hides"),
    (0, Entry.EMPTY, "ask the object"),
]


@pytest.mark.parametrize(("word", "entry", "text"), WORDS)
def test_words_mean_what_the_decoder_makes_of_them(word: int, entry: Entry, text: str) -> None:
    assert decode_entries(np.array([word], np.uint64))[0] == entry
    assert text in word_meaning(word, is_object=True)


@pytest.mark.parametrize("word", [SWAP | GUARD | 31, SWAP | WP | 63, SWAP | 63])
def test_markers_are_never_called_swapped_out(word: int) -> None:
    for is_object in (False, True):
        assert "swapped out" not in word_meaning(word, is_object)


def test_an_empty_word_means_more_for_an_object() -> None:
    assert "ask the object" in word_meaning(0, is_object=True)
    assert "never allocated" in word_meaning(0, is_object=False)


def test_evicted_is_swap_only_on_shared_memory() -> None:
    call = Call("cachestat", 4, 1, (0, 1))
    assert "on swap" in call_meaning(call, 4, "shmem")
    assert "swap" not in call_meaning(call, 4, "file")


def test_the_extent_of_the_page_counts() -> None:
    call = Call("seek", 0, 10, (0, 3, 5, 7))
    assert [call_answer(call, page) for page in (2, 3, 5, 7)] == [
        "data",
        "hole",
        "data",
        "hole",
    ]


@pytest.mark.parametrize(("page", "text"), [(22, "inside"), (23, "SIGBUS")])
def test_pages_past_the_end(page: int, text: str) -> None:
    assert text in call_meaning(Call("size", 0, 0, (23, 94208)), page, "shmem")


def test_an_empty_object_has_no_pages() -> None:
    assert call_answer(Call("size", 0, 0, (0, 0)), 0) == "0 bytes: no pages"


def test_guard_is_told_before_swapped() -> None:
    assert "guard" in categories_meaning(1 << 4 | 1 << 8)
    assert "zero page" in categories_meaning(1 << 3 | 1 << 5)


def test_frames_offered_to_the_kernel() -> None:
    anon, swapbacked = 1 << 12, 1 << 14
    assert "MADV_FREE" in kpage_meaning(anon)
    assert kpage_meaning(anon | swapbacked) == "anonymous memory"


def test_a_trace_keeps_repeated_calls_once_and_refusals_always() -> None:
    trace = Trace()
    for _ in range(3):
        trace.add("mincore", 8, 1, (1,))
    trace.add("cachestat", 0, 1, "Operation not permitted")
    trace.add("seek", 0, 4, ())
    calls = trace.of_page(8)
    assert [call.name for call in calls] == ["mincore", "cachestat"]
    assert trace.repeats[calls[0]] == 3
