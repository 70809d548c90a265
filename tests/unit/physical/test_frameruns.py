"""Runs and spans of frames equal what one page at a time gives."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.bits import PM_PRESENT
from memlens.physical.runflags import FrameRuns, expand, find_runs, find_spans, join_runs

# A hidden frame reads 0, and then so do all; 1 beside it is no frame of a process.
FRAME = st.integers(2, 60)
PRESENT = 1 << 63
EXCLUSIVE = 1 << 56
# Absent, swapped, hidden, and present pages; frames close enough to meet again and again.
WORD = st.one_of(
    st.just(0),
    st.just(1 << 62 | 5 << 5),
    st.just(PRESENT),
    FRAME.map(lambda frame: PRESENT | frame),
    FRAME.map(lambda frame: PRESENT | EXCLUSIVE | frame),
)
RISING = st.tuples(FRAME, st.integers(1, 9)).map(
    lambda row: [PRESENT | row[0] + page for page in range(row[1])]
)
WORDS = st.lists(st.one_of(WORD.map(lambda word: [word]), RISING)).map(
    lambda parts: [word for part in parts for word in part]
)


def frame_of(word: int) -> int:
    return word & ((1 << 55) - 1) if word >> 63 else 0


@given(WORDS)
def test_runs_hold_every_page_with_a_frame_once(words: list[int]) -> None:
    runs = find_runs(np.array(words, np.uint64))
    places = expand(runs.place, runs.pages)
    pfns = expand(runs.pfn, runs.pages)
    high = np.repeat(runs.high, runs.pages)
    found = {
        int(place): (int(pfn), int(bits))
        for place, pfn, bits in zip(places, pfns, high, strict=True)
    }
    assert len(found) == len(places)
    assert found == {
        place: (frame_of(word), word & ~((1 << 55) - 1))
        for place, word in enumerate(words)
        if frame_of(word)
    }
    assert (np.diff(runs.pfn) >= 0).all()
    assert (runs.high >= PM_PRESENT).all()


@given(WORDS, st.integers(0, 8))
def test_spans_hold_the_frame_of_every_page(words: list[int], gap: int) -> None:
    runs = find_runs(np.array(words, np.uint64))
    spans = find_spans(runs, gap)
    read = expand(spans.firsts, np.diff(spans.begins))
    at = read[expand(spans.offsets, runs.pages)]
    pfns = expand(runs.pfn, runs.pages)
    assert at.tolist() == pfns.tolist()
    # Each frame is read once, and no gap is longer than allowed.
    assert (np.diff(read) > 0).all()
    distinct = np.unique(pfns)
    assert spans.is_plain == (len(distinct) == len(pfns))
    assert len(read) <= len(distinct) + gap * max(len(distinct) - 1, 0)


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_joined_runs_are_those_of_all_words(parts: list[list[int]]) -> None:
    arrays = [np.array(words, np.uint64) for words in parts]
    runs = join_runs([find_runs(words) for words in arrays], [len(words) for words in parts])
    assert (np.diff(runs.pfn) >= 0).all()
    assert pages_of(runs) == pages_of(find_runs(np.concatenate(arrays)))


def pages_of(runs: FrameRuns) -> list[tuple[int, int, int]]:
    """Return place, frame and upper bits of every page of some runs."""
    columns = (
        expand(runs.place, runs.pages),
        expand(runs.pfn, runs.pages),
        np.repeat(runs.high, runs.pages),
    )
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_expand_of_nothing_is_nothing() -> None:
    assert len(expand(np.empty(0, np.int64), np.empty(0, np.int64))) == 0
