"""
Pages by combination of flags: of processes, of files, of a cgroup, or of the whole machine.

The order of reads for a process: pagemap, kpageflags of the frames it names, pagemap
again.  A page whose word has changed meanwhile may have lost its frame to someone else
before its flags were read, so it is asked again.  So it is done for files and cgroups, too,
but for the asking again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import NodeRange, count_frames, read_node_ranges
from memlens.objects.filepages import CachedFile
from memlens.pages.bits import (
    PM_GUARD_REGION,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_AREA,
    SWAP_AREAS,
)
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.wordcounts import WordCounts
from memlens.physical.frames import ChargeReader, iter_frames, read_words
from memlens.physical.runflags import (
    FrameRuns,
    ReadBuffer,
    RunFlags,
    expand,
    find_runs,
    join_runs,
)
from memlens.scan.jobs import TRIES, Job, list_windows, share
from memlens.scan.machine import Machine, Stopped
from memlens.scan.pagetable import PageTable

# A byte for every frame of the machine, to count each once; beyond 256 GiB left out.
_SEEN_FRAMES_AT_MOST = 1 << 26

# So many jobs are 4 GiB of pages of 4 KiB: more make the memory for them matter.
_BATCH_JOBS = 16

# Longer runs are marked one by one.
_SLICE_PAGES = 16


class FlagCounts:
    """
    Pages by what kpageflags, and for processes pagemap, say of them.

    :param machine: told how far the count is; may end it.

    ``swapped_pages``: in swap, with no frame, and no flags but ``swap``; ``marker_pages``:
    entries that look like swap and are none: guards, poison, pages in migration;
    ``moved_pages``: changed at every look, in no other number; ``hidden_pages``: whose frame
    this reader may not see, or whose entry may be swap or a marker for all that it may see;
    ``node_pages``: of each NUMA node, empty where there is only one; ``is_complete``: False if
    it was ended early; ``notes``: what limits the numbers, one line each.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.counts = WordCounts()
        self.swapped_pages = self.marker_pages = self.moved_pages = self.hidden_pages = 0
        self.node_ranges: Sequence[NodeRange] = ()
        self.node_pages = Counter[int]()
        self.is_complete = True
        self.notes: list[str] = []
        self.seen: NDArray[np.bool_] | None = None

    @property
    def words(self) -> NDArray[np.uint64]:
        """Return joined words as ``pages.flags.join_words`` makes them, ``(n,)`` uint64."""
        return self.counts.totals()[0]

    @property
    def pages(self) -> NDArray[np.int64]:
        """Return how many pages have each word, ``(n,)`` int64."""
        return self.counts.totals()[1]

    @property
    def total_pages(self) -> int:
        """Return the sum over all words."""
        return int(self.pages.sum())

    @property
    def frames(self) -> int | None:
        """Return how many distinct page frames there are, None if they were not told apart."""
        return None if self.seen is None else int(np.count_nonzero(self.seen))

    def note_runs(self, runs: FrameRuns) -> None:
        """Mark frames as seen, and count them by node."""
        stops = runs.pfn + runs.pages
        if self.seen is not None and len(stops):
            if len(stops) * _SLICE_PAGES > int(runs.pages.sum()):
                pfns = expand(runs.pfn, runs.pages)
                self.seen[pfns[pfns < len(self.seen)]] = True
            else:
                for first, stop in zip(runs.pfn.tolist(), stops.tolist(), strict=True):
                    self.seen[first:stop] = True
        for row in self.node_ranges:
            inside = np.minimum(stops, row.stop) - np.maximum(runs.pfn, row.first)
            pages = int(np.maximum(inside, 0).sum())
            self.node_pages[row.node] += pages

    def add_present(self, words: NDArray[np.uint64], flags: NDArray[np.uint64] | None) -> None:
        """
        Count present pages.

        :param flags: of every word; None if this reader does not see them.
        """
        if flags is None:
            present = words[(words & PM_PRESENT) != 0]
            self.hidden_pages += len(present)
            self.counts.add(present & PAGEMAP_PART)
            return
        runs = find_runs(words)
        places = expand(runs.place, runs.pages)
        self.counts.add(join_words(flags[places], words[places]))
        self.note_runs(runs)

    def add_swapped(self, words: NDArray[np.uint64]) -> None:
        """Count pages that are in swap, and what looks like it."""
        is_swap = (words & PM_SWAP) != 0
        if not is_swap.any():
            return
        entries = words[is_swap]
        self.counts.add(entries & PAGEMAP_PART)
        is_guard = (entries & PM_GUARD_REGION) != 0
        is_marker = is_guard | ((entries & PM_SWAP_AREA) >= SWAP_AREAS)
        # Where slots are hidden, an entry that names none may be swap, poison or in migration.
        is_hidden = ~is_marker & ((entries & PM_PFN) == 0)
        self.marker_pages += int(is_marker.sum())
        self.hidden_pages += int(is_hidden.sum())
        self.swapped_pages += len(entries) - int((is_marker | is_hidden).sum())


