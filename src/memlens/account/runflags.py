"""Flags of the pages that pagemap words name, read by spans of frames."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile
from memlens.kernel.kpagebatch import GAP_PFNS, read_spans
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.frameruns import (
    FrameRuns,
    FrameSpans,
    expand,
    find_gaps,
    find_runs,
    find_spans,
)
from memlens.pages.wordcounts import WordCounts


class RunFlags(NamedTuple):
    """
    Flags of frames, and the runs of pages that map them.

    :param words: of the spans, one after the other, uint64; good until the next read.
    """

    runs: FrameRuns
    spans: FrameSpans
    words: NDArray[np.uint64]

    def by_page(self, pages: int) -> NDArray[np.uint64]:
        """
        Return the flags of each page, ``(pages,)`` uint64, 0 for those without a frame.

        :param pages: how many words there were.
        """
        flags = np.zeros(pages, np.uint64)
        places = expand(self.runs.place, self.runs.pages)
        flags[places] = self.words[expand(self.spans.offsets, self.runs.pages)]
        return flags

    def count_into(self, counts: WordCounts) -> None:
        """Count each page with its flags and what pagemap says of it."""
        runs, spans = self.runs, self.spans
        if not len(runs.high):
            return
        high = runs.high & PAGEMAP_PART
        if spans.is_plain and bool((high == high[0]).all()):
            counts.add(self.words, 1, high[0])
            if len(gaps := find_gaps(runs, spans)):
                counts.add(self.words[gaps], -1, high[0])
            return
        flags = self.words[expand(spans.offsets, runs.pages)]
        counts.add(join_words(flags, np.repeat(high, runs.pages)))


class RunReader:
    """
    Reads flags into memory of its own, which it uses again: fresh memory costs faults.

    :param file: kpageflags, open; it stays open.
    """

    def __init__(self, file: KpageFile) -> None:
        self.file = file
        self._buffer = np.empty(0, np.uint64)

    def read(self, words: NDArray[np.uint64]) -> RunFlags:
        """
        Return the flags of the pages that are present.

        :param words: pagemap words, ``(n,)`` uint64.
        :raises MemlensError: if kpageflags cannot be read.
        """
        runs = find_runs(words)
        spans = find_spans(runs, GAP_PFNS)
        size = int(spans.begins[-1])
        if size > len(self._buffer):
            self._buffer = np.empty(size * 5 // 4, np.uint64)
        found = self._buffer[:size]
        read_spans(self.file, spans.firsts, spans.begins, found)
        return RunFlags(runs, spans, found)
