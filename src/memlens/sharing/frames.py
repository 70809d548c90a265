"""
What processes share: by page frame, by pair, and between a child and its parent.

The order of reads: the page tables of all processes; how often the frames are mapped; the
page tables again.  A frame counts for a process only if that mapped it both times, so that
every process held it at the moment in between, and a frame that was given back and taken by
another meanwhile is not taken for a shared one.  Other pages are counted as moved.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, ProcessGone
from memlens.kernel import features
from memlens.kernel.features import has_average_counts
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import add_descendants, read_parents
from memlens.kernel.smaps import MappingFigures, read_smaps
from memlens.kernel.swaps import parse_meminfo
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.bits import PM_PFN, PM_PRESENT, PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.record import Table
from memlens.report import Missed
from memlens.scan.facts import Want
from memlens.scan.frametable import FrameRanks, FrameSet
from memlens.scan.jobs import list_windows
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.mapcounts import OtherMaps
from memlens.scan.mappings import FoundPages, MappingTable
from memlens.scan.pagetable import PageTable, Window
from memlens.scan.sweep import Sweep
from memlens.sharing.exits import Memories, find_memories
from memlens.sharing.records import (
    MappingShare,
    PairShare,
    ProcessShare,
    ShareCounts,
    Sharing,
    SharingTotal,
)
from memlens.shm.facts import holder_notes, kept_pages
from memlens.shm.inventory import read_objects
from memlens.shm.sources import FoundObject

_HIDDEN = (
    "RSS, PSS and USS are what smaps says; what pairs share, was copied since a fork, or is "
    "freed on exit is not known"
)

AVERAGES = (
    "this kernel keeps map counts of large folios as averages (CONFIG_NO_PAGE_MAPCOUNT): "
    "PSS, USS and what exit frees are estimates"
)
_COUNTED_AT_ONCE = 1 << 18


def read_sharing(
    pids: Sequence[int],
    *,
    has_descendants: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Sharing:
    """
    Return what processes use and share.

    :param pids: which, each once.
    :param has_descendants: whether to add those that descend from them.
    :param budget_s: seconds after which the scan ends.
    :param on_progress: called with reads of page tables done and to be done.
    :param should_stop: polled between pieces; True ends the scan.
    :raises ProcessGone: if a named process does not exist or ends meanwhile.
    :raises AccessDenied: if a named process may not be read.

    Who may not see page frames, or how often they are mapped, gets what smaps sums up, and
    no pairs.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    parents = read_parents(machine)
    chosen = list(dict.fromkeys(pids))
    if has_descendants:
        chosen = add_descendants(chosen, parents)
    run = _Run(machine, frozenset(pids))
    try:
        run.open(chosen, parents)
        reason = _find_obstacle(machine)
        return run.read_smaps(reason) if reason else run.read()
    finally:
        run.close()


def _find_obstacle(machine: Machine) -> str:
    """Return why frames and their map counts cannot be read, "" if they can."""
    try:
        machine.require_frames()
    except AccessDenied as error:
        return f"{error.message} from this user (needs {error.needs})"
    try:
        KpageFile("kpagecount", machine).close()
    except MemlensError as error:
        return str(error)
    return ""


@dataclass(slots=True)
class _Member:
    """A process of the scan."""

    directory: ProcessDir
    table: PageTable
    parent: "_Member | None" = None
    before: FrameSet = field(default_factory=FrameSet)
    after: FrameSet = field(default_factory=FrameSet)
    share: ProcessShare | None = None
    mappings: list[MappingShare] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.directory.pid


