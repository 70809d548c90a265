"""
Pages by combination of flags, of processes.

The order of reads for a process: pagemap, kpageflags of the frames it names, pagemap
again.  A page whose word has changed meanwhile may have lost its frame to someone else
before its flags were read, so it is asked again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memlens.account.flagpages import (
    TRIES,
    Window,
    are_same,
    list_windows,
    read_windows,
)
from memlens.account.flagworkers import FlagCounts, Part, Watch, Worker, add_parts, run_jobs
from memlens.account.runflags import RunFlags
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.physical import count_frames, read_node_ranges
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_PRESENT, PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.pages.flags import PAGEMAP_PART, join_words
from memlens.pages.frameruns import expand, find_runs

# A byte for every frame of the machine, to count each once; beyond 256 GiB left out.
_SEEN_FRAMES_AT_MOST = 1 << 26


def count_process_flags(
    pids: Sequence[int],
    *,
    addresses: tuple[int, int] | None = None,
    proc: str = "/proc",
    watch: Watch | None = None,
) -> FlagCounts:
    """
    Count the pages that processes map, by their flags.

    :param pids: a page that several of them map counts for each; ``frames`` counts once.
    :param addresses: only this half-open range of addresses, in bytes.
    :raises ProcessGone: if one does not exist, or ends meanwhile.
    :raises AccessDenied: if one may not be read.

    The kernel's ``page-types -p`` gives the same numbers for a process that is stopped.
    """
    parts = [_count_process(pid, addresses, proc, watch or Watch()) for pid in pids]
    return add_parts(parts)


def _count_process(
    pid: int, addresses: tuple[int, int] | None, proc: str, watch: Watch
) -> Part:
    part = Part(proc, watch)
    part.is_hidden = not features.is_pfn_visible() or _is_refused(part)
    _prepare_frames(part, proc)
    with ProcessDir(pid, proc) as directory:
        part.directory = directory
        jobs = list_windows(directory, part.page_size_bytes, addresses)
        part.total = sum(stop - first for job in jobs for first, stop in job)
        try:
            run_jobs(part, jobs, _count_process_job)
        except EOFError:
            raise directory.gone_error() from None
    return part


def _is_refused(part: Part) -> bool:
    """Return whether kpageflags cannot be read, or may not be."""
    if "kpageflags" in features.read_disabled():
        return True
    try:
        KpageFile("kpageflags", part.proc).close()
    except MemlensError as error:
        part.notes.append(str(error))
        return True
    return False


def _prepare_frames(part: Part, proc: str) -> None:
    part.node_ranges = read_node_ranges(part.page_size_bytes)
    frames = count_frames(proc)
    if 0 < frames <= _SEEN_FRAMES_AT_MOST and not part.is_hidden:
        part.seen = np.zeros(frames, bool)


def _count_process_job(worker: Worker, job: list[Window]) -> int:
    """Count a job's pages once their words have stayed while their flags were read."""
    if worker.pagemap is None:
        return 0
    words = read_windows(worker.pagemap, job)
    found = worker.read_flags(words)
    if are_same(worker.pagemap, job, words):
        _count_all(worker, words, found)
    else:
        _count_settled(worker, job, words, found)
    return len(words)


def _count_all(worker: Worker, words: NDArray[np.uint64], found: RunFlags | None) -> None:
    if found is None:
        _count_hidden(worker, words)
    else:
        found.count_into(worker.counts)
        worker.note_runs(found.runs)
    _count_swapped(worker, words)


def _count_settled(
    worker: Worker, job: list[Window], words: NDArray[np.uint64], found: RunFlags | None
) -> None:
    """Count pages whose words stay the same; ask for the others again, a few times."""
    if worker.pagemap is None:
        return
    for attempt in range(TRIES):
        if attempt:
            found = worker.read_flags(words)
        again = read_windows(worker.pagemap, job)
        # A page that was counted has the word 0 here, and is not looked at again.
        is_open = words != 0 if attempt else np.ones(len(words), bool)
        is_moved = is_open & (again != words)
        kept = np.where(is_moved, np.uint64(0), words)
        if found is None:
            _count_hidden(worker, kept)
        else:
            runs = find_runs(kept)
            places = expand(runs.place, runs.pages)
            worker.counts.add(join_words(found.by_page(len(words))[places], kept[places]))
            worker.note_runs(runs)
        _count_swapped(worker, kept)
        if not is_moved.any():
            return
        words = np.where(is_moved, again, np.uint64(0))
    worker.part.add_tally("moved", int(np.count_nonzero(words)))


def _count_hidden(worker: Worker, words: NDArray[np.uint64]) -> None:
    """Count present pages whose frames this reader does not see."""
    present = words[(words & PM_PRESENT) != 0]
    worker.part.add_tally("hidden", len(present))
    worker.counts.add(present & PAGEMAP_PART)


def _count_swapped(worker: Worker, words: NDArray[np.uint64]) -> None:
    is_swap = (words & PM_SWAP) != 0
    if not is_swap.any():
        return
    entries = words[is_swap]
    worker.counts.add(entries & PAGEMAP_PART)
    in_area = int(((entries & PM_SWAP_AREA) < SWAP_AREAS).sum())
    worker.part.add_tally("swapped", in_area)
    worker.part.add_tally("markers", len(entries) - in_area)
