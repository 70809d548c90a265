"""
Pages by combination of flags, or one after the other: the answer of ``memlens flags``.

Whose pages: those that processes map, that hold files, that a cgroup is charged, or all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.cgroups import (
    cgroup_paths_by_inode,
    find_cgroup,
    find_hierarchy,
    read_cgroup_inode,
)
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_PFN, PM_PRESENT, PM_SWAP, PM_SWAP_SLOT, PM_SWAP_SLOT_SHIFT
from memlens.pages.flagfilter import Filter, all_of, parse_bits, parse_where
from memlens.pages.flags import (
    PAGEMAP_FLAGS,
    PAGEMAP_PART,
    expand_words,
    flag_names,
    group_words,
    join_words,
    known_words,
)
from memlens.physical.flags import (
    FlagCounts,
    PagePiece,
    count_cgroup_flags,
    count_file_flags,
    count_machine_flags,
    count_process_flags,
    iter_file_flags,
)
from memlens.physical.frames import iter_frames, read_words
from memlens.physical.records import (
    FlagCombination,
    FlagRange,
    FlagReport,
    FlagTotal,
    NodePages,
)
from memlens.record import Table
from memlens.scan.jobs import list_windows
from memlens.scan.machine import Machine, Stopped
from memlens.scan.pagetable import PageTable
from memlens.units import escape_text

_NO_PLACE = -1
Wanted = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class _Shown:
    """
    Which pages are asked for, and how their flags are told.

    :param where: which, by all their bits.
    :param bits: which, by the bits that are shown, as page-types does it.
    :param is_raw: show every bit, as ``page-types -r`` does, not only the documented ones.
    """

    where: Filter
    bits: Filter
    is_raw: bool

    @classmethod
    def parse(cls, where: str | None, bits: Sequence[str], is_raw: bool) -> Self:
        expressions = [] if where is None else [parse_where(where)]
        return cls(all_of(expressions), all_of([parse_bits(text) for text in bits]), is_raw)

    def show(self, joined: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the words to show for joined words."""
        return expand_words(joined) if self.is_raw else known_words(joined)

    def keeps(self, joined: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which joined words are asked for."""
        return self.where(expand_words(joined)) & self.bits(self.show(joined))

    def of_pagemap(self, why: Sequence[str]) -> "_Shown":
        """
        Return how to show what pagemap says, which is all there is.

        :raises MemlensError: if which pages are asked for depends on more.
        """
        if (self.where.mask | self.bits.mask) & ~PAGEMAP_FLAGS:
            reasons = "; ".join(why)
            raise MemlensError(
                f"--where or -b depends on flags that are not known here: {reasons}"
            )
        return replace(self, is_raw=True)


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
        columns = zip(*pieces, strict=True)
        joined: list[Any] = [None if c[0] is None else np.concatenate(c) for c in columns]
        return cls(*joined)


class PageLister:
    """
    Lists pages; ends between pieces with ``Stopped``, if the scan is to end.

    :param wanted: takes joined words and says which to list; where frames are hidden, only
        the bits of pagemap are in them.
    :param machine: told of the pages that were looked at.
    :param inode: only pages that are charged to this cgroup, 0 for all.

    ``refusal``, None if there is none, tells why frames and their flags are hidden: then only
    the pages of processes can be listed.
    """

    def __init__(self, wanted: Wanted, machine: Machine, inode: int = 0) -> None:
        self.machine = machine
        self.wanted = wanted
        self.inode = inode
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def list_process(
        self, pid: int, addresses: tuple[int, int] | None = None
    ) -> Iterator[PageRanges]:
        """Yield the pages of a process in the order of addresses; each is read once."""
        machine = self.machine
        with ProcessDir(pid, machine) as directory, PageTable.open(directory, machine) as table:
            try:
                jobs = list_windows(directory, machine, addresses)
                windows = [window for job in jobs for window in job]
                total, done = sum(stop - first for first, stop in windows), 0
                for first, stop in windows:
                    machine.step(done, total)
                    words = table.read([(first, stop)])
                    yield from self._ranges(self._of_words(words, first))
                    done += stop - first
            except EOFError:
                raise directory.gone_error() from None

    def list_file(
        self, path: str, offsets: tuple[int, int] | None = None
    ) -> Iterator[PageRanges]:
        """Yield the cached pages of a file in the order of offsets."""
        for piece in iter_file_flags(path, self._flags_or_raise(), self.machine, offsets):
            yield from self._ranges(piece)

    def list_machine(self, addresses: tuple[int, int] | None = None) -> Iterator[PageRanges]:
        """Yield page frames in order."""
        flags = self._flags_or_raise()

        def read(frames: range) -> tuple[PagePiece, int]:
            words, found = read_words(flags, frames)
            pfns = np.arange(frames.start, frames.start + found)
            return PagePiece(np.full(found, _NO_PLACE), pfns, words), found

        for piece in iter_frames(self.machine, addresses, read, at_once=1):
            yield from self._ranges(piece)

    def cgroup_names(self) -> dict[int, str]:
        """Return the paths of cgroups by the number that ranges give."""
        return cgroup_paths_by_inode(find_hierarchy(self.machine))

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

    def _of_words(self, words: NDArray[np.uint64], first: int) -> PagePiece:
        if self._flags is None:
            listed = np.flatnonzero(words & (PM_PRESENT | PM_SWAP))
            hidden = np.zeros(len(listed), np.int64)
            return PagePiece(listed + first, hidden, words[listed] & PAGEMAP_PART)
        is_swap = (words & PM_SWAP) != 0
        has_frame = ((words & PM_PRESENT) != 0) & ((words & PM_PFN) != 0)
        listed = np.flatnonzero(is_swap | has_frame)
        kept, is_slot = words[listed], is_swap[listed]
        pfns = np.where(is_slot, (kept & PM_SWAP_SLOT) >> PM_SWAP_SLOT_SHIFT, kept & PM_PFN)
        flags = np.zeros(len(kept), np.uint64)
        flags[~is_slot] = self._flags.read_pfns(pfns[~is_slot])
        return PagePiece(listed + first, pfns.astype(np.int64), join_words(flags, kept))

    def _ranges(self, piece: PagePiece) -> Iterator[PageRanges]:
        is_wanted = self.wanted(piece.joined)
        place, pfn = piece.place[is_wanted], piece.pfn[is_wanted]
        joined = piece.joined[is_wanted]
        cgroups = _read(self._cgroups, pfn, joined)
        if self.inode and cgroups is not None:
            is_charged = cgroups == np.uint64(self.inode)
            place, pfn, joined = place[is_charged], pfn[is_charged], joined[is_charged]
            cgroups = cgroups[is_charged]
        if not len(pfn):
            return
        counts = _read(self._counts, pfn, joined)
        pfns = None if self.refusal is not None else pfn
        place_step = 0 if place[0] == _NO_PLACE else 1
        steps = ((place, place_step), (pfns, 1), (joined, 0), (counts, 0), (cgroups, 0))
        is_new = [np.diff(column) != step for column, step in steps if column is not None]
        heads = np.append(0, np.flatnonzero(np.logical_or.reduce(is_new)) + 1)
        yield PageRanges(
            place[heads],
            np.diff(np.append(heads, len(pfn))),
            None if pfns is None else pfns[heads],
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


def resolve_cgroup(path: str, machine: Machine) -> int:
    """
    Return the number by which kpagecgroup names a cgroup.

    :param path: its directory, its path as /proc/PID/cgroup gives it, or ``@`` and the number.
    :raises MemlensError: if there is none.
    """
    if path.startswith("@"):
        return int(path[1:])
    return read_cgroup_inode(find_cgroup(path, machine))


@dataclass(frozen=True, slots=True)
class _Subject:
    """Whose pages, and which of them."""

    machine: Machine
    pids: Sequence[int]
    files: Sequence[str]
    cgroup: str | None
    addresses: tuple[int, int] | None

    @property
    def inode(self) -> int:
        """Return what kpagecgroup calls the cgroup, 0 if there is none."""
        return 0 if self.cgroup is None else resolve_cgroup(self.cgroup, self.machine)

    @property
    def title(self) -> str:
        if self.pids:
            return f"Pages mapped by {', '.join(map(str, self.pids))}"
        if self.files:
            return f"Page cache of {', '.join(self.files)}"
        if self.cgroup is not None:
            return f"Page frames charged to {self.cgroup}"
        return "All page frames of the machine"

    def count(self) -> FlagCounts:
        """Count the pages by their words."""
        machine, where = self.machine, self.addresses
        if self.pids:
            return count_process_flags(self.pids, machine, addresses=where)
        if self.files:
            return count_file_flags(self.files, machine, offsets=where)
        if self.cgroup is not None:
            return count_cgroup_flags(self.inode, machine, addresses=where)
        return count_machine_flags(machine, addresses=where)

    def list(self, lister: PageLister) -> Iterator[PageRanges]:
        """Yield the pages one after the other."""
        where = self.addresses
        if self.pids:
            return chain.from_iterable(lister.list_process(pid, where) for pid in self.pids)
        if self.files:
            return chain.from_iterable(lister.list_file(path, where) for path in self.files)
        return lister.list_machine(where)


def count_flags(
    pids: Sequence[int] = (),
    *,
    files: Sequence[str] = (),
    cgroup: str | None = None,
    addresses: tuple[int, int] | None = None,
    where: str | None = None,
    bits: Sequence[str] = (),
    is_raw: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FlagReport:
    """
    Count pages by combination of their flags: all frames of the machine if none are named.

    :param pids: pages that these processes map; what several map counts for each.
    :param files: cached pages of these files.
    :param cgroup: frames charged to this one, without those below it; ``@INODE`` of one that
        was removed.
    :param addresses: only this half-open range, in bytes: of addresses, of offsets in files,
        of physical addresses.
    :param where: only these, as ``anon and not (lru or dirty)``.
    :param bits: only these, each as ``page-types -b`` has it.
    :param is_raw: whether to show undocumented bits, too.
    :raises FilterError: if ``where`` or ``bits`` cannot be understood.
    :raises ProcessGone: if a process does not exist, or ends meanwhile.
    :raises AccessDenied: if this user may not read what it takes.
    """
    shown = _Shown.parse(where, bits, is_raw)
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin, subject = machine.origin(), _Subject(machine, pids, files, cgroup, addresses)
    counts = subject.count()
    if counts.hidden_pages:
        shown = shown.of_pagemap(counts.notes)
    kept = shown.keeps(counts.words)
    words, pages = group_words(shown.show(counts.words[kept]), counts.pages[kept])
    # Most pages first.
    order = np.lexsort((words, -pages))
    nodes = counts.node_pages
    return FlagReport.at(
        origin,
        tables={
            "combinations": Table.of_columns(
                FlagCombination,
                pages=pages[order],
                word=words[order],
                flags=[_names_of(word) for word in words[order].tolist()],
            ),
            "nodes": Table.of_columns(NodePages, node=list(nodes), pages=list(nodes.values())),
        },
        sections={
            "total": FlagTotal(
                subject=subject.title,
                total_pages=int(pages.sum()),
                frames=counts.frames,
                swapped_pages=counts.swapped_pages,
                marker_pages=counts.marker_pages,
                moved_pages=counts.moved_pages,
                hidden_pages=counts.hidden_pages,
            )
        },
        notes=_notes(counts),
        is_complete=counts.is_complete,
        cost=machine.cost(),
    )


def list_flags(
    pids: Sequence[int] = (),
    *,
    files: Sequence[str] = (),
    cgroup: str | None = None,
    addresses: tuple[int, int] | None = None,
    where: str | None = None,
    bits: Sequence[str] = (),
    is_raw: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FlagReport:
    """
    List ranges of pages that are alike, each page read once; a million take about 100 MB.

    Parameters and errors as of ``count_flags``.
    """
    shown = _Shown.parse(where, bits, is_raw)
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin, subject = machine.origin(), _Subject(machine, pids, files, cgroup, addresses)
    pieces: list[PageRanges] = []
    is_complete = True
    with PageLister(shown.keeps, machine, subject.inode) as lister:
        notes = [] if lister.refusal is None else [str(lister.refusal)]
        if lister.refusal is not None:
            if not pids:
                raise lister.refusal
            shown = shown.of_pagemap(notes)
        try:
            pieces.extend(subject.list(lister))
        except Stopped:
            is_complete = False
        found = PageRanges.join(pieces)
        cgroups = lister.cgroup_names() if found.cgroup is not None else {}
    words = shown.show(found.joined)
    names = {word: _names_of(word) for word in np.unique(words).tolist()}
    return FlagReport.at(
        origin,
        tables={
            "ranges": Table.of_columns(
                FlagRange,
                address=np.ma.masked_array(
                    found.place * origin.page_size_bytes, found.place < 0
                ),
                pages=found.pages,
                pfn=_or_unknown(found.pfn, len(words)),
                map_count=_or_unknown(found.map_count, len(words)),
                word=words,
                cgroup=_owners(found.cgroup, cgroups, len(words)),
                flags=[names[word] for word in words.tolist()],
            )
        },
        sections={"total": FlagTotal(subject.title, int(found.pages.sum()), None, 0, 0, 0, 0)},
        notes=notes,
        is_complete=is_complete,
        cost=machine.cost(),
    )


def _names_of(word: int) -> str:
    return ", ".join(flag_names(word)) or "(none)"


def _or_unknown(column: NDArray[Any] | None, rows: int) -> NDArray[Any] | list[None]:
    return [None] * rows if column is None else column


def _owners(
    inodes: NDArray[np.uint64] | None, names: dict[int, str], rows: int
) -> list[str | None]:
    if inodes is None:
        return [None] * rows
    found = inodes.tolist()
    titles = {inode: names.get(inode, f"@{inode}") if inode else None for inode in set(found)}
    return [titles[inode] for inode in found]


def _notes(counts: FlagCounts) -> list[str]:
    """Return what a reader of the numbers has to know; all of it, whatever the filter."""
    notes = []
    mapped = counts.total_pages - counts.swapped_pages - counts.marker_pages
    if counts.frames is not None and counts.frames < mapped:
        shared = mapped - counts.frames
        notes.append(
            f"{counts.frames} distinct page frames: {shared} pages share one with another"
        )
    lines = (
        (counts.swapped_pages, "{} pages are swapped out: no frame, only the flag swap"),
        (counts.marker_pages, "{} entries look like swap and are none: {guards}"),
        (counts.moved_pages, "{} pages changed at every look and are left out"),
        (counts.hidden_pages, "the flags or slots of {} pages are not known; {known}"),
    )
    guards = "guards, poison, or pages in migration"
    known = "what pagemap says of them is shown"
    notes += [line.format(n, guards=guards, known=known) for n, line in lines if n]
    return [*notes, *map(escape_text, counts.notes)]