class _Run:
    def __init__(self, machine: Machine, named: frozenset[int]) -> None:
        self.machine = machine
        self.origin = machine.origin()
        self.named = named
        self.missed: list[Missed] = []
        self.members: list[_Member] = []
        self.parents: dict[int, int] = {}
        self.ranks = FrameRanks(count_frames(machine))
        self.zero_pfn = features.zero_pfn()
        self._done = 0

    def open(self, pids: Sequence[int], parents: dict[int, int]) -> None:
        by_pid: dict[int, _Member] = {}
        self.parents = parents
        for pid in pids:
            try:
                directory = ProcessDir(pid, self.machine)
                table = PageTable.open(directory, self.machine)
            except MemlensError as error:
                self._miss(pid, error)
                continue
            member = _Member(directory, table)
            self.members.append(member)
            by_pid[pid] = member
        for member in self.members:
            parent = by_pid.get(parents.get(member.pid, 0))
            if parent is not None and _is_fork(parent.directory, member.directory):
                member.parent = parent
        # A parent comes before its children, who are compared with it.
        self.members.sort(key=lambda member: _depth(member))

    def close(self) -> None:
        for member in self.members:
            member.table.close()
            member.directory.close()

    def read(self) -> Sharing:
        is_complete = True
        try:
            self._each(self._read_first)
            with KpageFile("kpagecount", self.machine) as file:
                counts = OtherMaps(file, self.machine)
                known = self.ranks.known()
                for at in range(0, len(known), _COUNTED_AT_ONCE):
                    counts.ask(known[at : at + _COUNTED_AT_ONCE])
                counts.settle()
                self._each(lambda member: self._read_second(member, counts))
        except Stopped:
            is_complete = False
        return self._result(is_complete)

    def read_smaps(self, reason: str) -> Sharing:
        """Return what smaps says of processes and their mappings."""
        shares: list[ProcessShare] = []
        for member in self.members:
            if self.machine.is_over():
                break
            shares.append(_read_smaps(member))
        return self.report(
            shares,
            [row for member in self.members for row in member.mappings],
            is_complete=len(shares) == len(self.members),
            notes=[f"{reason}: {_HIDDEN}"],
        )

    def _each(self, call: Callable[[_Member], None]) -> None:
        for member in list(self.members):
            try:
                call(member)
            except EOFError:
                self._drop(member, member.directory.gone_error())
            except ProcessGone as error:
                self._drop(member, error)
            self._done += 1
            self.machine.tell(self._done, 2 * len(self.members))

    def _drop(self, member: _Member, error: MemlensError) -> None:
        self._miss(member.pid, error)
        self.members.remove(member)
        member.share = None
        member.table.close()
        for other in self.members:
            if other.parent is member:
                other.parent = None

    def _miss(self, pid: int, error: MemlensError) -> None:
        if pid in self.named or (isinstance(error, AccessDenied) and not self.members):
            raise error
        self.missed.append(Missed(f"process {pid}", error.message))

    def _windows(self, member: _Member) -> Iterator[list[Window]]:
        for job in list_windows(member.directory, self.machine):
            self.machine.check_stop()
            yield job

    def _read_first(self, member: _Member) -> None:
        for job in self._windows(member):
            words = member.table.read(job)
            member.before.add(self.ranks.learn(_pfns(words, self.zero_pfn)))

    def _read_second(self, member: _Member, others: OtherMaps) -> None:
        table = MappingTable(member.directory, self.machine)
        counts = ShareCounts.zeros(len(table.mappings))
        moved = swapped = private = 0
        for job in self._windows(member):
            words = member.table.read(job)
            pages = _addresses(job)
            found = table.attribute(words, pages, self.zero_pfn)
            swapped += _count_swapped(words)
            ranks = self.ranks.find(found.pfn)
            is_same = member.before.has(ranks)
            moved += int((~is_same).sum())
            ranks, found = ranks[is_same], found.select(is_same)
            member.after.add(ranks)
            # What a process had is mapped once at least, whatever the kernel says now.
            times = np.maximum(others.of(member.pid, found.pfn.view(np.uint64)), np.uint16(1))
            counts.add(found.place, times)
            private += int(((times == 1) & ~found.is_file).sum())
            if member.parent is not None:
                self._compare(member.parent, job, found, ranks, counts)
        is_fork = member.parent is not None
        member.mappings = [
            MappingShare.of(member.pid, mapping, counts, number, is_fork)
            for number, mapping in enumerate(table.mappings)
            if counts.rss[number]
        ]
        member.share = _share(member, counts, private, moved, swapped)

    def _compare(
        self,
        parent: _Member,
        job: list[Window],
        found: FoundPages,
        ranks: NDArray[np.int64],
        counts: ShareCounts,
    ) -> None:
        """Tell pages apart that a child shares with its parent, has copied, or made."""
        try:
            there = parent.table.read(job)[found.index]
        except EOFError:
            return
        is_shared = parent.after.has(ranks)
        has_own = ((there & (PM_PRESENT | PM_SWAP)) != 0) & ~is_shared
        counts.add_fork(found.place, is_shared, has_own, found.is_file)

    def _result(self, is_complete: bool) -> Sharing:
        members = [member for member in self.members if member.share is not None]
        every = FrameSet()
        for member in members:
            every.include(member.after)
        shares = [member.share for member in members if member.share is not None]
        pairs = [
            PairShare(one.pid, other.pid, one.after.count_common(other.after))
            for number, one in enumerate(members)
            for other in members[number + 1 :]
        ]
        freed, notes, has_all = self._add_freed(shares)
        return self.report(
            freed,
            [row for member in members for row in member.mappings],
            pairs,
            distinct_pages=every.count(),
            is_complete=is_complete and has_all,
            notes=[*self._notes(shares), *notes],
        )

    def report(
        self,
        shares: Sequence[ProcessShare],
        mappings: Sequence[MappingShare],
        pairs: Sequence[PairShare] = (),
        *,
        distinct_pages: int | None = None,
        is_complete: bool,
        notes: Sequence[str],
    ) -> Sharing:
        """Return what was found; without a number of distinct frames these are hidden."""
        return Sharing.at(
            self.origin,
            tables={
                "processes": Table.of(ProcessShare, shares),
                "pairs": Table.of(PairShare, pairs),
                "mappings": Table.of(MappingShare, mappings),
            },
            sections={"total": SharingTotal(distinct_pages, distinct_pages is None)},
            missed=self.missed,
            notes=notes,
            is_complete=is_complete,
            cost=self.machine.cost(),
        )

    def _add_freed(
        self, shares: list[ProcessShare]
    ) -> tuple[list[ProcessShare], list[str], bool]:
        """
        Return the same with objects that go with each, what to know of it, and if that is all.

        Of a process that runs in one memory with another nothing is freed; once the scan is
        over, that is not known.
        """
        pids = {share.pid for share in shares}

        def is_held_by_one(item: FoundObject) -> bool:
            holders = {facts.pid for facts, _ in item.uses}
            return len(holders) == 1 and holders <= pids

        # Its steps are not those that the caller is told of.
        machine = replace(self.machine.unfollowed(), should_stop=self.machine.is_over)
        sweep = Sweep(machine, Want(objects=True))
        sweep.run()
        memories = Memories(doubtful=pids, reason="the scan ended early")
        if sweep.is_complete:
            memories = find_memories(sweep.processes, lambda facts: facts.pid in pids, machine)
        objects = read_objects(sweep, only=is_held_by_one, tells_present=False).objects
        self.missed += sweep.missed
        kept, freed = kept_pages(objects), []
        for share in shares:
            private = memories.freed(share.pid, share.freed_on_exit_pages or 0)
            known = None if private is None else private + kept.get(share.pid, 0)
            freed.append(replace(share, freed_on_exit_pages=known))
        return freed, [*memories.notes(), *holder_notes(objects)], sweep.is_complete

    def _notes(self, shares: list[ProcessShare]) -> Iterator[str]:
        if has_average_counts(self.machine):
            yield AVERAGES
        moved = sum(share.moved_pages for share in shares)
        if moved:
            yield f"{moved} pages changed while they were read, and are left out"