def _count(machine: Machine, add: Callable[[FlagCounts], None]) -> FlagCounts:
    counts = FlagCounts(machine)
    try:
        add(counts)
    except Stopped:
        counts.is_complete = False
    return counts


def count_machine_flags(
    machine: Machine, *, addresses: tuple[int, int] | None = None
) -> FlagCounts:
    """
    Count all page frames of the machine, holes between them included as ``nopage``.

    :param addresses: only this half-open range of physical addresses, in bytes.
    :raises AccessDenied: if this user may not read kpageflags.
    """

    def add(counts: FlagCounts) -> None:
        with KpageFile("kpageflags", machine) as flags:
            for words in iter_frames(machine, addresses, partial(read_words, flags)):
                counts.counts.add(words)

    return _count(machine, add)


def count_cgroup_flags(
    inode: int, machine: Machine, *, addresses: tuple[int, int] | None = None
) -> FlagCounts:
    """
    Count the page frames that are charged to one memory cgroup, without those below it.

    :param inode: of the directory of the cgroup, as kpagecgroup gives it.
    :param addresses: only this half-open range of physical addresses, in bytes.
    :raises AccessDenied: if this user may not read the kpage files.
    :raises Unsupported: if the kernel has no memory cgroups.
    """

    def add(counts: FlagCounts) -> None:
        with ChargeReader(machine) as reader:
            for piece in reader.iter_charged(np.array([inode], np.uint64), addresses):
                is_still = reader.owners(piece.pfn) == piece.inode
                counts.counts.add(piece.flags[is_still])
                counts.moved_pages += int((~is_still).sum())

    return _count(machine, add)


def count_file_flags(
    paths: Sequence[str], machine: Machine, *, offsets: tuple[int, int] | None = None
) -> FlagCounts:
    """
    Count the pages of files that are in RAM, by their flags.

    :param offsets: only this half-open range of offsets, in bytes.
    :raises MemlensError: if a file cannot be looked at.
    :raises AccessDenied: if frames are hidden from this reader.

    Each cached page is mapped here for a moment; see ``kernel.cachedframes``.
    """
    machine.require_frames()

    def add(counts: FlagCounts) -> None:
        with KpageFile("kpageflags", machine) as flags:
            for path in paths:
                for piece in iter_file_flags(path, flags, machine, offsets):
                    counts.counts.add(piece.joined)
                    counts.moved_pages += piece.moved_pages

    return _count(machine, add)


class PagePiece(NamedTuple):
    """
    Pages one after the other, ``(n,)`` each.

    :param place: page in the file or of the process, -1 for frames alone, int64.
    :param pfn: frame, or slot of a page in swap, int64.
    :param joined: joined words, uint64.
    :param moved_pages: pages that lost their frame before its flags were read.
    """

    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    joined: NDArray[np.uint64]
    moved_pages: int = 0


def iter_file_flags(
    path: str, flags: KpageFile, machine: Machine, offsets: tuple[int, int] | None
) -> Iterator[PagePiece]:
    """
    Yield the cached pages of a file, piece by piece.

    :param offsets: only this half-open range of offsets, in bytes.
    :raises Stopped: between them, if the scan is to end.
    """
    size = machine.page_size_bytes
    first, stop = 0, None
    if offsets is not None:
        first, stop = offsets[0] // size, -(-offsets[1] // size)
    with CachedFile(path, machine) as file:
        for page, words in file.iter_words(first, stop):
            present = np.flatnonzero(words & PM_PRESENT)
            kept, pages = words[present], len(words)
            pfns = (kept & PM_PFN).view(np.int64)
            order = np.argsort(pfns)
            found = np.empty(len(pfns), np.uint64)
            found[order] = read_sorted(flags, pfns[order])
            _, again = next(file.iter_words(page, page + pages))
            is_same = again[present] == kept
            yield PagePiece(
                (present + page)[is_same],
                pfns[is_same],
                join_words(found, kept)[is_same],
                len(present) - int(is_same.sum()),
            )
            machine.step(page + pages, file.pages)


