"""
Flags of the frames that pagemap words name, read and counted by runs.

Neighbouring pages mostly have neighbouring frames, so that their words count up by one.
Sorting such runs takes a fiftieth of what sorting the pages would.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile, read_spans
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.wordcounts import WordCounts

# Reading over a gap of so many frames costs less than another read: threads that read side
# by side wait for each other after each.
_GAP_PFNS = 32

# Reads shorter than this on average are not worth a second thread: it would wait for the
# first, which does in Python what is between two reads, longer than a read takes.
_SPAN_PFNS = 64

# Threads share the work in parts of so many frames.
_PART_PFNS = 1 << 16


_Ints = NDArray[np.int64]


class FrameRuns(NamedTuple):
    """
    Runs of present pages whose words count up by one, sorted by frame, ``(n,)`` each.

    :param place: index of the first page among the words, int64.
    :param pfn: its frame, int64.
    :param pages: int64.
    :param high: bits 55 to 63 of the words of the run, where they are, uint64.
    """

    place: _Ints
    pfn: _Ints
    pages: _Ints
    high: NDArray[np.uint64]


class FrameSpans(NamedTuple):
    """
    Ranges of frames that hold all runs, gaps read over, and where each run is in them.

    :param firsts: first frame of each span, ``(m,)`` int64.
    :param begins: where each span begins in what is read, and the end, ``(m + 1,)``.
    :param offsets: where each run begins in what is read, ``(n,)`` int64.
    :param is_plain: whether no two runs share a frame.
    """

    firsts: _Ints
    begins: _Ints
    offsets: _Ints
    is_plain: bool


def find_runs(words: NDArray[np.uint64]) -> FrameRuns:
    """
    Return the runs of present pages that have a frame.

    >>> find_runs(np.array([1 << 63 | 9, 0, 1 << 63 | 4, 1 << 63 | 5], np.uint64)).pfn
    array([4, 9])

    :param words: pagemap words, ``(n,)`` uint64.

    Frame 0 is never given to a process, and is how a hidden frame reads: it is left out.
    """
    if not len(words):
        return FrameRuns(*(np.empty(0, np.int64),) * 3, np.empty(0, np.uint64))
    heads = np.append(0, np.flatnonzero(words[1:] - words[:-1] != 1) + 1)
    pages = np.diff(heads, append=len(words))
    found = words[heads]
    pfns = (found & PM_PFN).view(np.int64)
    has_frame = np.flatnonzero((found >= PM_PRESENT) & (pfns != 0))
    order = has_frame[np.argsort(pfns[has_frame])]
    return FrameRuns(heads[order], pfns[order], pages[order], found[order] & ~PM_PFN)


def join_runs(parts: Sequence[FrameRuns], pages: Sequence[int]) -> FrameRuns:
    """
    Return the runs of words that stand one after the other as one.

    :param parts: as ``find_runs`` gives them for some words each.
    :param pages: how many words these were.
    """
    if len(parts) == 1:
        return parts[0]
    begins = np.append(0, np.cumsum(pages))
    places = [part.place + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    pfns = np.concatenate([part.pfn for part in parts])
    # The parts are sorted already, which this kind of sort makes use of.
    order = np.argsort(pfns, kind="stable")
    return FrameRuns(
        np.concatenate(places)[order],
        pfns[order],
        np.concatenate([part.pages for part in parts])[order],
        np.concatenate([part.high for part in parts])[order],
    )


def find_spans(runs: FrameRuns, gap_pfns: int) -> FrameSpans:
    """
    Return the spans of frames to read.

    :param gap_pfns: so many frames between two runs are read over.
    """
    if not len(runs.pfn):
        empty = np.empty(0, np.int64)
        return FrameSpans(empty, np.zeros(1, np.int64), empty, is_plain=True)
    stops = np.maximum.accumulate(runs.pfn + runs.pages)
    gaps = runs.pfn[1:] - stops[:-1]
    is_head = np.append(True, gaps > gap_pfns)
    heads = np.flatnonzero(is_head)
    firsts = runs.pfn[heads]
    lasts = stops[np.append(heads[1:], len(stops)) - 1]
    begins = np.append(0, np.cumsum(lasts - firsts))
    span = np.cumsum(is_head) - 1
    offsets = runs.pfn - (firsts - begins[:-1])[span]
    return FrameSpans(firsts, begins, offsets, bool((gaps >= 0).all()))


def expand(firsts: _Ints, lengths: _Ints) -> _Ints:
    """
    Return the numbers of ranges one after the other.

    >>> expand(np.array([5, 90]), np.array([3, 2])).tolist()
    [5, 6, 7, 90, 91]
    """
    ends = np.cumsum(lengths)
    if not len(ends):
        return np.empty(0, np.int64)
    return np.repeat(firsts - (ends - lengths), lengths) + np.arange(ends[-1])


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
    def read(cls, words: NDArray[np.uint64], file: KpageFile, buffer: ReadBuffer) -> Self:
        """
        Return the flags of the pages that are present.

        :param words: pagemap words, ``(n,)`` uint64.
        :raises MemlensError: if kpageflags cannot be read.
        """
        found = cls.reserve(find_runs(words), buffer)
        for part in range(found.parts):
            found.read_part(file, part)
        return found

    @classmethod
    def reserve(cls, runs: FrameRuns, buffer: ReadBuffer) -> Self:
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
