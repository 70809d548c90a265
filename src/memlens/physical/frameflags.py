"""Page frames by combination of flags: of the whole machine, or of one memory cgroup."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.cgroups import find_cgroup, read_cgroup_inode
from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.zoneinfo import count_frames
from memlens.objects.filepages import CachedFile
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.flags import join_words
from memlens.pages.wordcounts import WordCounts
from memlens.physical.counting import FlagCounts, Part, Worker, add_parts, run_jobs
from memlens.scan.machine import Machine
from memlens.scan.pagetable import Window

_MACHINE_FRAMES = 1 << 16


def count_machine_flags(
    machine: Machine,
    *,
    addresses: tuple[int, int] | None = None,
) -> FlagCounts:
    """
    Count all page frames of the machine, holes between them included as ``nopage``.

    :param addresses: only this half-open range of physical addresses, in bytes.
    :raises AccessDenied: if this user may not read kpageflags.
    """
    part = Part(machine)
    run_jobs(part, _machine_jobs(part, addresses), _count_machine_job)
    return add_parts([part])


def count_cgroup_flags(
    inode: int,
    machine: Machine,
    *,
    addresses: tuple[int, int] | None = None,
) -> FlagCounts:
    """
    Count the page frames that are charged to one memory cgroup, without those below it.

    :param inode: of the directory of the cgroup, as kpagecgroup gives it.
    :raises AccessDenied: if this user may not read the kpage files.
    :raises Unsupported: if the kernel has no memory cgroups.
    """
    part = Part(machine, cgroup=inode)
    run_jobs(part, _machine_jobs(part, addresses), _count_cgroup_job)
    return add_parts([part])


def resolve_cgroup(path: str, machine: Machine) -> int:
    """
    Return the number by which kpagecgroup names a cgroup.

    :param path: its directory, or its path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is none.
    """
    return read_cgroup_inode(find_cgroup(path, machine))


def _machine_jobs(part: Part, addresses: tuple[int, int] | None) -> Iterator[list[Window]]:
    """Yield ranges of frames until memory ends."""
    first, stop = 0, 1 << 52
    if addresses is not None:
        first = addresses[0] // part.machine.page_size_bytes
        stop = -(-addresses[1] // part.machine.page_size_bytes)
    part.total = max(min(count_frames(part.machine), stop) - first, 0)
    while first < stop and not part.at_end:
        end = min(first + _MACHINE_FRAMES, stop)
        yield [(first, end)]
        first = end


def _count_machine_job(worker: Worker, job: list[Window]) -> int:
    done = 0
    for first, stop in job:
        if worker.flags is None:
            break
        before = done
        for _, words in worker.flags.iter_range(first, stop - first, _MACHINE_FRAMES):
            worker.counts.add(words)
            done += len(words)
        worker.part.at_end |= done - before < stop - first
    return done


def _count_cgroup_job(worker: Worker, job: list[Window]) -> int:
    done = 0
    for first, stop in job:
        if worker.flags is None or worker.cgroups is None:
            break
        before = done
        for pfn, owners in worker.cgroups.iter_range(first, stop - first):
            done += len(owners)
            pfns = np.flatnonzero(owners == np.uint64(worker.part.cgroup)) + pfn
            if len(pfns):
                _count_charged(worker, pfns)
        worker.part.at_end |= done - before < stop - first
    return done


def _count_charged(worker: Worker, pfns: NDArray[np.int64]) -> None:
    """Count frames that are charged to the cgroup before and after their flags are read."""
    if worker.flags is None or worker.cgroups is None:
        return
    flags = read_sorted(worker.flags, pfns)
    is_still = read_sorted(worker.cgroups, pfns) == np.uint64(worker.part.cgroup)
    worker.counts.add(flags[is_still])
    worker.part.add_tally("moved", len(pfns) - int(is_still.sum()))


def count_file_flags(
    paths: Sequence[str],
    machine: Machine,
    *,
    offsets: tuple[int, int] | None = None,
) -> FlagCounts:
    """
    Count the pages of files that are in RAM, by their flags.

    :param offsets: only this half-open range of offsets, in bytes.
    :raises MemlensError: if a file cannot be looked at.
    :raises AccessDenied: if frames are hidden from this reader.

    Each cached page is mapped here for a moment; see ``kernel.cachedframes``.
    """
    counts, moved = WordCounts(), 0
    machine.require_frames()
    is_stopped = False
    with KpageFile("kpageflags", machine) as flags:
        for path in paths:
            with CachedFile(path, machine) as file:
                for piece in iter_file_flags(file, flags, offsets):
                    counts.add(piece.joined[piece.is_same])
                    moved += int((~piece.is_same).sum())
                    machine.tell(piece.stop, file.pages)
                    if machine.is_over():
                        is_stopped = True
                        break
    words, pages = counts.totals()
    return FlagCounts(
        words=words,
        pages=pages,
        moved_pages=moved,
        is_complete=not is_stopped,
    )


class FilePiece(NamedTuple):
    """
    Cached pages of a piece of a file, ``(n,)`` each.

    :param stop: page after the piece.
    :param place: page in the file, int64.
    :param pfn: frame, int64.
    :param joined: joined words, uint64.
    :param is_same: which still had this frame after its flags were read, bool.
    """

    stop: int
    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    joined: NDArray[np.uint64]
    is_same: NDArray[np.bool_]


def iter_file_flags(
    file: CachedFile, flags: KpageFile, offsets: tuple[int, int] | None
) -> Iterator[FilePiece]:
    """Yield the cached pages of a file, piece by piece."""
    size = file.page_size_bytes
    first, stop = 0, None
    if offsets is not None:
        first, stop = offsets[0] // size, -(-offsets[1] // size)
    for page, words in file.iter_words(first, stop):
        present = np.flatnonzero(words & PM_PRESENT)
        kept = words[present]
        pfns = (kept & PM_PFN).view(np.int64)
        order = np.argsort(pfns)
        found = np.empty(len(pfns), np.uint64)
        found[order] = read_sorted(flags, pfns[order])
        _, again = next(file.iter_words(page, page + len(words)))
        yield FilePiece(
            page + len(words),
            present + page,
            pfns,
            join_words(found, kept),
            again[present] == kept,
        )
