"""
Pagemap words -> runs of pages on consecutive frames, and the spans of frames to ask for.

Neighbouring pages mostly have neighbouring frames, so that their words count up by one.
Sorting such runs takes a fiftieth of what sorting the pages would.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.bits import PM_PFN, PM_PRESENT

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