def _pfns(words: NDArray[np.uint64], zero_pfn: int) -> NDArray[np.int64]:
    pfns = (words[(words & PM_PRESENT) != 0] & PM_PFN).view(np.int64)
    kept: NDArray[np.int64] = pfns[(pfns != 0) & (pfns != zero_pfn)]
    return kept


def _addresses(job: list[Window]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(first, stop) for first, stop in job])


def _count_swapped(words: NDArray[np.uint64]) -> int:
    is_swap = (words & PM_SWAP) != 0
    if not is_swap.any():
        return 0
    return int(((words[is_swap] & PM_SWAP_AREA) < SWAP_AREAS).sum())


def _depth(member: _Member) -> int:
    depth = 0
    parent = member.parent
    while parent is not None:
        depth, parent = depth + 1, parent.parent
    return depth


def _is_fork(parent: ProcessDir, child: ProcessDir) -> bool:
    """Return whether a child still runs in the memory that it was forked with."""
    try:
        return _trace(parent) == _trace(child)
    except (OSError, MemlensError):
        return False


def _trace(process: ProcessDir) -> tuple[int, int, int]:
    """Return what fork keeps and exec changes: the program, and where the stack ends."""
    program = os.stat("exe", dir_fd=process.fd)
    stacks = [m.stop for m in process.read_maps() if m.path == "[stack]"]
    return program.st_dev, program.st_ino, stacks[0] if stacks else 0