def count_process_flags(
    pids: Sequence[int], machine: Machine, *, addresses: tuple[int, int] | None = None
) -> FlagCounts:
    """
    Count the pages that processes map, by their flags.

    :param pids: a page that several of them map counts for each; ``frames`` counts once.
    :param addresses: only this half-open range of addresses, in bytes.
    :raises ProcessGone: if one does not exist, or ends meanwhile.
    :raises AccessDenied: if one may not be read.

    The kernel's ``page-types -p`` gives the same numbers for a process that is stopped.
    """

    def add(counts: FlagCounts) -> None:
        counts.node_ranges = read_node_ranges(machine)
        nodes = sorted({row.node for row in counts.node_ranges})
        counts.node_pages.update(dict.fromkeys(nodes, 0))
        with ExitStack() as files:
            flags = _open_flags(counts)
            if flags is not None:
                files.enter_context(flags)
                frames = count_frames(machine)
                if 0 < frames <= _SEEN_FRAMES_AT_MOST:
                    counts.seen = np.zeros(frames, bool)
            for pid in pids:
                _add_process(counts, pid, flags, addresses)

    return _count(machine, add)


def _open_flags(counts: FlagCounts) -> KpageFile | None:
    """Return kpageflags, or None if frames or flags cannot be read; the notes say why."""
    machine = counts.machine
    try:
        machine.require_frames()
        return KpageFile("kpageflags", machine) if machine.may("kpageflags") else None
    except AccessDenied as error:
        why = f"{error.message}, so that kpageflags cannot be asked: needs {error.needs}"
        counts.notes.append(why)
    except MemlensError as error:
        counts.notes.append(str(error))
    return None


def _add_process(
    counts: FlagCounts,
    pid: int,
    flags: KpageFile | None,
    addresses: tuple[int, int] | None,
) -> None:
    machine, buffer, done = counts.machine, ReadBuffer(), 0
    with ProcessDir(pid, machine) as directory, PageTable.open(directory, machine) as table:
        jobs = list_windows(directory, machine, addresses)
        total = sum(stop - first for job in jobs for first, stop in job)
        try:
            for begin in range(0, len(jobs), _BATCH_JOBS):
                batch = _Batch(counts, table, jobs[begin : begin + _BATCH_JOBS])
                batch.count(flags, buffer)
                done += sum(map(len, batch.words))
                machine.step(done, total)
        except EOFError:
            raise directory.gone_error() from None


class _Batch:
    """
    Some jobs of a process.

    Their frames are asked for together, for what lies apart in the address space of a
    process often lies together in memory.
    """

    def __init__(self, counts: FlagCounts, table: PageTable, jobs: list[Job]) -> None:
        self.counts = counts
        self.table = table
        self.jobs = jobs
        self.words = share(jobs, table.read)

    def count(self, flags: KpageFile | None, buffer: ReadBuffer) -> None:
        """Count their pages; reads run side by side, what is between them does not."""
        found = None
        if flags is not None:
            runs = share(self.words, find_runs)
            sizes = list(map(len, self.words))
            found = RunFlags.reserve(join_runs(runs, sizes), buffer)
            threads = 1 if found.is_scattered else None
            share(range(found.parts), partial(found.read_part, flags), threads)
        is_same = share(list(zip(self.jobs, self.words, strict=True)), self._is_same)
        if found is not None and all(is_same):
            for part in range(found.parts):
                self.counts.note_runs(found.count_part(self.counts.counts, part))
            for words in self.words:
                self.counts.add_swapped(words)
            return
        every = None if found is None else found.by_page(sum(map(len, self.words)))
        begin = 0
        for job, words, is_settled in zip(self.jobs, self.words, is_same, strict=True):
            mine = None if every is None else every[begin : begin + len(words)]
            begin += len(words)
            if is_settled:
                self.counts.add_present(words, mine)
                self.counts.add_swapped(words)
            else:
                self._settle(job, words, mine, flags)

    def _is_same(self, job: tuple[Job, NDArray[np.uint64]]) -> bool:
        """Return whether the page table is still as it was when the flags were read."""
        return self.table.are_same(*job)

    def _settle(
        self,
        job: Job,
        words: NDArray[np.uint64],
        flags: NDArray[np.uint64] | None,
        file: KpageFile | None,
    ) -> None:
        """Count pages whose words stay the same; ask for the others again, a few times."""
        for attempt in range(TRIES):
            if attempt and file is not None:
                flags = RunFlags.read(words, file, ReadBuffer()).by_page(len(words))
            again = self.table.read(job)
            # A page that was counted has the word 0 here, and is not looked at again.
            is_open = words != 0 if attempt else np.ones(len(words), bool)
            is_moved = is_open & (again != words)
            kept = np.where(is_moved, np.uint64(0), words)
            self.counts.add_present(kept, flags)
            self.counts.add_swapped(kept)
            if not is_moved.any():
                return
            words = np.where(is_moved, again, np.uint64(0))
        self.counts.moved_pages += int(np.count_nonzero(words))
