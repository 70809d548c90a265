"""RSS, PSS, USS and what exit would free, by process and by group, from page frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from memlens.errors import AccessDenied, MemlensError, ProcessGone
from memlens.kernel import features
from memlens.kernel.cgroups import find_cgroup_path
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import distinct
from memlens.scan.facts import ProcessFacts, Want, Who
from memlens.scan.machine import Machine, Progress, Stop
from memlens.scan.mapcounts import FrameSums, MapCounts
from memlens.scan.sweep import Sweep
from memlens.sharing.exits import Memories, find_memories
from memlens.sharing.records import ProcessGroup, ProcessList, ProcessMemory
from memlens.shm.facts import (
    ObjectFacts,
    holder_notes,
    kept_pages,
    share_notes,
    split_objects,
    sum_shares,
)
from memlens.shm.inventory import read_objects

GROUP_KEYS = ("name", "user", "cgroup")


@dataclass(frozen=True, slots=True)
class ProcessFilter:
    """
    Which processes to show; what is None matches all.

    :param uid: effective user.
    :param cgroup: a cgroup, those below included: its directory, or its path as
        /proc/PID/cgroup gives it.
    :param name: comm, whole.
    """

    uid: int | None = None
    cgroup: str | None = None
    name: str | None = None

    def resolved(self, machine: Machine) -> "ProcessFilter":
        """
        Return the same with the path of the cgroup, as processes have it.

        :raises MemlensError: if there is no such cgroup.
        """
        if self.cgroup is None:
            return self
        return replace(self, cgroup=find_cgroup_path(self.cgroup, machine))

    def matches(self, facts: ProcessFacts | Who) -> bool:
        """Return whether a process passes; a cgroup must be resolved."""
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
    keep: ProcessFilter | None = None,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> ProcessList:
    """
    Return what processes use, pages shared between them told apart.

    :param pids: which; all that can be read if None.
    :param group_by: ``name``, ``user`` or ``cgroup``; None for no groups.
    :param keep: a filter of the processes that are shown.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with what is done and what there is in all: processes,
        then objects.
    :param should_stop: asked often; True ends the scan, with the rest in ``missed``.
    :raises ProcessGone: if a named process does not exist.
    :raises AccessDenied: if a named process may not be read.
    :raises MemlensError: if there is no such cgroup as ``keep`` names.
    :raises ValueError: for an unknown ``group_by``.

    Objects have holders anywhere on the machine, so all processes are looked at for these,
    but the frames only of those that are shown.  A reader who may not see frames gets RSS,
    PSS and USS as smaps_rollup sums them up.
    """
    if group_by is not None and group_by not in GROUP_KEYS:
        raise ValueError(f"not one of {', '.join(GROUP_KEYS)}: {group_by!r}")

    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    kept = (keep or ProcessFilter()).resolved(machine)

    def is_shown(who: Who | ProcessFacts) -> bool:
        return (pids is None or who.pid in pids) and kept.matches(who)

    counts, reason = _open_counts(machine)
    want = Want(objects=True, present_pages=True, who=is_shown)
    sweep = Sweep(machine, want)
    if counts is None:
        sweep.want = replace(want, rollup=True)
        sweep.run()
        sums, memories = {}, Memories()
    else:
        sums = _run_counting(sweep, counts, group_by is not None)
        memories = find_memories(sweep.processes, is_shown, machine)
    if sweep.is_complete:
        _check_pids(pids or (), sweep)
    found = _Found(
        [facts for facts in sweep.processes if is_shown(facts)],
        sums,
        memories,
        read_objects(sweep, tells_present=False).objects,
        machine,
    )
    notes = (f"{reason}: RSS, PSS and USS are smaps_rollup's",) if reason else ()
    return _list(sweep, found, group_by, notes)


class _Found(NamedTuple):
    """What a scan gave: the processes shown, sums of them by PID, and what they share."""

    chosen: Sequence[ProcessFacts]
    sums: dict[int, FrameSums]
    memories: Memories
    objects: Sequence[ObjectFacts]
    machine: Machine


def _run_counting(sweep: Sweep, counts: KpageFile, keep_frames: bool) -> dict[int, FrameSums]:
    """Sweep, and return the sums of what each process maps."""
    try:
        table = MapCounts(counts, sweep.machine)
        sweep.want = replace(sweep.want, frames=True, counts=table, keep_frames=keep_frames)
        sweep.run()
        return table.sums()
    finally:
        counts.close()


def _open_counts(machine: Machine) -> tuple[KpageFile | None, str]:
    try:
        machine.require_frames()
    except AccessDenied as error:
        return None, f"{error.message} (needs {error.needs})"
    try:
        return KpageFile("kpagecount", machine), ""
    except MemlensError as error:
        return None, str(error)


def _list(
    sweep: Sweep, found: _Found, group_by: str | None, notes: Sequence[str]
) -> ProcessList:
    shares, _ = split_objects(found.objects)
    kept = kept_pages(found.objects)
    rows = [_row(facts, found, shares, kept) for facts in found.chosen]
    notes = [*notes, *found.memories.notes()]
    if features.is_pfn_visible():
        notes += holder_notes(found.objects)
    notes += share_notes(found.objects)
    notes += sweep.notes()
    return ProcessList(
        page_size_bytes=found.machine.page_size_bytes,
        processes=tuple(sorted(rows, key=lambda row: (-row.pss_pages, row.pid))),
        groups=tuple(_groups(found, rows, group_by)) if group_by is not None else (),
        missed=tuple(sweep.missed),
        notes=tuple(notes),
        cost=found.machine.cost(),
        is_complete=sweep.is_complete,
    )


def _row(
    facts: ProcessFacts,
    found: _Found,
    shares: dict[int, float | None],
    kept: dict[int, int],
) -> ProcessMemory:
    size = found.machine.page_size_bytes
    sums = found.sums.get(facts.pid)
    shared = sum(use.present_pages or 0 for use in facts.uses)
    if sums is not None:
        rss, pss, uss = sums.rss_pages, sums.pss_pages, sums.uss_pages
        own = len(facts.swap_words)
        freed = found.memories.freed(facts.pid, sums.private_pages)
        freed = None if freed is None else freed + kept.get(facts.pid, 0)
    else:
        figures = facts.rollup
        rss, pss = figures.get("Rss", 0) // size, figures.get("Pss", 0) / size
        uss = (figures.get("Private_Clean", 0) + figures.get("Private_Dirty", 0)) // size
        # Private pages alone: those of objects are not in it.
        own, freed = figures.get("VmSwap", 0) // size, None
    return ProcessMemory(
        pid=facts.pid,
        name=facts.name,
        uid=facts.uid,
        cgroup=facts.cgroup,
        rss_pages=rss,
        pss_pages=pss,
        uss_pages=uss,
        swap_own_pages=own,
        swap_share_pages=shares.get(facts.pid, 0.0),
        freed_on_exit_pages=freed,
        shared_memory_pages=shared,
    )


_KEYS: dict[str, Callable[[ProcessFacts], str]] = {
    "name": lambda facts: facts.name,
    "user": lambda facts: str(facts.uid),
    "cgroup": lambda facts: facts.cgroup,
}


def _groups(
    found: _Found, rows: Sequence[ProcessMemory], group_by: str
) -> Iterator[ProcessGroup]:
    members: dict[str, list[ProcessFacts]] = {}
    for facts in found.chosen:
        members.setdefault(_KEYS[group_by](facts), []).append(facts)
    by_pid = {row.pid: row for row in rows}
    for key, group in sorted(members.items()):
        frames = [facts.frames for facts in group if facts.frames is not None]
        slots = [facts.swap_words for facts in group]
        own = [by_pid[facts.pid] for facts in group]
        once = found.memories.once(own)
        is_known = len(frames) == len(group)
        yield ProcessGroup(
            key=key,
            pids=tuple(facts.pid for facts in group),
            distinct_rss_pages=len(distinct(np.concatenate(frames))) if is_known else None,
            pss_pages=sum(row.pss_pages for row in once),
            uss_pages=sum(row.uss_pages for row in once),
            swap_own_pages=len(distinct(np.concatenate(slots))) if is_known else None,
            swap_share_pages=sum_shares(row.swap_share_pages for row in own),
        )


def _check_pids(pids: Sequence[int], sweep: Sweep) -> None:
    seen = {facts.pid for facts in sweep.processes}
    for pid in pids:
        if pid not in seen:
            raise _why_unread(pid, sweep.machine)


def _why_unread(pid: int, machine: Machine) -> MemlensError:
    try:
        with ProcessDir(pid, machine) as process:
            process.read_maps()
            process.read("smaps_rollup")
    except MemlensError as error:
        return error
    return ProcessGone(f"process {pid} ended during the scan", path=f"{machine.root}/{pid}")
