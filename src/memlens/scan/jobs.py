"""Pages of a process in jobs of a bounded size, shared among threads where a core is idle."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from memlens.kernel.maps import KERNEL_HALF
from memlens.kernel.pagemap import PAGE_IS_PRESENT, PAGE_IS_SWAPPED
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import join_ranges
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable, Window

# Ranges that are read together.
Job = list[Window]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# How often a page that changes is asked again.
TRIES = 4

# More pages at once are more frames that lie together; fewer stay in the CPU's cache, and
# fewer change meanwhile.
JOB_PAGES = 1 << 16

# Reading over a gap of so many pages costs less than another read.
_GAP_PAGES = 64

# Words are read at once where at least this share of the pages is there.
_SPARSE = 4
_ENTRIES = PAGE_IS_PRESENT | PAGE_IS_SWAPPED

# More would wait for each other: what Python does between reads, it does one at a time.
_THREADS_AT_MOST = 4


def list_windows(
    directory: ProcessDir, machine: Machine, addresses: tuple[int, int] | None = None
) -> list[list[Window]]:
    """
    Return the ranges of pages to read, in jobs of a bounded size.

    :param addresses: only this half-open range of addresses, in bytes.
    """
    size = machine.page_size_bytes
    ranges = [
        (mapping.start // size, mapping.stop // size)
        for mapping in directory.read_maps()
        if mapping.start < KERNEL_HALF
    ]
    if addresses is not None:
        low, high = addresses[0] // size, -(-addresses[1] // size)
        ranges = [(max(a, low), min(b, high)) for a, b in ranges if a < high and b > low]
    ranges = list(join_ranges(ranges, _GAP_PAGES))
    if machine.may("pagemap_scan") and _is_sparse(directory, ranges):
        with PageTable.open(directory, machine) as table:
            ranges = [
                (first, stop)
                for regions in table.regions(ranges, _ENTRIES, _ENTRIES)
                for first, stop in regions[:, :2].tolist()
            ]
    return list(cut_windows(ranges))


def _is_sparse(directory: ProcessDir, ranges: list[Window]) -> bool:
    """Return whether a scan for what is there is worth its price."""
    resident = int(directory.read("statm").split()[1])
    pages = sum(stop - first for first, stop in ranges)
    return pages > _SPARSE * resident + JOB_PAGES


def cut_windows(ranges: Iterable[Window]) -> Iterator[list[Window]]:
    """Group small ranges, with what little is between them, and cut large ones, into jobs."""
    job: list[Window] = []
    room = JOB_PAGES
    for first, stop in join_ranges(ranges, _GAP_PAGES):
        while first < stop:
            end = min(stop, first + room)
            job.append((first, end))
            room -= end - first
            first = end
            if not room:
                yield job
                job, room = [], JOB_PAGES
    if job:
        yield job


def count_threads() -> int:
    """Return how many threads to read with."""
    return min(len(os.sched_getaffinity(0)), _THREADS_AT_MOST)


def share(
    items: Sequence[_Item], call: Callable[[_Item], _Result], threads: int | None = None
) -> list[_Result]:
    """
    Return what a call gives for each item, the calls shared among threads.

    >>> share([1, 2, 3], lambda number: number * 2)
    [2, 4, 6]

    :param threads: how many, this one included; ``count_threads`` if none are given.

    The first error of any is raised.  (concurrent.futures takes 10 ms to import.)
    """
    found: dict[int, _Result] = {}
    errors: list[BaseException] = []
    pending = iter(enumerate(items))

    def work() -> None:
        try:
            # The next of an enumeration is one step: two threads never get the same.
            for number, item in pending:
                found[number] = call(item)
        except BaseException as error:
            errors.append(error)

    number = min(count_threads() if threads is None else threads, len(items))
    others = [threading.Thread(target=work) for _ in range(number - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
    return [found[number] for number in range(len(found))]


# A file system that takes longer to answer is not waited for.
_PATIENCE_S = 2.0


def ask_patiently(call: Callable[[], _Result], otherwise: _Result) -> _Result | None:
    """
    Return what a call returns in another thread, None if it does not come back.

    The thread is left alone then.

    :param otherwise: what is returned if it raises OSError.

    >>> ask_patiently(lambda: os.stat("/").st_nlink > 0, False)
    True
    """
    # Not a Future: concurrent.futures imports 10 ms of other modules.
    answers: SimpleQueue[_Result] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(call())
        except OSError:
            answers.put(otherwise)

    threading.Thread(target=run, name="memlens-asks", daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE_S)
    except Empty:
        return None
