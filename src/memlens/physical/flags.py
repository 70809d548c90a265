"""
Pages by combination of flags, of processes.

The order of reads for a process: pagemap, kpageflags of the frames it names, pagemap
again.  A page whose word has changed meanwhile may have lost its frame to someone else
before its flags were read, so it is asked again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import count_frames, read_node_ranges
from memlens.pages.bits import (
    PM_GUARD_REGION,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_AREA,
    SWAP_AREAS,
)
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.frameruns import expand, find_runs, join_runs
from memlens.physical.counting import (
    FlagCounts,
    Part,
    Worker,
    add_parts,
    open_workers,
    share_calls,
)
from memlens.physical.runflags import RunFlags
from memlens.scan.jobs import TRIES, Job, list_windows
from memlens.scan.machine import Machine

# A byte for every frame of the machine, to count each once; beyond 256 GiB left out.
_SEEN_FRAMES_AT_MOST = 1 << 26

# So many jobs are 4 GiB of pages of 4 KiB: more make the memory for them matter.
_BATCH_JOBS = 16


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
    return add_parts([_count_process(pid, addresses, machine) for pid in pids])


def _count_process(pid: int, addresses: tuple[int, int] | None, machine: Machine) -> Part:
    part = Part(machine)
    part.is_hidden = _is_refused(part)
    _prepare_frames(part)
    with ProcessDir(pid, machine) as directory:
        part.directory = directory
        jobs = list_windows(directory, machine, addresses)
        part.total = sum(stop - first for job in jobs for first, stop in job)
        try:
            with open_workers(part) as workers:
                for begin in range(0, len(jobs), _BATCH_JOBS):
                    if not part.stopped:
                        _count_batch(part, workers, jobs[begin : begin + _BATCH_JOBS])
        except EOFError:
            raise directory.gone_error() from None
    return part


def _is_refused(part: Part) -> bool:
    """Return whether frames or kpageflags cannot be read; the notes say why."""
    try:
        part.machine.require_frames()
    except AccessDenied as error:
        why = f"{error.message}, so that kpageflags cannot be asked: needs {error.needs}"
        part.notes.append(why)
        return True
    if not part.machine.may("kpageflags"):
        return True
    try:
        KpageFile("kpageflags", part.machine).close()
    except MemlensError as error:
        part.notes.append(str(error))
        return True
    return False


def _prepare_frames(part: Part) -> None:
    part.node_ranges = read_node_ranges(part.machine)
    frames = count_frames(part.machine)
    if 0 < frames <= _SEEN_FRAMES_AT_MOST and not part.is_hidden:
        part.seen = np.zeros(frames, bool)


def _count_batch(part: Part, workers: Sequence[Worker], jobs: list[Job]) -> None:
    """
    Count the pages of some jobs.

    Their frames are asked for together, for what lies apart in the address space of a
    process often lies together in memory.
    """
    batch = _Batch(part, jobs)
    share_calls(workers, len(jobs), batch.read_words)
    batch.join()
    share_calls(workers[:1] if batch.is_scattered else workers, batch.parts, batch.read_flags)
    share_calls(workers, len(jobs), batch.look_back)
    if all(batch.is_same):
        share_calls(workers, batch.parts, batch.count_part)
        for words in batch.words:
            _count_swapped(part, words, workers[0])
    else:
        flags = batch.flags_by_page()
        share_calls(workers, len(jobs), lambda worker, job: batch.settle(worker, job, flags))
    part.advance(sum(map(len, batch.words)))


class _Batch:
    """What was read of some jobs; each method is called by several threads at once."""

    def __init__(self, part: Part, jobs: list[Job]) -> None:
        self.part = part
        self.jobs = jobs
        self.words = [np.empty(0, np.uint64)] * len(jobs)
        self.is_same = [False] * len(jobs)
        self.found: RunFlags | None = None
        self.parts = 0
        self.is_scattered = False
        self._runs = [find_runs(self.words[0])] * len(jobs)

    def read_words(self, worker: Worker, job: int) -> None:
        """Read the page table."""
        self.words[job] = worker.page_table().read(self.jobs[job])
        if not self.part.is_hidden:
            self._runs[job] = find_runs(self.words[job])

    def join(self) -> None:
        """Find where the frames of all jobs lie."""
        if not self.part.is_hidden:
            runs = join_runs(self._runs, [len(words) for words in self.words])
            self.found = RunFlags.reserve(runs, self.part.buffer)
            self.parts = self.found.parts
            self.is_scattered = self.found.is_scattered

    def read_flags(self, worker: Worker, part: int) -> None:
        """Read the flags of a part of the frames."""
        if self.found is not None and worker.flags is not None:
            self.found.read_part(worker.flags, part)

    def look_back(self, worker: Worker, job: int) -> None:
        """Learn whether the page table is still as it was when the flags were read."""
        self.is_same[job] = worker.page_table().are_same(self.jobs[job], self.words[job])
        if self.found is None and self.is_same[job]:
            _count_hidden(worker, self.words[job])

    def count_part(self, worker: Worker, part: int) -> None:
        """Count a part of the frames."""
        if self.found is not None:
            worker.note_runs(self.found.count_part(worker.counts, part))

    def flags_by_page(self) -> NDArray[np.uint64] | None:
        """Return the flags of all pages, 0 for those without a frame; None if hidden."""
        pages = sum(map(len, self.words))
        return None if self.found is None else self.found.by_page(pages)

    def settle(self, worker: Worker, job: int, flags: NDArray[np.uint64] | None) -> None:
        """Count a job of which a part may have changed."""
        if flags is None and self.is_same[job]:
            _count_swapped(self.part, self.words[job], worker)
            return
        words = self.words[job]
        begin = sum(map(len, self.words[:job]))
        mine = None if flags is None else flags[begin : begin + len(words)]
        _count_settled(worker, self.jobs[job], words, mine)


def _count_settled(
    worker: Worker,
    job: Job,
    words: NDArray[np.uint64],
    flags: NDArray[np.uint64] | None,
) -> None:
    """Count pages whose words stay the same; ask for the others again, a few times."""
    for attempt in range(TRIES):
        if attempt:
            flags = worker.read_flags(words)
        again = worker.page_table().read(job)
        # A page that was counted has the word 0 here, and is not looked at again.
        is_open = words != 0 if attempt else np.ones(len(words), bool)
        is_moved = is_open & (again != words)
        kept = np.where(is_moved, np.uint64(0), words)
        if flags is None:
            _count_hidden(worker, kept)
        else:
            runs = find_runs(kept)
            places = expand(runs.place, runs.pages)
            worker.counts.add(join_words(flags[places], kept[places]))
            worker.note_runs(runs)
        _count_swapped(worker.part, kept, worker)
        if not is_moved.any():
            return
        words = np.where(is_moved, again, np.uint64(0))
    worker.part.add_tally("moved", int(np.count_nonzero(words)))


def _count_hidden(worker: Worker, words: NDArray[np.uint64]) -> None:
    """Count present pages whose frames this reader does not see."""
    present = words[(words & PM_PRESENT) != 0]
    worker.part.add_tally("hidden", len(present))
    worker.counts.add(present & PAGEMAP_PART)


def _count_swapped(part: Part, words: NDArray[np.uint64], worker: Worker) -> None:
    is_swap = (words & PM_SWAP) != 0
    if not is_swap.any():
        return
    entries = words[is_swap]
    worker.counts.add(entries & PAGEMAP_PART)
    is_guard = (entries & PM_GUARD_REGION) != 0
    is_marker = is_guard | ((entries & PM_SWAP_AREA) >= SWAP_AREAS)
    # Where slots are hidden, an entry that names none may be swap, poison or in migration.
    is_hidden = ~is_marker & ((entries & PM_PFN) == 0)
    part.add_tally("markers", int(is_marker.sum()))
    part.add_tally("hidden", int(is_hidden.sum()))
    part.add_tally("swapped", len(entries) - int((is_marker | is_hidden).sum()))
