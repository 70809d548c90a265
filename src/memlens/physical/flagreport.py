"""
Pages by combination of flags, or one after the other: the answer of ``memlens flags``.

Whose pages: those that processes map, that hold files, that a cgroup is charged, or all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.pages.flagfilter import Filter, all_of, parse_bits, parse_where
from memlens.pages.flags import (
    PAGEMAP_FLAGS,
    expand_words,
    flag_names,
    group_words,
    known_words,
)
from memlens.physical.counting import FlagCounts
from memlens.physical.flaglist import PageLister, PageRanges
from memlens.physical.flags import count_process_flags
from memlens.physical.frameflags import (
    count_cgroup_flags,
    count_file_flags,
    count_machine_flags,
    resolve_cgroup,
)
from memlens.physical.records import (
    FlagCombination,
    FlagRange,
    FlagReport,
    FlagTotal,
    NodePages,
)
from memlens.record import Table
from memlens.report import Origin
from memlens.scan.machine import Machine
from memlens.units import escape_text


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
        if self.cgroup is None:
            return 0
        if self.cgroup.startswith("@"):
            return int(self.cgroup[1:])
        return resolve_cgroup(self.cgroup, self.machine)

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
    return _report(
        origin,
        machine,
        tables={
            "combinations": Table.of_columns(
                FlagCombination,
                pages=pages[order],
                word=words[order],
                flags=[_names_of(word) for word in words[order].tolist()],
            ),
            "nodes": Table.of_columns(NodePages, node=list(nodes), pages=list(nodes.values())),
        },
        total=FlagTotal(
            subject=subject.title,
            total_pages=int(pages.sum()),
            frames=counts.frames,
            swapped_pages=counts.swapped_pages,
            marker_pages=counts.marker_pages,
            moved_pages=counts.moved_pages,
            hidden_pages=counts.hidden_pages,
        ),
        notes=_notes(counts),
        is_complete=counts.is_complete,
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
    with PageLister(shown.keeps, machine, subject.inode) as lister:
        notes = [] if lister.refusal is None else [str(lister.refusal)]
        if lister.refusal is not None:
            if not pids:
                raise lister.refusal
            shown = shown.of_pagemap(notes)
        found = PageRanges.join(list(subject.list(lister)))
        cgroups = lister.cgroup_names() if found.cgroup is not None else {}
    words = shown.show(found.joined)
    names = {word: _names_of(word) for word in np.unique(words).tolist()}
    return _report(
        origin,
        machine,
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
        total=FlagTotal(subject.title, int(found.pages.sum()), None, 0, 0, 0, 0),
        notes=notes,
        is_complete=not lister.is_stopped,
    )


def _report(
    origin: Origin,
    machine: Machine,
    *,
    tables: dict[str, Table[Any]],
    total: FlagTotal,
    notes: Sequence[str],
    is_complete: bool,
) -> FlagReport:
    return FlagReport.at(
        origin,
        tables=tables,
        sections={"total": total},
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
    if counts.swapped_pages:
        notes.append(
            f"{counts.swapped_pages} pages are swapped out: no frame, only the flag swap"
        )
    if counts.marker_pages:
        notes.append(
            f"{counts.marker_pages} entries look like swap and are none: "
            "guards, poison, or pages in migration"
        )
    if counts.moved_pages:
        notes.append(f"{counts.moved_pages} pages changed at every look and are left out")
    if counts.hidden_pages:
        notes.append(
            f"the flags or slots of {counts.hidden_pages} pages are not known; what pagemap "
            "says of them is shown"
        )
    return [*notes, *map(escape_text, counts.notes)]
