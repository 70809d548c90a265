"""Every shared-memory object of the machine, once, with its holders."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.facts import Missed, ObjectUse, ProcessFacts, Progress, Want
from memlens.account.finding import Finder, FoundObject
from memlens.account.model import Cost
from memlens.account.objects import ObjectReader
from memlens.account.sweep import Sweep
from memlens.kernel import features
from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.pages.classes import REASONS, PageClass, Verdict
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    count_runs,
    merge_runs,
    replace_runs,
    restrict_runs,
    select_runs,
    union_runs,
)


@dataclass(frozen=True, slots=True)
class Holder:
    """
    A process that maps an object or has it open.

    :param mapped_pages: pages of the object that its mappings cover.
    :param present_pages: pages of the object that its page table maps now; None if the
        page tables were not read.
    :param is_open: whether it has a descriptor of it.
    :param ranges: half-open page ranges of the object that it maps.
    """

    pid: int
    name: str
    mapped_pages: int
    present_pages: int | None
    is_open: bool
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SharedObject:
    """
    One shared-memory object.

    :param kind: ``memfd``, ``tmpfs``, ``sysv`` or ``anonymous``.
    :param name: raw: a path for tmpfs, ``memfd:NAME``, ``sysv:ID``.
    :param device: ``major:minor`` in hexadecimal, as in maps.
    :param runs: a ``PageClass`` for every page up to the end of the object; ``present``
        means mapped by at least one process, ``cached`` in RAM and mapped by none.
    :param holders: processes, by PID.
    :param marks: ``deleted``, ``no_holder``, ``detached`` (System V, no attachment),
        ``huge``, ``sealed``, ``other_mount_namespace``, ``other_ipc_namespace``.
    :param reasons: why pages are ``unknown``.
    :param born_s: when it was made, seconds since 1970; 0.0 if not known.
    """

    kind: str
    name: str
    device: str
    inode: int
    size_bytes: int
    uid: int
    runs: Runs
    holders: tuple[Holder, ...]
    marks: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    born_s: float = 0.0
    cgroup: str = ""

    def counts(self) -> NDArray[np.int64]:
        """Return the pages in each class, ``(len(PageClass),)`` int64."""
        return count_runs(self.runs, len(PageClass))

    @property
    def resident_pages(self) -> int:
        """Return the pages that count in ``Shmem`` of /proc/meminfo."""
        counts = self.counts()
        kinds = (PageClass.PRESENT, PageClass.CACHED, PageClass.PREALLOCATED)
        return int(sum(counts[kind] for kind in kinds))

    @property
    def swap_pages(self) -> int:
        """Return the pages that hold a swap slot."""
        counts = self.counts()
        return int(counts[PageClass.SWAPPED] + counts[PageClass.SWAP_CACHED])

    @property
    def mappers(self) -> tuple[int, ...]:
        """Return the PIDs that map it."""
        return tuple(holder.pid for holder in self.holders if holder.mapped_pages)

    @property
    def sole_keeper(self) -> int | None:
        """Return the PID with whose exit the object goes, None if it would stay."""
        is_named = (self.kind == "tmpfs" or self.kind == "sysv") and "deleted" not in self.marks
        if is_named or len(self.holders) != 1:
            return None
        return self.holders[0].pid


@dataclass(frozen=True, slots=True)
class Inventory:
    """
    Every shared-memory object.

    :param shmem_pages: ``Shmem`` of /proc/meminfo.
    :param missed: what could not be looked at.
    """

    page_size_bytes: int
    shmem_pages: int
    objects: tuple[SharedObject, ...]
    missed: tuple[Missed, ...]
    cost: Cost

    @property
    def remainder_pages(self) -> int:
        """Return what of ``Shmem`` belongs to none of the objects."""
        return self.shmem_pages - sum(item.resident_pages for item in self.objects)


def list_shared_memory(
    *,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
) -> Inventory:
    """
    Return every shared-memory object of the machine, once.

    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with processes done and processes in all.
    :raises Unsupported: if ``proc`` is none.
    """
    sweep = Sweep(proc, Want(objects=True, present=True), budget_s, on_progress)
    sweep.run()
    objects = read_objects(sweep)
    shmem = read_meminfo_pages("Shmem", proc)
    meter = sweep.meter
    return Inventory(
        page_size_bytes=features.page_size_bytes(),
        shmem_pages=shmem,
        objects=tuple(objects),
        missed=tuple(sweep.missed),
        cost=Cost(meter.wall_s(), meter.read_bytes, meter.longest_read_s),
    )


def read_objects(sweep: Sweep, only_swapped: bool = False) -> list[SharedObject]:
    """
    Look at every object that a sweep found, and at those that no process holds.

    :param only_swapped: whether objects without swapped pages may be left out.
    """
    finder = Finder(sweep)
    found = []
    for item in finder.find():
        if sweep.is_over():
            sweep.missed.append(Missed("shared-memory objects", "the budget was spent"))
            break
        shared = _read_object(sweep, finder, item, only_swapped)
        if shared is not None:
            found.append(shared)
    sweep.missed.extend(finder.missed)
    return sorted(found, key=lambda item: (-item.resident_pages - item.swap_pages, item.name))


def read_meminfo_pages(name: str, proc: str) -> int:
    """Return a figure of /proc/meminfo in pages, 0 if it is not there."""
    try:
        sizes = parse_meminfo(read_file(f"{proc}/meminfo"))
    except OSError:
        return 0
    return sizes.get(name, 0) // features.page_size_bytes()


def _read_object(
    sweep: Sweep, finder: Finder, item: FoundObject, only_swapped: bool
) -> SharedObject | None:
    backing = finder.open(item)
    if isinstance(backing, str):
        sweep.missed.append(Missed(item.label, backing))
        return None
    try:
        status = os.fstat(backing.fd)
        reader = ObjectReader(backing, features.read_disabled(), features.has_cachestat())
        pages = backing.size_pages()
        if only_swapped and reader.is_without_swap(pages):
            return None
        runs = reader.verdicts(0, pages) if pages else EMPTY
        marks = finder.marks(item, backing, status)
    except OSError as error:
        sweep.missed.append(Missed(item.label, os.strerror(error.errno or 0)))
        return None
    finally:
        backing.close()
    runs, reasons = _split_reasons(_mark_present(runs, item.uses))
    return SharedObject(
        kind=item.kind,
        name=item.name,
        device=f"{os.major(item.key[0]):02x}:{os.minor(item.key[0]):02x}",
        inode=item.key[1],
        size_bytes=status.st_size,
        uid=item.uid if item.uid is not None else status.st_uid,
        runs=runs,
        holders=_holders(item.uses, pages),
        marks=marks,
        reasons=reasons,
        born_s=item.born_s,
        cgroup="",
    )


def _mark_present(runs: Runs, uses: Iterable[tuple[ProcessFacts, ObjectUse]]) -> Runs:
    """Call ``present`` what is in RAM and mapped by anybody."""
    mapped = union_runs([use.present for _, use in uses if use.present is not None])
    cached = select_runs(runs, runs.value == PageClass.CACHED)
    both = restrict_runs(cached, mapped)
    value = np.full(len(both), PageClass.PRESENT, np.uint8)
    return replace_runs(runs, Runs(both.first, both.pages, value))


def _split_reasons(runs: Runs) -> tuple[Runs, tuple[str, ...]]:
    is_open = runs.value >= Verdict.FIRST_REASON
    reasons = tuple(
        REASONS[value - Verdict.FIRST_REASON] for value in np.unique(runs.value[is_open])
    )
    value = np.minimum(runs.value, np.uint8(PageClass.UNKNOWN))
    return merge_runs(Runs(runs.first, runs.pages, value)), reasons


def _holders(uses: Iterable[tuple[ProcessFacts, ObjectUse]], pages: int) -> tuple[Holder, ...]:
    by_process: dict[int, list[tuple[ProcessFacts, ObjectUse]]] = {}
    for facts, use in uses:
        by_process.setdefault(facts.pid, []).append((facts, use))
    return tuple(_holder(by_process[pid], pages) for pid in sorted(by_process))


def _holder(uses: list[tuple[ProcessFacts, ObjectUse]], pages: int) -> Holder:
    size = features.page_size_bytes()
    ranges = []
    for _, use in uses:
        if use.mapping is not None:
            first = use.mapping.offset_bytes // size
            ranges.append((first, first + (use.mapping.stop - use.mapping.start) // size))
    covered = union_runs(
        [Runs(np.array([a]), np.array([b - a]), np.ones(1, np.uint8)) for a, b in ranges]
    )
    present = None
    if any(use.present is not None for _, use in uses):
        mapped = union_runs([use.present for _, use in uses if use.present is not None])
        present = int(mapped.pages.sum())
    facts = uses[0][0]
    return Holder(
        pid=facts.pid,
        name=facts.name,
        mapped_pages=int(clip_runs(covered, 0, pages).pages.sum()) if pages else 0,
        present_pages=present,
        is_open=any(use.mapping is None for _, use in uses),
        ranges=tuple(sorted(set(ranges))),
    )
