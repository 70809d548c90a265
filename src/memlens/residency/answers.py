"""What an object says of its pages, as runs of verdicts."""

import errno
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.objects.backing import Backing, is_all_data
from memlens.pages.arrays import look_up
from memlens.pages.classes import Evidence, PageClass, Reason, object_verdicts
from memlens.pages.evidence import (
    guess_evidence,
    seek_alike,
    seek_evidence,
    split_gaps,
    sums_agree,
    unsettled,
)
from memlens.pages.runs import (
    Runs,
    concat_runs,
    decode_runs,
    encode_runs,
    fill_runs,
    merge_runs,
    one_run,
    replace_runs,
    select_runs,
    shift_runs,
    window_runs,
)
from memlens.residency.walk import ObjectWalk, Walking
from memlens.scan.machine import Machine

# Pages that are looked at densely at a time.
PIECE = 1 << 16

# cachestat confirms what mincore and SEEK_DATA said in blocks of this many pages.
_BLOCK = 512

# An object is sparse if it holds fewer pages than one in so many, and no more than this.
_SPARSE, _SPARSE_MOST = 16, 1 << 20

# Looks at contradictory evidence before it is called changing.
TRIES = 4
_NO_EXTENTS = np.empty((0, 2), np.int64)

# Members of enumerations are slow to come by.
_DATA, _HOLE = int(Evidence.DATA), int(Evidence.HOLE)
_RESIDENT, _ABSENT = int(Evidence.RESIDENT), int(Evidence.ABSENT)
_CACHE, _EVICTED = int(Evidence.CACHE), int(Evidence.EVICTED)
_NEITHER = int(Evidence.NEITHER)
_OPEN_HOLE = int(Reason.NONE_OR_PREALLOCATED)
_CACHED_HOLE = np.uint8(_CACHE | _HOLE)


