"""Evidence of objects, as arrays and runs."""

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import Evidence, Verdict
from memlens.pages.runs import Runs, clip_runs, concat_runs, one_run, select_runs


def seek_evidence(first: int, stop: int, extents: NDArray[np.int64]) -> NDArray[np.uint8]:
    """
    Return ``DATA`` or ``HOLE`` for each page, ``(stop - first,)`` uint8.

    >>> seek_evidence(4, 7, np.array([[0, 5], [6, 9]])).tolist()
    [1, 2, 1]

    :param extents: where SEEK_DATA says that there is data, ``(n, 2)`` int64, in order.
    """
    low = int(np.searchsorted(extents[:, 1], first, side="right"))
    high = int(np.searchsorted(extents[:, 0], stop, side="left"))
    edges = np.clip(extents[low:high], first, stop) - first
    steps = np.zeros(stop - first + 1, np.int8)
    steps[edges[:, 0]] += 1
    # Extents do not touch, so that no end is another one's beginning.
    steps[edges[:, 1]] -= 1
    is_data = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    return np.where(is_data, np.uint8(Evidence.DATA), np.uint8(Evidence.HOLE))


def seek_alike(first: int, stop: int, extents: NDArray[np.int64]) -> int | None:
    """
    Return ``DATA`` or ``HOLE`` if that holds for all of a range, None if pages differ.

    >>> seek_alike(1, 5, np.array([[0, 5], [6, 9]])), seek_alike(5, 6, np.array([[0, 5]]))
    (1, 2)

    :param extents: as of ``seek_evidence``.
    """
    low = int(np.searchsorted(extents[:, 1], first, side="right"))
    if low == len(extents) or extents[low, 0] >= stop:
        return _HOLE
    return _DATA if extents[low, 0] <= first and stop <= extents[low, 1] else None


def split_gaps(
    first: int, stop: int, extents: NDArray[np.int64], gap_pages: int
) -> list[tuple[int, int, bool]]:
    """
    Cut a range into stretches with data, and the wide holes between them.

    >>> split_gaps(0, 9, np.array([[0, 1], [2, 3]]), gap_pages=4)
    [(0, 3, False), (3, 9, True)]

    :param extents: where there is data, ``(n, 2)`` int64, inside the range.
    :param gap_pages: holes of so many pages or more are wide.
    :return: first page, page after the last, and whether it is a hole.
    """
    parts = []
    position = first
    edges = np.concatenate([[first], extents.ravel(), [stop]])
    gaps = edges.reshape(-1, 2)
    for begin, end in gaps[gaps[:, 1] - gaps[:, 0] >= gap_pages].tolist():
        if begin > position:
            parts.append((position, begin, False))
        parts.append((begin, end, True))
        position = end
    if position < stop:
        parts.append((position, stop, False))
    return parts


def unsettled(
    before: Runs, again: Runs, verdicts: NDArray[np.uint8], is_odd: NDArray[np.bool_]
) -> Runs:
    """
    Return the runs of odd evidence that means what it did not before, or contradicts itself.

    :param before: runs of ``Evidence`` of the look before.
    :param again: those of this look.
    :param verdicts: what each evidence means, ``(256,)`` uint8.
    :param is_odd: whether it needs a second look, ``(256,)`` bool.
    """
    odd = select_runs(again, is_odd[again.value])
    parts = []
    for first, pages, value in odd:
        inside = clip_runs(before, first, first + pages)
        repeated = int(inside.pages[verdicts[inside.value] == verdicts[value]].sum())
        is_again = verdicts[value] == Verdict.AGAIN
        if is_again or repeated < pages:
            parts.append(one_run(first, pages, value))
    return concat_runs(parts)


def guess_evidence(
    evidence: NDArray[np.uint8], is_shmem: bool, has_seek: bool
) -> NDArray[np.uint8]:
    """
    Return what cachestat should say of each page, from mincore and SEEK_DATA.

    Let c and e be the sums that cachestat gives for a block.  With SEEK_DATA the
    guess counts as cached what is data and resident (cached + swap-cached pages) and
    as evicted what is data and absent (swapped); really c = cached + preallocated
    and e = swapped + swap-cached.  If both sums agree, then there are no
    swap-cached pages, hence no preallocated ones: the guess holds page by page.

    :param evidence: what mincore said, and SEEK_DATA if ``has_seek``.
    """
    is_resident = (evidence & np.uint8(_RESIDENT)) != 0
    guess = np.full(len(evidence), _NEITHER, np.uint8)
    if not is_shmem or not has_seek:
        # Without SEEK_DATA equal sums prove nothing unless nothing is on swap.
        guess[is_resident] = _CACHE
        return guess
    is_data = (evidence & np.uint8(_DATA)) != 0
    guess[is_data & is_resident] = _CACHE
    guess[is_data & ~is_resident] = _EVICTED
    guess[~is_data & is_resident] = 0
    return guess


def sums_agree(guess: NDArray[np.uint8], cached: int, evicted: int, is_shmem: bool) -> bool:
    """
    Return whether guesses add up to what cachestat says of the block.

    :param guess: as of ``guess_evidence``.
    """
    if not guess.all():
        return False
    guessed_evicted = int((guess == _EVICTED).sum())
    if not is_shmem:
        evicted = guessed_evicted = 0
    return int((guess == _CACHE).sum()) == cached and guessed_evicted == evicted


# Members of enumerations are slow to come by.
_DATA, _HOLE, _RESIDENT = int(Evidence.DATA), int(Evidence.HOLE), int(Evidence.RESIDENT)
_CACHE, _EVICTED, _NEITHER = (
    int(kind) for kind in (Evidence.CACHE, Evidence.EVICTED, Evidence.NEITHER)
)
