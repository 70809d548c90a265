"""Counting by one multiplication equals counting by a dictionary."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.wordcounts import WordCounts

WORD = st.one_of(st.integers(0, 5), st.integers(0, (1 << 64) - 1))


def as_dict(counts: WordCounts) -> dict[int, int]:
    words, pages = counts.totals()
    return dict(zip(words.tolist(), pages.tolist(), strict=True))


@given(st.lists(st.lists(st.tuples(WORD, st.integers(1, 9)))))
def test_every_word_is_counted(pieces: list[list[tuple[int, int]]]) -> None:
    counts, wanted = WordCounts(), Counter[int]()
    for piece in pieces:
        words = [word for word, pages in piece for _ in range(pages)]
        counts.add(np.array(words, np.uint64))
        wanted.update(words)
    assert as_dict(counts) == dict(wanted)


@given(st.lists(WORD), st.lists(WORD))
def test_adding_and_taking_away(one: list[int], other: list[int]) -> None:
    counts = WordCounts()
    counts.add(np.array(one, np.uint64))
    counts.add(np.array(other, np.uint64))
    assert as_dict(counts) == dict(Counter(one) + Counter(other))
    counts.add(np.array(other, np.uint64), -1)
    assert as_dict(counts) == dict(Counter(one))


def test_many_distinct_words() -> None:
    words = np.random.default_rng(7).integers(0, 1 << 63, 3000, np.uint64)
    counts = WordCounts()
    counts.add(np.repeat(words, 3))
    assert as_dict(counts) == dict.fromkeys(words.tolist(), 3)
