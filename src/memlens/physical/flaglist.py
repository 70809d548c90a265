"""Pages one after the other with frame, flags, map count and cgroup, joined into ranges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.cgroups import cgroup_paths_by_inode, find_hierarchy
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import count_frames
from memlens.objects.filepages import CachedFile
from memlens.pages.bits import PM_PFN, PM_PRESENT, PM_SWAP, PM_SWAP_SLOT, PM_SWAP_SLOT_SHIFT
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.physical.frameflags import iter_file_flags
from memlens.scan.jobs import list_windows
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable

_PIECE = 1 << 16
_NO_PLACE = -1
Wanted = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]


class _Piece(NamedTuple):
    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    joined: NDArray[np.uint64]


class PageRanges(NamedTuple):
    """
    Ranges of consecutive pages that are alike, ``(n,)`` each.

    :param place: address or offset in pages, -1 for pages that are listed by frame.
    :param pages: how many pages each has.
    :param pfn: the first frame; of swapped pages the first slot; None if they are hidden.
    :param joined: joined words, see ``pages.flags.join_words``.
    :param map_count: page tables that map each page, None if it is not known.
    :param cgroup: inode of the cgroup that is charged, 0 if none is, None if not known.
    """

    place: NDArray[np.int64]
    pages: NDArray[np.int64]
    pfn: NDArray[np.int64] | None
    joined: NDArray[np.uint64]
    map_count: NDArray[np.uint64] | None
    cgroup: NDArray[np.uint64] | None

    @classmethod
    def join(cls, pieces: "Sequence[PageRanges]") -> "PageRanges":
        """Return all ranges of several, which know the same of their pages."""
        if not pieces:
            none = np.empty(0, np.int64)
            return cls(none, none, none, none.view(np.uint64), None, None)

        def joined(number: int) -> Any:
            columns: list[Any] = [piece[number] for piece in pieces]
            return None if columns[0] is None else np.concatenate(columns)

        return cls(*map(joined, range(len(cls._fields))))


class PageLister:
    """
    Lists pages.

    :param wanted: takes joined words and says which to list; where frames are hidden, only
        the bits of pagemap are in them.
    :param machine: told of the pages that were looked at; ends the list between pieces.
    :param inode: only pages that are charged to this cgroup, 0 for all.

    ``is_stopped`` tells whether a list was ended early; ``refusal``, None if there is none,
    why frames and their flags are hidden: then only the pages of processes can be listed.
    """

    def __init__(self, wanted: Wanted, machine: Machine, inode: int = 0) -> None:
        self.machine = machine
        self.wanted = wanted
        self.inode = inode
        self.is_stopped = False
        self._files = ExitStack()
        self.refusal: MemlensError | None = None
        self._flags: KpageFile | None = None
        try:
            machine.require_frames()
            self._flags = self._files.enter_context(KpageFile("kpageflags", machine))
        except MemlensError as error:
            self.refusal = error
        self._counts = self._open("kpagecount")
        self._cgroups = self._open("kpagecgroup")

    def __enter__(self) -> "PageLister":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def list_process(
        self, pid: int, addresses: tuple[int, int] | None = None
    ) -> Iterator[PageRanges]:
        """Yield the pages of a process in the order of addresses; each is read once."""
        with ProcessDir(pid, self.machine) as directory:
            table = PageTable.open(directory, self.machine)
            try:
                jobs = list_windows(directory, self.machine, addresses)
                windows = [window for job in jobs for window in job]
                total, done = sum(stop - first for first, stop in windows), 0
                for first, stop in windows:
                    if self._is_ended(done, total):
                        return
                    words = table.read([(first, stop)])
                    yield from self._ranges(self._of_words(words, first))
                    done += stop - first
            except EOFError:
                raise directory.gone_error() from None
            finally:
                table.close()

    def list_file(
        self, path: str, offsets: tuple[int, int] | None = None
    ) -> Iterator[PageRanges]:
        """Yield the cached pages of a file in the order of offsets."""
        flags = self._flags_or_raise()
        with CachedFile(path, self.machine) as file:
            for piece in iter_file_flags(file, flags, offsets):
                if self._is_ended(piece.stop, file.pages):
                    return
                yield from self._ranges(
                    _Piece(
                        piece.place[piece.is_same],
                        piece.pfn[piece.is_same],
                        piece.joined[piece.is_same],
                    )
                )

    def list_machine(self, addresses: tuple[int, int] | None = None) -> Iterator[PageRanges]:
        """Yield page frames in order."""
        flags, size = self._flags_or_raise(), self.machine.page_size_bytes
        first, stop = 0, 1 << 52
        if addresses is not None:
            first, stop = addresses[0] // size, -(-addresses[1] // size)
        begin, total = first, max(min(count_frames(self.machine), stop) - first, 0)
        while first < stop and not self._is_ended(first - begin, total):
            pages = min(_PIECE, stop - first)
            words = flags.read_range(first, pages)
            pfns = np.arange(first, first + len(words))
            yield from self._ranges(_Piece(np.full(len(pfns), _NO_PLACE), pfns, words))
            if len(words) < pages:
                return
            first += pages

    def cgroup_names(self) -> dict[int, str]:
        """Return the paths of cgroups by the number that ranges give."""
        return cgroup_paths_by_inode(find_hierarchy(self.machine))

    def _is_ended(self, done: int, total: int) -> bool:
        """Say how far the list is, and return whether to end it."""
        self.machine.tell(min(done, total), total)
        if self.machine.is_over():
            self.is_stopped = True
        return self.is_stopped

    def _flags_or_raise(self) -> KpageFile:
        if self._flags is None:
            raise self.refusal or ValueError("no list without frames")
        return self._flags

    def _open(self, name: str) -> KpageFile | None:
        if self.refusal is not None:
            return None
        try:
            return self._files.enter_context(KpageFile(name, self.machine))
        except MemlensError:
            return None

    def _of_words(self, words: NDArray[np.uint64], first: int) -> _Piece:
        if self._flags is None:
            listed = np.flatnonzero(words & (PM_PRESENT | PM_SWAP))
            hidden = np.zeros(len(listed), np.int64)
            return _Piece(listed + first, hidden, words[listed] & PAGEMAP_PART)
        is_swap = (words & PM_SWAP) != 0
        has_frame = ((words & PM_PRESENT) != 0) & ((words & PM_PFN) != 0)
        listed = np.flatnonzero(is_swap | has_frame)
        kept, is_slot = words[listed], is_swap[listed]
        pfns = np.where(is_slot, (kept & PM_SWAP_SLOT) >> PM_SWAP_SLOT_SHIFT, kept & PM_PFN)
        flags = np.zeros(len(kept), np.uint64)
        flags[~is_slot] = self._flags.read_pfns(pfns[~is_slot])
        return _Piece(listed + first, pfns.astype(np.int64), join_words(flags, kept))

    def _ranges(self, piece: _Piece) -> Iterator[PageRanges]:
        is_wanted = self.wanted(piece.joined)
        place, pfn = piece.place[is_wanted], piece.pfn[is_wanted]
        joined = piece.joined[is_wanted]
        counts = _read(self._counts, pfn, joined)
        cgroups = _read(self._cgroups, pfn, joined)
        if self.inode and cgroups is not None:
            is_charged = cgroups == np.uint64(self.inode)
            place, pfn, joined = place[is_charged], pfn[is_charged], joined[is_charged]
            cgroups = cgroups[is_charged]
            counts = counts[is_charged] if counts is not None else None
        if not len(pfn):
            return
        has_place = int(place[0]) != _NO_PLACE
        step = 1 if self.refusal is None else 0
        is_new = (np.diff(pfn) != step) | (joined[1:] != joined[:-1])
        if has_place:
            is_new |= np.diff(place) != 1
        for column in (counts, cgroups):
            if column is not None:
                is_new |= column[1:] != column[:-1]
        heads = np.append(0, np.flatnonzero(is_new) + 1)
        yield PageRanges(
            place[heads],
            np.diff(np.append(heads, len(pfn))),
            None if self.refusal is not None else pfn[heads],
            joined[heads],
            None if counts is None else counts[heads],
            None if cgroups is None else cgroups[heads],
        )


def _read(
    file: KpageFile | None, pfns: NDArray[np.int64], joined: NDArray[np.uint64]
) -> NDArray[np.uint64] | None:
    """Return the words of frames, 0 for what is a slot and no frame."""
    if file is None:
        return None
    is_frame = (joined & PM_SWAP) == 0
    words = np.zeros(len(pfns), np.uint64)
    words[is_frame] = file.read_pfns(pfns[is_frame].astype(np.uint64))
    return words
