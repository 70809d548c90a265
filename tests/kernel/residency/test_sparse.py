"""Shared memory that holds little of what it reserves: every page of it, asked in any way."""

from collections import Counter

import numpy as np
import pytest

from memlens import PageClass, map_process
from tests.kernel.support.driver import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_SHARED,
    target,
)

PAGES = 1 << 18
STEP = 997
P = PageClass


@pytest.mark.parametrize("disabled", ["", "cachewalk"])
@pytest.mark.parametrize("has_others", [False, True])
@pytest.mark.parametrize("swap", ["none", "zram"], indirect=True)
def test_what_little_there_is_is_found(
    swap: str, has_others: bool, disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    expected = np.full(PAGES, P.NONE, np.uint8)
    with target() as driven:
        start = driven.mmap(PAGES, flags=MAP_SHARED | MAP_ANONYMOUS)
        pages = range(0, PAGES, STEP)
        driven.poke(start, pages)
        expected[pages] = P.PRESENT
        if has_others:
            unmapped = pages[1::3]
            driven.madvise(start, unmapped, MADV_DONTNEED)
            expected[unmapped] = P.CACHED
        if swap != "none":
            out = pages[::3]
            driven.madvise(start, out, MADV_PAGEOUT)
            expected[out] = P.SWAPPED
        (found,) = (row for row in map_process(driven.pid).each if row.start == start)
    classes = found.classes()
    moved = np.flatnonzero(classes != expected)
    assert not len(moved), Counter(zip(expected[moved], classes[moved], strict=True))
