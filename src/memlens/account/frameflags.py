"""Page frames by combination of flags: of the whole machine, or of one memory cgroup."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memlens.account.flagpages import Window
from memlens.account.flagworkers import FlagCounts, Part, Worker, add_parts, run_jobs
from memlens.account.follow import Follow, Progress, Stop
from memlens.kernel.cgroupmembers import find_cgroup, read_cgroup_inode
from memlens.kernel.kpagebatch import read_sorted
from memlens.kernel.physical import count_frames

_MACHINE_FRAMES = 1 << 16


def count_machine_flags(
    *,
    addresses: tuple[int, int] | None = None,
    proc: str = "/proc",
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> FlagCounts:
    """
    Count all page frames of the machine, holes between them included as ``nopage``.

    :param addresses: only this half-open range of physical addresses, in bytes.
    :param on_progress: called with pages done and in all, 0 if that is not known.
    :param should_stop: asked between pieces; True ends the count.
    :raises AccessDenied: if this user may not read kpageflags.
    """
    part = Part(proc, Follow(on_progress, should_stop))
    run_jobs(part, _machine_jobs(part, addresses), _count_machine_job)
    return add_parts([part])


def count_cgroup_flags(
    inode: int,
    *,
    addresses: tuple[int, int] | None = None,
    proc: str = "/proc",
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> FlagCounts:
    """
    Count the page frames that are charged to one memory cgroup, without those below it.

    :param inode: of the directory of the cgroup, as kpagecgroup gives it.
    :param on_progress: called with pages done and in all, 0 if that is not known.
    :param should_stop: asked between pieces; True ends the count.
    :raises AccessDenied: if this user may not read the kpage files.
    :raises Unsupported: if the kernel has no memory cgroups.
    """
    part = Part(proc, Follow(on_progress, should_stop), cgroup=inode)
    run_jobs(part, _machine_jobs(part, addresses), _count_cgroup_job)
    return add_parts([part])


def resolve_cgroup(path: str, proc: str = "/proc") -> int:
    """
    Return the number by which kpagecgroup names a cgroup.

    :param path: its directory, or its path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is none.
    """
    return read_cgroup_inode(find_cgroup(path, proc))


def _machine_jobs(part: Part, addresses: tuple[int, int] | None) -> Iterator[list[Window]]:
    """Yield ranges of frames until memory ends."""
    first, stop = 0, 1 << 52
    if addresses is not None:
        first = addresses[0] // part.page_size_bytes
        stop = -(-addresses[1] // part.page_size_bytes)
    part.total = max(min(count_frames(part.proc), stop) - first, 0)
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
