"""
Pages by combination of flags, of processes.

The order of reads for a process: pagemap, kpageflags of the frames it names, pagemap
again.  A page whose word has changed meanwhile may have lost its frame to someone else
before its flags were read, so it is asked again.
"""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memlens.account.flagpages import (
    TRIES,
    FrameWords,
    Window,
    list_windows,
    pack_words,
    read_windows,
)
from memlens.account.flagworkers import FlagCounts, Part, Watch, Worker, add_parts, run_jobs
from memlens.kernel import features
from memlens.kernel.kpagebatch import read_sorted
from memlens.kernel.physical import count_frames, read_nodes
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_PRESENT, PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.pages.flags import join_words

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
    part.is_hidden = not features.is_pfn_visible() or _is_refused(proc)
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


def _is_refused(proc: str) -> bool:
    """Return whether kpageflags cannot be read, or may not be."""
    if "kpageflags" in features.read_disabled():
        return True
    return not os.access(f"{proc}/kpageflags", os.R_OK)


def _prepare_frames(part: Part, proc: str) -> None:
    nodes = read_nodes(part.page_size_bytes)
    part.node_ranges = nodes if len({row.node for row in nodes}) > 1 else []
    frames = count_frames(proc)
    if 0 < frames <= _SEEN_FRAMES_AT_MOST and not part.is_hidden:
        part.seen = np.zeros(frames, bool)


def _count_process_job(worker: Worker, job: list[Window]) -> int:
    """Count a job's pages; those whose word changes meanwhile again, a few times."""
    part, pagemap = worker.part, worker.pagemap
    if pagemap is None:
        return 0
    words = read_windows(pagemap, job)
    pages, places = len(words), np.arange(0)
    for attempt in range(TRIES):
        found = _count_words(worker, words)
        again = read_windows(pagemap, job)
        again = again if attempt == 0 else again[places]
        if np.array_equal(again, words):
            return pages
        has_moved = again != words
        _take_back(worker, found, words[has_moved])
        moved = np.flatnonzero(has_moved)
        places = moved if attempt == 0 else places[moved]
        words = again[moved]
    part.add_tally("moved", len(words))
    return pages


def _count_words(worker: Worker, words: NDArray[np.uint64]) -> FrameWords:
    """Count pagemap words with their flags, and return the flags by frame."""
    part = worker.part
    if part.is_hidden or worker.flags is None:
        found = FrameWords.empty()
        present = words[(words & PM_PRESENT) != 0]
        part.add_tally("hidden", len(present))
        worker.counts.add(join_words(np.zeros(1, np.uint64), present))
    else:
        packed = pack_words(words)
        flags = read_sorted(worker.flags, packed.pfns())
        found = FrameWords(packed.packed, join_words(flags, packed.pagemap_part()))
        worker.counts.add(found.joined)
        worker.note_frames(packed.pfns())
    _count_swapped(worker, words, 1)
    return found


def _take_back(worker: Worker, found: FrameWords, words: NDArray[np.uint64]) -> None:
    """Undo ``_count_words`` for pages whose word has changed."""
    part = worker.part
    if part.is_hidden:
        present = words[(words & PM_PRESENT) != 0]
        part.add_tally("hidden", -len(present))
        worker.counts.add(join_words(np.zeros(1, np.uint64), present), -1)
    else:
        packed = pack_words(words).packed
        worker.counts.add(found.joined[np.searchsorted(found.packed, packed)], -1)
    _count_swapped(worker, words, -1)


def _count_swapped(worker: Worker, words: NDArray[np.uint64], times: int) -> None:
    is_swap = (words & PM_SWAP) != 0
    if not is_swap.any():
        return
    entries = words[is_swap]
    worker.counts.add(join_words(np.zeros(1, np.uint64), entries), times)
    in_area = int(((entries & PM_SWAP_AREA) < SWAP_AREAS).sum())
    worker.part.add_tally("swapped", in_area * times)
    worker.part.add_tally("markers", (len(entries) - in_area) * times)
