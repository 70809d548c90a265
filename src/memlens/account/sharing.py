"""RSS, PSS, USS and what exit would free, by process and by group, from page frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.facts import Missed, ProcessFacts, Progress, Want
from memlens.account.frames import Frames
from memlens.account.inventory import SharedObject, read_objects
from memlens.account.ledger import split_objects
from memlens.account.model import Cost
from memlens.account.sweep import Sweep
from memlens.errors import AccessDenied, MemlensError, ProcessGone
from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir

GROUP_KEYS = ("name", "user", "cgroup")


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """
    One process.

    :param rss_pages: pages that its page table maps, as the kernel counts them.
    :param pss_pages: each page divided by how often it is mapped.
    :param uss_pages: pages that nobody else maps.
    :param freed_on_exit_pages: pages that are free once it has ended: private ones mapped
        by it alone, and those of shared-memory objects that go with it.  Pages of files
        stay in the page cache.
    :param swap_own_pages: private pages on swap, each slot once.
    :param swap_share_pages: its even part of swapped pages of objects that it maps.
    :param shared_memory_pages: pages of shared-memory objects that it maps now.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    rss_pages: int
    pss_pages: float
    uss_pages: int
    swap_own_pages: int
    swap_share_pages: float
    freed_on_exit_pages: int
    shared_memory_pages: int


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """
    Processes with the same name, user or cgroup; a page that many map counts once.

    :param distinct_rss_pages: number of distinct page frames.
    :param pss_pages: sum of the PSS of its processes.
    :param swap_own_pages: distinct private slots.
    """

    key: str
    pids: tuple[int, ...]
    distinct_rss_pages: int
    pss_pages: float
    uss_pages: int
    swap_own_pages: int
    swap_share_pages: float


