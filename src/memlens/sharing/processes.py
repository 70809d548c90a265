"""RSS, PSS, USS and what exit would free, by process and by group, from page frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from memlens.errors import AccessDenied, MemlensError, ProcessGone
from memlens.kernel import features
from memlens.kernel.cgroups import find_cgroup_path
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import distinct
from memlens.record import Table
from memlens.scan.facts import ProcessFacts, Want, Who
from memlens.scan.machine import Machine, Progress, Stop
from memlens.scan.mapcounts import FrameSums, MapCounts
from memlens.scan.sweep import Sweep
from memlens.sharing.exits import Memories, find_memories
from memlens.sharing.records import ProcessGroup, ProcessList, ProcessMemory
from memlens.shm.facts import (
    holder_notes,
    kept_pages,
    share_notes,
    split_objects,
    sum_shares,
)
from memlens.shm.inventory import read_objects
from memlens.units import count_of, user_name

GROUP_KEYS = ("name", "user", "cgroup")
_NO_SLOTS = np.empty(0, np.uint64)


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
    origin = machine.origin()
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
    objects = read_objects(sweep, tells_present=False).objects
    found = _Found(
        [facts for facts in sweep.processes if is_shown(facts)],
        sums,
        memories,
        machine,
        _private_shares(sweep, memories),
        split_objects(objects)[0],
        kept_pages(objects),
    )
    notes = [f"{reason}: RSS, PSS and USS are smaps_rollup's"] if reason else []
    notes += found.memories.notes()
    if features.is_pfn_visible():
        notes += holder_notes(objects)
    notes += [*share_notes(objects), *_slot_notes(found), *sweep.notes()]
    rows = sorted(
        (_row(facts, found) for facts in found.chosen),
        key=lambda row: (-row.pss_pages, row.pid),
    )
    tables: dict[str, Table[Any]] = {"processes": Table.of(ProcessMemory, rows)}
    if group_by is not None:
        groups = sorted(
            _groups(found, rows, group_by), key=lambda group: (-group.pss_pages, group.key)
        )
        tables["groups"] = Table.of(ProcessGroup, groups)
    return ProcessList.at(
        origin,
        tables=tables,
        missed=sweep.missed,
        notes=notes,
        cost=machine.cost(),
        is_complete=sweep.is_complete,
    )


class _Found(NamedTuple):
    """
    What a scan gave.

    :param chosen: the processes shown.
    :param sums: of what each maps, by PID.
    :param private_shares: part of each in private slots, in pages, by PID.
    :param object_shares: part of each in swapped pages of objects, in pages, by PID.
    :param kept: pages in RAM of objects that go with a process, by PID.
    """

    chosen: Sequence[ProcessFacts]
    sums: dict[int, FrameSums]
    memories: Memories
    machine: Machine
    private_shares: dict[int, float | None]
    object_shares: dict[int, float | None]
    kept: dict[int, int]


def _run_counting(sweep: Sweep, counts: KpageFile, keep_frames: bool) -> dict[int, FrameSums]:
    """Sweep, and return the sums of what each process maps."""
    try:
        table = MapCounts(counts, sweep.machine)
        # Of others only their slots: these may be those of processes that are shown.
        sweep.want = replace(
            sweep.want, frames=True, swap=True, counts=table, keep_frames=keep_frames
        )
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


def _private_shares(sweep: Sweep, memories: Memories) -> dict[int, float | None]:
    """Return the part of each process in private slots: each split over all memories."""
    size = sweep.machine.page_size_bytes
    shares: dict[int, float | None] = {}
    one_of_each = {memories.of(facts.pid): facts for facts in sweep.processes}
    every = [facts.swap_words for facts in one_of_each.values() if len(facts.swap_words)]
    slots, times = np.unique(np.concatenate([_NO_SLOTS, *every]), return_counts=True)
    for facts in sweep.processes:
        if facts.rollup:
            shares[facts.pid] = facts.rollup.get("SwapPss", 0) / size
        elif not len(facts.swap_words):
            shares[facts.pid] = 0.0
        elif facts.pid in memories.doubtful or sweep.may_miss_holders():
            shares[facts.pid] = None
        else:
            found = times[np.searchsorted(slots, facts.swap_words)]
            shares[facts.pid] = float((1 / found).sum())
    return shares


def _slot_notes(found: _Found) -> Iterator[str]:
    unknown = sum(found.private_shares[facts.pid] is None for facts in found.chosen)
    if unknown:
        count = count_of(unknown, "process", "processes")
        yield f"share is not known of {count}: others may have the same private slots"


def _row(facts: ProcessFacts, found: _Found) -> ProcessMemory:
    size = found.machine.page_size_bytes
    sums = found.sums.get(facts.pid)
    if sums is not None:
        rss, pss, uss = sums.rss_pages, sums.pss_pages, sums.uss_pages
        freed = found.memories.freed(facts.pid, sums.private_pages)
        freed = None if freed is None else freed + found.kept.get(facts.pid, 0)
    else:
        figures = facts.rollup
        rss, pss = figures.get("Rss", 0) // size, figures.get("Pss", 0) / size
        uss = (figures.get("Private_Clean", 0) + figures.get("Private_Dirty", 0)) // size
        freed = None
    return ProcessMemory(
        pid=facts.pid,
        user=user_name(facts.uid),
        uid=facts.uid,
        rss_pages=rss,
        pss_pages=pss,
        uss_pages=uss,
        swap_entries_pages=facts.count_entries(size),
        swap_share_bytes=_share_bytes(found, [facts.pid], [facts.pid]),
        freed_on_exit_pages=freed,
        shared_memory_pages=sum(use.present_pages or 0 for use in facts.uses),
        cgroup=facts.cgroup,
        name=facts.name,
    )


def _share_bytes(
    found: _Found, memories: Sequence[int], processes: Sequence[int]
) -> int | None:
    """Return the part in private slots of memories, by a PID of each, and in objects."""
    share = sum_shares(
        [
            *(found.private_shares.get(pid, 0.0) for pid in memories),
            *(found.object_shares.get(pid, 0.0) for pid in processes),
        ]
    )
    return None if share is None else round(share * found.machine.page_size_bytes)


_KEYS: dict[str, Callable[[ProcessFacts], str]] = {
    "name": lambda facts: facts.name,
    "user": lambda facts: user_name(facts.uid),
    "cgroup": lambda facts: facts.cgroup,
}


def _groups(
    found: _Found, rows: Sequence[ProcessMemory], group_by: str
) -> Iterator[ProcessGroup]:
    members: dict[str, list[ProcessFacts]] = {}
    for facts in found.chosen:
        members.setdefault(_KEYS[group_by](facts), []).append(facts)
    by_pid = {row.pid: row for row in rows}
    for key, group in members.items():
        frames = [facts.frames for facts in group if facts.frames is not None]
        slots = [facts.swap_words for facts in group]
        own = [by_pid[facts.pid] for facts in group]
        once = found.memories.once(own)
        is_known = len(frames) == len(group)
        yield ProcessGroup(
            by=group_by,
            processes=len(group),
            distinct_rss_pages=len(distinct(np.concatenate(frames))) if is_known else None,
            pss_pages=sum(row.pss_pages for row in once),
            uss_pages=sum(row.uss_pages for row in once),
            swap_slots_pages=len(distinct(np.concatenate(slots))) if is_known else None,
            swap_share_bytes=_share_bytes(
                found, [row.pid for row in once], [row.pid for row in own]
            ),
            key=key,
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