def _share(
    member: _Member, counts: ShareCounts, private: int, moved: int, swapped: int
) -> ProcessShare:
    is_fork = member.parent is not None
    return ProcessShare(
        pid=member.pid,
        parent=member.parent.pid if member.parent is not None else None,
        rss_pages=int(counts.rss.sum()),
        pss_pages=float(counts.pss.sum()),
        uss_pages=int(counts.uss.sum()),
        freed_on_exit_pages=private,
        swap_entries_pages=swapped,
        # Who else has the slots, all other processes would have to say.
        swap_share_bytes=None,
        moved_pages=moved,
        shared_with_parent_pages=int(counts.shared.sum()) if is_fork else None,
        copied_pages=int(counts.copied.sum()) if is_fork else None,
        new_private_pages=int(counts.new_private.sum()) if is_fork else None,
        new_object_pages=int(counts.new_objects.sum()) if is_fork else None,
        name=member.directory.title(member.table.pagemap),
    )


def _read_smaps(member: _Member) -> ProcessShare:
    """Return what smaps says of a process; of its mappings the member takes it."""
    directory = member.directory
    every = read_smaps(directory)
    figures = [row for row in every if row.size_bytes.get("Rss")]
    size = directory.host.page_size_bytes
    counts = ShareCounts.zeros(len(figures))
    counts.rss[:] = [row.size_bytes["Rss"] // size for row in figures]
    counts.pss[:] = np.array([row.size_bytes.get("Pss", 0) for row in figures]) / size
    counts.uss[:] = [_private(row) // size for row in figures]
    entries = parse_meminfo(directory.read("status")).get("VmSwap")
    # Swap has pages of objects too, SwapPss has not.
    swap = sum(row.size_bytes.get("Swap", 0) for row in every)
    share = sum(row.size_bytes.get("SwapPss", 0) for row in every)
    member.mappings = [
        MappingShare.of(directory.pid, row.mapping, counts, number, False)
        for number, row in enumerate(figures)
    ]
    return ProcessShare(
        pid=directory.pid,
        parent=member.parent.pid if member.parent is not None else None,
        rss_pages=int(counts.rss.sum()),
        pss_pages=float(counts.pss.sum()),
        uss_pages=int(counts.uss.sum()),
        freed_on_exit_pages=None,
        swap_entries_pages=None if entries is None else entries // size,
        swap_share_bytes=share if swap == entries else None,
        moved_pages=0,
        shared_with_parent_pages=None,
        copied_pages=None,
        new_private_pages=None,
        new_object_pages=None,
        name=directory.stat.name,
    )


def _private(row: MappingFigures) -> int:
    figures = row.size_bytes
    return figures.get("Private_Clean", 0) + figures.get("Private_Dirty", 0)