@dataclass(slots=True)
class ObjectReader:
    """
    Asks one object about its pages.

    :param backing: the open object.
    :param machine: says which interfaces may be used, and when to stop.
    :param walking: the page-cache walk, None to do without.
    :param walk: that of this object.
    """

    backing: Backing
    machine: Machine
    walking: Walking | None = None
    walk: ObjectWalk | None = field(default=None, init=False)
    has_cachestat: bool = field(init=False)
    is_honest: bool = field(init=False)
    _has_seek: bool = field(init=False)
    _has_mincore: bool = field(init=False)
    _has_parts: bool = field(init=False)

    def __post_init__(self) -> None:
        kind = self.backing.kind
        self.has_cachestat = self.machine.may("cachestat")
        self.is_honest = self._probe_honest()
        # On a stacked file system cachestat looks at the upper, empty page cache.
        self.has_cachestat = self.has_cachestat and kind not in ("overlay", "hugetlb")
        # On ramfs all is data; a block device has no holes.
        self._has_seek = self.machine.may("seek_data") and kind not in (
            "ramfs",
            "block",
        )
        is_allowed = self.machine.may("mincore") and self.backing.is_quiet()
        self._has_mincore = is_allowed and self.is_honest
        self._has_parts = not self.has_cachestat and self.backing.has_part_pages()
        if self.walking is not None and kind != "overlay":
            self.walk = ObjectWalk(
                self.walking, self.backing, self._has_seek, self._has_mincore
            )

    def verdicts(self, first: int, stop: int) -> Runs:
        """
        Return a verdict for every page of a range of the object.

        :param first: first page of the object.
        :param stop: page after the last.
        :return: runs of ``PageClass``, ``Verdict`` or ``Reason`` values.
        :raises OSError: if the object cannot be asked at all.
        """
        if not self.is_honest:
            return self._end_only(first, stop)
        verdicts, is_odd = object_verdicts(self.backing.kind)
        evidence = self._without_passing(self._look(first, stop))
        found = Runs(evidence.first, evidence.pages, verdicts[evidence.value])
        odd = select_runs(evidence, is_odd[evidence.value])
        for _ in range(TRIES):
            if not len(odd):
                return concat_runs([found])
            found, odd = self._look_again(found, odd, verdicts, is_odd)
        return replace_runs(
            found, Runs(odd.first, odd.pages, np.full(len(odd), Reason.CHANGING, np.uint8))
        )

    def dense_verdicts(self, first: int, stop: int) -> int | NDArray[np.uint8]:
        """
        Return the verdict of all pages of a range if they are alike, else that of each.

        Meant for ranges of at most ``PIECE`` pages in which page tables change often.

        :raises OSError: if the object cannot be asked at all.
        """
        is_inside = stop <= self.backing.size_pages()
        is_walked = self.walking is not None and (self.walking.is_eager or self._has_parts)
        is_dense = is_inside and self.is_honest and not is_walked
        if not is_dense or self.backing.kind == "hugetlb":
            return self.settle(self._verdicts_of_each(first, stop))
        verdicts, is_odd = object_verdicts(self.backing.kind)
        evidence = self._look_piece(first, stop, self._extents(first, stop))
        if isinstance(evidence, int):
            if not is_odd[evidence] and verdicts[evidence] != _OPEN_HOLE:
                return int(verdicts[evidence])
            evidence = np.full(stop - first, evidence, np.uint8)
        found = look_up(verdicts, evidence)
        where = is_odd[evidence]
        if where.any():
            runs = encode_runs(evidence)
            odd = select_runs(runs, is_odd[runs.value])
            for begin, end in window_runs(odd, gap=_BLOCK):
                found[begin:end] = self._verdicts_of_each(first + begin, first + end)
        return self.settle(found)

    def settled_verdicts(self, windows: list[tuple[int, int]]) -> Runs:
        """
        Return a verdict for every page of some ranges, in order.

        :raises OSError: if the object cannot be asked at all.
        """
        first, stop = windows[0]
        if len(windows) == 1 and stop - first <= PIECE:
            return _as_runs(self.dense_verdicts(first, stop), first, stop)
        found = concat_runs([self.verdicts(*window) for window in windows])
        return Runs(found.first, found.pages, self.settle(found.value))

    def _verdicts_of_each(self, first: int, stop: int) -> NDArray[np.uint8]:
        return decode_runs(shift_runs(self.verdicts(first, stop), -first), stop - first)

    def settle(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return verdicts with those settled that the object as a whole decides."""
        if self.backing.kind != "shmem" or not self._has_seek:
            return values
        is_open = values == _OPEN_HOLE
        if not is_open.any() or not is_all_data(self.backing):
            return values
        return np.where(is_open, np.uint8(PageClass.NONE), values)

    def count_sparse(self, stop: int) -> int | None:
        """
        Return how many pages a sparse object holds, in RAM or on swap.

        None if it is not sparse, ends before page ``stop``, or cannot be asked.
        """
        pages, held = self.backing.size_pages(), self.backing.allocated_pages()
        is_sparse = held <= min(pages // _SPARSE, _SPARSE_MOST) and self.is_honest
        return held if is_sparse and stop <= pages else None

    def is_within(self, first: int, stop: int) -> bool:
        """Return whether a range is all of the object."""
        return first == 0 and stop == self.backing.size_pages()

    def walked_verdicts(self, first: int, stop: int) -> Runs | None:
        """Return what the walk says of pages inside the object, None if it does not."""
        if self.walk is None:
            return None
        evidence = self.walk.walk(first, stop)
        if evidence is None:
            return None
        verdicts, is_odd = object_verdicts(self.backing.kind)
        if is_odd[evidence.value].any():
            return None
        return merge_runs(Runs(evidence.first, evidence.pages, verdicts[evidence.value]))

    def is_without_swap(self) -> bool:
        """Return whether one call proves that no page of a shmem object is on swap."""
        # Asked about all there can be: some may lie beyond its end.
        can_tell = self.has_cachestat and self.is_honest
        return can_tell and self.backing.cachestat(0, 0)[1] == 0

    def _look_again(
        self,
        found: Runs,
        odd: Runs,
        verdicts: NDArray[np.uint8],
        is_odd: NDArray[np.bool_],
    ) -> tuple[Runs, Runs]:
        """Ask about odd evidence once more; what repeats itself, or is plain now, holds."""
        self.backing.forget_extent()
        looks = []
        for first, stop in window_runs(odd, gap=_BLOCK):
            self.machine.check_stop()
            looks.append(self._look(first, stop))
        again = self._without_passing(concat_runs(looks))
        found = replace_runs(found, Runs(again.first, again.pages, verdicts[again.value]))
        return found, unsettled(odd, again, verdicts, is_odd)

    def _without_passing(self, looks: Runs) -> Runs:
        """
        Return the evidence with pages marked as moving that were a hole only before.

        A page that was punched and is written again was a hole and is in the page cache,
        which is what a preallocated page looks like; that one stays both.
        """
        is_hole = (looks.value & _CACHED_HOLE) == _CACHED_HOLE
        if not is_hole.any() or not (self._has_seek and self.has_cachestat):
            return looks
        holes = select_runs(looks, is_hole)
        moving = [
            one_run(first, stop - first, Evidence.NEITHER | Evidence.DATA)
            for first, stop in window_runs(holes, gap=1)
            if not all(self.backing.is_cached_hole(first, stop) for _ in range(TRIES))
        ]
        return replace_runs(looks, concat_runs(moving))

    def _end_only(self, first: int, stop: int) -> Runs:
        end = min(max(self.backing.size_pages(), first), stop)
        table, _ = object_verdicts(self.backing.kind)
        parts = []
        if end > first:
            parts.append(one_run(first, end - first, Reason.NOT_HONEST))
        if stop > end:
            parts.append(one_run(end, stop - end, int(table[Evidence.PAST_END])))
        return concat_runs(parts)

    def _probe_honest(self) -> bool:
        """
        Return whether mincore tells the truth to this reader.

        cachestat refuses exactly where mincore lies (both ask whether the reader owns
        the file or may write it), so that it is the test; without it, may we write?
        """
        if not self.has_cachestat:
            return self.backing.is_writable
        try:
            self.backing.cachestat(0, 1)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                return False
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        return True

    def _look(self, first: int, stop: int) -> Runs:
        """Return runs of ``Evidence`` for every page of the range."""
        end = min(max(self.backing.size_pages(), first), stop)
        parts = []
        if self.backing.kind == "hugetlb":
            if end > first:
                parts.append(self._look_hugetlb(first, end))
        elif end > first:
            parts.extend(self._look_inside(first, end))
        if stop > end:
            parts.append(one_run(end, stop - end, Evidence.PAST_END))
        return concat_runs(parts)

    def _look_hugetlb(self, first: int, stop: int) -> Runs:
        """All pages of a file are there, or none, or only the walk says which."""
        allocated = self.backing.allocated_pages()
        if not allocated:
            return one_run(first, stop - first, Evidence.NEITHER)
        if allocated >= self.backing.size_pages():
            return one_run(first, stop - first, Evidence.CACHE)
        walked = None if self.walk is None else self.walk.walk(first, stop)
        return one_run(first, stop - first, Evidence(0)) if walked is None else walked

    def _look_inside(self, first: int, stop: int) -> list[Runs]:
        if self.walk is not None and self.walk.is_worth(stop - first):
            return self.walk.look(first, stop, self._ask)
        return self._ask(first, stop)

    def _ask(self, first: int, stop: int) -> list[Runs]:
        extents = self._extents(first, stop)
        if stop - first <= PIECE:
            return self._pieces(first, stop, extents)
        if not self._has_seek:
            # The whole is asked first and then halved, so that vast holes cost one call.
            if self.has_cachestat:
                return self._halve(first, stop, extents)
            return self._pieces(first, stop, extents)
        known = _NO_EXTENTS if extents is None else extents
        settled = self._by_sum(first, stop, known)
        if settled is not None:
            return [settled]
        parts: list[Runs] = []
        for begin, end, is_gap in split_gaps(first, stop, known, PIECE):
            if is_gap and self.has_cachestat:
                parts.extend(self._halve(begin, end, extents))
            else:
                parts.extend(self._pieces(begin, end, extents))
        return parts

    def _by_sum(self, first: int, stop: int, extents: NDArray[np.int64]) -> Runs | None:
        """Return what one sum proves: all of a shmem object's data is in the page cache."""
        if self.backing.kind != "shmem" or not self.has_cachestat:
            return None
        held, data = self.backing.allocated_pages(), extents[:, 1] - extents[:, 0]
        cached, evicted = self.backing.cachestat(first, stop - first)
        # As many pages would be there if one left and another came.
        is_same = held == self.backing.allocated_pages()
        if evicted or cached != int(data.sum()) or not is_same:
            return None
        value = np.full(len(extents), _CACHE | _DATA, np.uint8)
        return fill_runs(Runs(extents[:, 0], data, value), first, stop, _NEITHER | _HOLE)

    def _extents(self, first: int, stop: int) -> NDArray[np.int64] | None:
        """Return where there is data, None if that cannot be asked."""
        if self.backing.kind == "block":
            return np.array([[first, stop]])
        return self.backing.data_extents(first, stop) if self._has_seek else None

    def _halve(self, first: int, stop: int, extents: NDArray[np.int64] | None) -> list[Runs]:
        """Look at a range that is likely all alike: halves are asked only if it is not."""
        self.machine.check_stop()
        if stop - first <= PIECE:
            return self._pieces(first, stop, extents)
        pure = self._pure(*self.backing.cachestat(first, stop - first), stop - first)
        if pure == _NEITHER:
            hole = 0 if extents is None else _HOLE
            return [one_run(first, stop - first, pure | hole)]
        middle = (first + stop) // 2
        return [*self._halve(first, middle, extents), *self._halve(middle, stop, extents)]

    def _pieces(self, first: int, stop: int, extents: NDArray[np.int64] | None) -> list[Runs]:
        parts = []
        for begin in range(first, stop, PIECE):
            self.machine.check_stop()
            end = min(begin + PIECE, stop)
            found = self.walk.walk(begin, end) if self.walk and self._has_parts else None
            parts.append(found or _as_runs(self._look_piece(begin, end, extents), begin, end))
        return parts

    def _look_piece(
        self, first: int, stop: int, extents: NDArray[np.int64] | None
    ) -> int | NDArray[np.uint8]:
        """Return the ``Evidence`` of all pages of a piece if they are alike, else of each."""
        pages = stop - first
        seek = 0 if extents is None else seek_alike(first, stop, extents)
        pure = None
        if self.has_cachestat:
            pure = self._pure(*self.backing.cachestat(first, pages), pages)
            is_resident_known = not self._is_mincore_wanted(pure, extents is not None)
            if pure is not None and seek is not None and is_resident_known:
                return pure | seek
        evidence = np.zeros(pages, np.uint8) if seek is None else np.full(pages, seek, np.uint8)
        if seek is None and extents is not None:
            evidence = seek_evidence(first, stop, extents)
        self._look_densely(evidence, first, pure, extents is not None)
        return evidence

    def _look_densely(
        self, evidence: NDArray[np.uint8], first: int, pure: int | None, has_seek: bool
    ) -> None:
        """Add to each page's evidence what the others say."""
        pages = len(evidence)
        if not self.has_cachestat:
            if self._has_mincore:
                evidence |= self._resident(first, pages)
            if self._has_parts:
                # mincore calls a page absent of which only some blocks were read or written.
                evidence[(evidence & np.uint8(_HOLE)) == 0] &= np.uint8(0xFF & ~_ABSENT)
            return
        if pure is not None:
            evidence |= np.uint8(pure)
            if self._is_mincore_wanted(pure, has_seek):
                evidence |= self._resident(first, pages)
            return
        guess = None
        if self._has_mincore:
            evidence |= self._resident(first, pages)
            guess = guess_evidence(evidence, self.backing.kind == "shmem", has_seek)
        for begin in range(0, pages, _BLOCK):
            self._confirm(evidence, guess, first, begin, min(begin + _BLOCK, pages))
        if guess is not None:
            self._redo_moving(evidence, first)

    def _redo_moving(self, evidence: NDArray[np.uint8], first: int) -> None:
        """
        Ask page by page where pages moved while a block was confirmed.

        One page that left and another that came leave the sums as they were.
        """
        bits = np.uint8(_RESIDENT | _ABSENT)
        again = self._resident(first, len(evidence))
        moved = np.flatnonzero((evidence & bits) != again)
        for block in dict.fromkeys((moved // _BLOCK).tolist()):
            part = slice(block * _BLOCK, min((block + 1) * _BLOCK, len(evidence)))
            evidence[part] &= np.uint8(_DATA | _HOLE)
            evidence[part] |= again[part]
            self._confirm(evidence, None, first, part.start, part.stop)

    def _is_mincore_wanted(self, pure: int | None, has_seek: bool) -> bool:
        """mincore adds the copy in the swap cache, and for SEEK_DATA if that is off."""
        if self.backing.kind != "shmem" or not self._has_mincore:
            return False
        return pure == _EVICTED or (pure == _CACHE and not has_seek)

    def _resident(self, first: int, pages: int) -> NDArray[np.uint8]:
        resident = self.backing.mincore(first, pages)
        return np.where(resident, np.uint8(_RESIDENT), np.uint8(_ABSENT))

    def _pure(self, cached: int, evicted: int, pages: int) -> int | None:
        """Return what holds for every page of a range, None if pages differ."""
        if self.backing.kind != "shmem":
            evicted = 0
        if cached == pages:
            return _CACHE
        if evicted == pages:
            return _EVICTED
        return _NEITHER if not cached and not evicted else None

    def _confirm(
        self,
        evidence: NDArray[np.uint8],
        guess: NDArray[np.uint8] | None,
        first: int,
        begin: int,
        end: int,
    ) -> None:
        """Add what cachestat says of a block: its guess if the sums agree, else halve."""
        cached, evicted = self.backing.cachestat(first + begin, end - begin)
        pure = self._pure(cached, evicted, end - begin)
        if pure is not None:
            evidence[begin:end] |= np.uint8(pure)
            return
        is_shmem = self.backing.kind == "shmem"
        if guess is not None and sums_agree(guess[begin:end], cached, evicted, is_shmem):
            evidence[begin:end] |= guess[begin:end]
            return
        middle = (begin + end) // 2
        self._confirm(evidence, guess, first, begin, middle)
        self._confirm(evidence, guess, first, middle, end)


def _as_runs(evidence: int | NDArray[np.uint8], first: int, stop: int) -> Runs:
    if isinstance(evidence, int):
        return one_run(first, stop - first, evidence)
    return encode_runs(evidence, first)
