"""Flags of the pages that pagemap words name, read by spans of frames."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_spans
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.frameruns import FrameRuns, FrameSpans, expand, find_runs, find_spans
from memlens.pages.wordcounts import WordCounts

# Reading over a gap of so many frames costs less than another read: threads that read side
# by side wait for each other after each.
_GAP_PFNS = 32

# Reads shorter than this on average are not worth a second thread: it would wait for the
# first, which does in Python what is between two reads, longer than a read takes.
_SPAN_PFNS = 64

# Threads share the work in parts of so many frames.
_PART_PFNS = 1 << 16


class ReadBuffer:
    """Memory that is used again and again: fresh memory costs faults."""

    def __init__(self) -> None:
        self._words = np.empty(0, np.uint64)

    def take(self, size: int) -> NDArray[np.uint64]:
        """Return room for so many words; what was taken before is gone."""
        if size > len(self._words):
            self._words = np.empty(size * 5 // 4, np.uint64)
        return self._words[:size]


class RunFlags(NamedTuple):
    """
    Flags of frames, and the runs of pages that map them.

    :param words: of the spans, one after the other, uint64; good until the buffer is taken
        again.
    """

    runs: FrameRuns
    spans: FrameSpans
    words: NDArray[np.uint64]

    @classmethod
    def reserve(cls, runs: FrameRuns, buffer: ReadBuffer) -> "RunFlags":
        """Return room for the flags of these runs, not read yet."""
        spans = find_spans(runs, _GAP_PFNS)
        return cls(runs, spans, buffer.take(int(spans.begins[-1])))

    @property
    def parts(self) -> int:
        """Return in how many parts to read and to count."""
        return -(-len(self.words) // _PART_PFNS)

    @property
    def is_scattered(self) -> bool:
        """Return whether the frames lie so that one thread reads them as fast as several."""
        return len(self.words) < _SPAN_PFNS * len(self.spans.firsts)

    def read_part(self, file: KpageFile, part: int) -> None:
        """
        Read the flags of one of the parts.

        :raises MemlensError: if kpageflags cannot be read.
        """
        low = part * _PART_PFNS
        high = min(low + _PART_PFNS, len(self.words))
        begins = self.spans.begins
        first = int(np.searchsorted(begins, low, "right")) - 1
        stop = int(np.searchsorted(begins, high, "left"))
        firsts = self.spans.firsts[first:stop].copy()
        firsts[0] += low - begins[first]
        inside = np.clip(begins[first : stop + 1], low, high) - low
        read_spans(file, firsts, inside, self.words[low:high])

    def count_part(self, counts: WordCounts, part: int) -> FrameRuns:
        """Count the pages of the runs that begin in one of the parts; return these runs."""
        offsets = self.spans.offsets
        low, high = np.searchsorted(offsets, [part * _PART_PFNS, (part + 1) * _PART_PFNS])
        place, pfn, pages, bits = self.runs
        runs = FrameRuns(place[low:high], pfn[low:high], pages[low:high], bits[low:high])
        if len(runs.pfn):
            self._count(runs, offsets[low:high], counts)
        return runs

    def by_page(self, pages: int) -> NDArray[np.uint64]:
        """
        Return the flags of each page, ``(pages,)`` uint64, 0 for those without a frame.

        :param pages: how many words there were.
        """
        flags = np.zeros(pages, np.uint64)
        places = expand(self.runs.place, self.runs.pages)
        flags[places] = self.words[expand(self.spans.offsets, self.runs.pages)]
        return flags

    def _count(self, runs: FrameRuns, offsets: NDArray[np.int64], counts: WordCounts) -> None:
        high = runs.high & PAGEMAP_PART
        if not self.spans.is_plain or bool((high != high[0]).any()):
            flags = self.words[expand(offsets, runs.pages)]
            counts.add(join_words(flags, np.repeat(high, runs.pages)))
            return
        # No frame twice: all that was read is counted, but for what was read over.
        stops = offsets + runs.pages
        counts.add(self.words[offsets[0] : stops[-1]], 1, high[0])
        has_gap = np.flatnonzero(offsets[1:] > stops[:-1])
        if len(has_gap):
            gaps = expand(stops[has_gap], offsets[has_gap + 1] - stops[has_gap])
            counts.add(self.words[gaps], -1, high[0])


class RunReader:
    """
    Reads flags into memory of its own.

    :param file: kpageflags, open; it stays open.
    """

    def __init__(self, file: KpageFile) -> None:
        self.file = file
        self._buffer = ReadBuffer()

    def read(self, words: NDArray[np.uint64]) -> RunFlags:
        """
        Return the flags of the pages that are present.

        :param words: pagemap words, ``(n,)`` uint64.
        :raises MemlensError: if kpageflags cannot be read.
        """
        found = RunFlags.reserve(find_runs(words), self._buffer)
        for part in range(found.parts):
            found.read_part(self.file, part)
        return found