@dataclass(frozen=True, slots=True)
class ProcessList:
    """Processes, their groups, and what could not be looked at."""

    page_size_bytes: int
    processes: tuple[ProcessMemory, ...]
    groups: tuple[ProcessGroup, ...]
    missed: tuple[Missed, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which processes to show; what is None matches all.

    :param uid: effective user.
    :param cgroup: path of a cgroup, those below included.
    :param name: comm, whole.
    """

    uid: int | None = None
    cgroup: str | None = None
    name: str | None = None

    def matches(self, facts: ProcessFacts) -> bool:
        """Return whether a process passes."""
        if self.uid is not None and facts.uid != self.uid:
            return False
        if self.name is not None and facts.name != self.name:
            return False
        if self.cgroup is None:
            return True
        prefix = self.cgroup.rstrip("/")
        return facts.cgroup == self.cgroup or facts.cgroup.startswith(f"{prefix}/")


def list_processes(
    pids: Sequence[int] | None = None,
    *,
    group_by: str | None = None,
    keep: Filter | None = None,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
) -> ProcessList:
    """
    Return what processes use, pages shared between them told apart.

    :param pids: which; all that can be read if None.
    :param group_by: ``name``, ``user`` or ``cgroup``; None for no groups.
    :param keep: a filter of the processes that are shown; all are read, for a page
        counts as shared whoever else maps it.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :raises ProcessGone: if a named process does not exist.
    :raises AccessDenied: if PFNs or map counts may not be read.
    :raises ValueError: for an unknown ``group_by``.
    """
    if group_by is not None and group_by not in GROUP_KEYS:
        raise ValueError(f"not one of {', '.join(GROUP_KEYS)}: {group_by!r}")
    if not features.is_pfn_visible():
        raise AccessDenied(
            "page frame numbers are hidden", path=f"{proc}/self/pagemap", needs="CAP_SYS_ADMIN"
        )
    # Objects have holders anywhere on the machine, so all processes are swept for these,
    # but the frames only of those that are shown.
    sweep = Sweep(proc, Want(objects=True, present=True), budget_s, on_progress)
    sweep.run()
    chosen = [f for f in sweep.processes if keep is None or keep.matches(f)]
    if pids is not None:
        _check_pids(pids, sweep)
        chosen = [f for f in chosen if f.pid in set(pids)]
    framed = Sweep(proc, Want(frames=True), budget_s)
    framed.run([facts.pid for facts in chosen])
    objects = read_objects(sweep)
    return _list(sweep, framed, objects, group_by)


class MapCounts:
    """
    How often page frames are mapped, each asked of the kernel once.

    :param file: an open kpagecount.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """

    def __init__(self, file: KpageFile) -> None:
        self._file = file
        self._pfns = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.uint32)

    def learn(self, pfns: NDArray[np.uint64]) -> None:
        """Ask about frames, sorted and distinct, that are not known yet."""
        fresh = np.setdiff1d(pfns, self._pfns, assume_unique=True)
        if not len(fresh):
            return
        counts = np.minimum(self._file.read_pfns(fresh), np.uint64(0xFFFFFFFF))
        every = np.concatenate([self._pfns, fresh])
        order = np.argsort(every, kind="stable")
        self._pfns = every[order]
        self._counts = np.concatenate([self._counts, counts.astype(np.uint32)])[order]

    def of(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Return the counts of frames that were learnt, in any order, at least 1."""
        counts = self._counts[np.searchsorted(self._pfns, pfns)]
        return np.maximum(counts, np.uint32(1))


def _list(
    sweep: Sweep, framed: Sweep, objects: Sequence[SharedObject], group_by: str | None
) -> ProcessList:
    shares, _ = split_objects(objects)
    kept = _kept_pages(objects)
    shared = {
        f.pid: sum(int(u.present.pages.sum()) for u in f.uses if u.present is not None)
        for f in sweep.processes
    }
    rows = []
    with KpageFile("kpagecount", sweep.proc, sweep.meter) as file:
        counts = MapCounts(file)
        for facts in framed.processes:
            if facts.frames is not None:
                sums = frame_sums(facts.frames, counts)
                rows.append(_row(facts, sums, shares, kept, shared))
    meter = sweep.meter
    meter.merge(framed.meter)
    return ProcessList(
        page_size_bytes=features.page_size_bytes(),
        processes=tuple(sorted(rows, key=lambda row: (-row.pss_pages, row.pid))),
        groups=tuple(_groups(framed.processes, rows, group_by)),
        missed=(*sweep.missed, *framed.missed),
        cost=Cost(meter.wall_s(), meter.read_bytes, meter.longest_read_s),
    )


@dataclass(frozen=True, slots=True)
class FrameSums:
    """RSS, PSS and USS in pages; ``private_pages`` are those of USS that are of no file."""

    rss_pages: int
    pss_pages: float
    uss_pages: int
    private_pages: int


def frame_sums(frames: Frames, counts: MapCounts) -> FrameSums:
    """Return the sums over what a process maps."""
    pfns, places = np.unique(frames.pfn, return_inverse=True)
    counts.learn(pfns.astype(np.uint64))
    mapped = counts.of(pfns.astype(np.uint64))[places]
    is_alone = mapped == 1
    return FrameSums(
        rss_pages=len(frames.pfn),
        pss_pages=float((1.0 / mapped).sum()),
        uss_pages=int(is_alone.sum()),
        private_pages=int((is_alone & ~frames.is_file).sum()),
    )


def _row(
    facts: ProcessFacts,
    sums: FrameSums,
    shares: dict[int, float],
    kept: dict[int, int],
    shared: dict[int, int],
) -> ProcessMemory:
    return ProcessMemory(
        pid=facts.pid,
        name=facts.name,
        uid=facts.uid,
        cgroup=facts.cgroup,
        rss_pages=sums.rss_pages,
        pss_pages=sums.pss_pages,
        uss_pages=sums.uss_pages,
        swap_own_pages=len(facts.swap_words),
        swap_share_pages=shares.get(facts.pid, 0.0),
        freed_on_exit_pages=sums.private_pages + kept.get(facts.pid, 0),
        shared_memory_pages=shared.get(facts.pid, 0),
    )


def _kept_pages(objects: Iterable[SharedObject]) -> dict[int, int]:
    """Return, by PID, the pages in RAM of objects that go with its exit."""
    kept: dict[int, int] = {}
    for item in objects:
        keeper = item.sole_keeper
        if keeper is not None:
            kept[keeper] = kept.get(keeper, 0) + item.resident_pages
    return kept


def _groups(
    processes: Sequence[ProcessFacts], rows: Sequence[ProcessMemory], group_by: str | None
) -> Iterable[ProcessGroup]:
    if group_by is None:
        return
    members: dict[str, list[ProcessFacts]] = {}
    for facts in processes:
        key = {"name": facts.name, "user": str(facts.uid), "cgroup": facts.cgroup}[group_by]
        members.setdefault(key, []).append(facts)
    by_pid = {row.pid: row for row in rows}
    for key, group in sorted(members.items()):
        frames = [facts.frames.pfn for facts in group if facts.frames is not None]
        slots = [facts.swap_words for facts in group]
        own = [by_pid[facts.pid] for facts in group if facts.pid in by_pid]
        yield ProcessGroup(
            key=key,
            pids=tuple(facts.pid for facts in group),
            distinct_rss_pages=len(np.unique(np.concatenate(frames))) if frames else 0,
            pss_pages=sum(row.pss_pages for row in own),
            uss_pages=sum(row.uss_pages for row in own),
            swap_own_pages=len(np.unique(np.concatenate(slots))) if slots else 0,
            swap_share_pages=sum(row.swap_share_pages for row in own),
        )


def _check_pids(pids: Sequence[int], sweep: Sweep) -> None:
    seen = {facts.pid for facts in sweep.processes}
    for pid in pids:
        if pid not in seen:
            raise _why_unread(pid, sweep.proc)


def _why_unread(pid: int, proc: str) -> MemlensError:
    try:
        with ProcessDir(pid, proc) as process:
            process.read_maps()
    except MemlensError as error:
        return error
    return ProcessGone(f"process {pid} ended during the scan", path=f"{proc}/{pid}")
