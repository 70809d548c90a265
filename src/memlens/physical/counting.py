"""
Counting flags in several threads: what they share, what each has, and the sum of it.

Reads of the kernel's files run side by side; what Python does between them does not.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.kernel.zoneinfo import NodeRange
from memlens.pages.frameruns import FrameRuns, expand
from memlens.pages.wordcounts import WordCounts
from memlens.physical.runflags import ReadBuffer, RunReader
from memlens.scan.jobs import count_threads, run_threads
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable, Window

# Longer runs are marked one by one.
_SLICE_PAGES = 16


@dataclass(frozen=True, slots=True)
class FlagCounts:
    """
    Pages by what kpageflags, and for processes pagemap, say of them.

    :param words: joined words as ``pages.flags.join_words`` makes them, ``(n,)`` uint64.
    :param pages: how many pages have each word, ``(n,)`` int64.
    :param frames: distinct page frames among them, None if they were not told apart.
    :param swapped_pages: pages in swap: they have no frame, and no flags but ``swap``.
    :param marker_pages: entries that look like swap and are none: guards, poison, pages
        in migration.
    :param moved_pages: pages that changed at every look; they are in no other number.
    :param hidden_pages: pages whose frame this reader may not see, or whose entry may be
        swap or a marker for all that it may see.
    :param node_pages: pages of each NUMA node, empty where there is only one.
    :param is_complete: False if it was stopped early.
    :param notes: what limits the numbers, one line each.
    """

    words: NDArray[np.uint64]
    pages: NDArray[np.int64]
    frames: int | None = None
    swapped_pages: int = 0
    marker_pages: int = 0
    moved_pages: int = 0
    hidden_pages: int = 0
    node_pages: dict[int, int] = field(default_factory=dict)
    is_complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def total_pages(self) -> int:
        """Return the sum over all words."""
        return int(self.pages.sum())


class Part:
    """One process or the machine, shared by the threads that count it."""

    def __init__(self, machine: Machine, cgroup: int = 0) -> None:
        self.machine = machine
        self.cgroup = cgroup
        self.directory: ProcessDir | None = None
        self.lock = threading.Lock()
        self.total = self.done = 0
        self.stopped = self.at_end = False
        self.is_hidden = False
        self.counts = WordCounts()
        self.tallies: dict[str, int] = {}
        self.notes: list[str] = []
        self.node_ranges: list[NodeRange] = []
        self.seen: NDArray[np.bool_] | None = None
        self.buffer = ReadBuffer()

    def advance(self, pages: int) -> None:
        """Say how far it is, and whether to go on."""
        with self.lock:
            self.done += pages
            self.machine.tell(min(self.done, self.total or self.done), self.total)
            if self.machine.is_over():
                self.stopped = True

    def add_tally(self, name: str, pages: int) -> None:
        """Add to one of the numbers beside the words."""
        if pages:
            with self.lock:
                self.tallies[name] = self.tallies.get(name, 0) + pages


class Worker:
    """What one thread has for itself."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.counts = WordCounts()
        self.nodes: dict[int, int] = {}
        self.flags: KpageFile | None = None
        self.cgroups: KpageFile | None = None
        self.table: PageTable | None = None
        self.reader: RunReader | None = None

    def open(self) -> None:
        """Open the files; each thread has its own."""
        part = self.part
        if not part.is_hidden:
            self.flags = KpageFile("kpageflags", part.machine)
            self.reader = RunReader(self.flags)
        if part.cgroup:
            self.cgroups = KpageFile("kpagecgroup", part.machine)
        if part.directory is not None:
            self.table = PageTable.open(part.directory, part.machine)

    def close(self) -> None:
        """Close them, and hand over what was counted."""
        for file in (self.flags, self.cgroups, self.table):
            if file is not None:
                file.close()
        with self.part.lock:
            self.part.counts.merge(self.counts)
        for node, pages in self.nodes.items():
            self.part.add_tally(f"node {node}", pages)

    def page_table(self) -> PageTable:
        """Return the page table of the process."""
        if self.table is None:
            raise ValueError("no process is counted")
        return self.table

    def read_flags(self, words: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
        """Return the flags of the page of each pagemap word; None if frames are hidden."""
        return None if self.reader is None else self.reader.read(words).by_page(len(words))

    def note_runs(self, runs: FrameRuns) -> None:
        """Mark frames as seen, and count them by node."""
        stops = runs.pfn + runs.pages
        seen = self.part.seen
        if seen is not None and len(stops):
            if len(stops) * _SLICE_PAGES > int(runs.pages.sum()):
                pfns = expand(runs.pfn, runs.pages)
                seen[pfns[pfns < len(seen)]] = True
            else:
                for first, stop in zip(runs.pfn.tolist(), stops.tolist(), strict=True):
                    seen[first:stop] = True
        for row in self.part.node_ranges:
            inside = np.minimum(stops, row.stop) - np.maximum(runs.pfn, row.first)
            pages = int(np.maximum(inside, 0).sum())
            self.nodes[row.node] = self.nodes.get(row.node, 0) + pages


class CountJob(Protocol):
    """Counts one job, ``(first, stop)`` ranges of pages or frames; returns their pages."""

    def __call__(self, worker: Worker, job: list[Window]) -> int: ...


def run_jobs(part: Part, jobs: Iterable[list[Window]], count: CountJob) -> None:
    """Give the jobs to threads: reads of the kernel's files run side by side."""
    pending = iter(jobs)

    def work() -> None:
        worker = Worker(part)
        try:
            worker.open()
            while not part.stopped:
                with part.lock:
                    job = next(pending, None)
                if job is None:
                    return
                part.advance(count(worker, job))
        except BaseException:
            part.stopped = True
            raise
        finally:
            worker.close()

    run_threads([work] * count_threads())


@contextmanager
def open_workers(part: Part) -> Iterator[list[Worker]]:
    """Open the files for each thread; when it is over, what they counted is added up."""
    workers = [Worker(part) for _ in range(count_threads())]
    try:
        for worker in workers:
            worker.open()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def share_calls(
    workers: Sequence[Worker], number: int, call: Callable[[Worker, int], None]
) -> None:
    """Call for each number below this one, in as many threads as there are workers."""
    pending = iter(range(number))

    def work(worker: Worker) -> Callable[[], None]:
        def take() -> None:
            # next() of a range is one step: two threads never get the same.
            for index in pending:
                call(worker, index)

        return take

    run_threads([work(worker) for worker in workers[:number]])


def add_parts(parts: Sequence[Part]) -> FlagCounts:
    """Return the sum of what was counted in parts; a frame in two of them is one."""
    counts, tallies = WordCounts(), dict[str, int]()
    for part in parts:
        counts.merge(part.counts)
        for name, pages in part.tallies.items():
            tallies[name] = tallies.get(name, 0) + pages
    words, found = counts.totals()
    nodes = {row.node for part in parts for row in part.node_ranges}
    return FlagCounts(
        words=words,
        pages=found,
        frames=_count_seen(parts),
        swapped_pages=tallies.get("swapped", 0),
        marker_pages=tallies.get("markers", 0),
        moved_pages=tallies.get("moved", 0),
        hidden_pages=tallies.get("hidden", 0),
        node_pages={node: tallies.get(f"node {node}", 0) for node in sorted(nodes)},
        is_complete=not any(part.stopped for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _count_seen(parts: Sequence[Part]) -> int | None:
    seen = [part.seen for part in parts if part.seen is not None]
    if not parts or len(seen) < len(parts):
        return None
    together = max(seen, key=len)
    for one in seen:
        if one is not together:
            together[: len(one)] |= one
    return int(np.count_nonzero(together))
