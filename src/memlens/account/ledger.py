"""
The swap ledger: every used slot once, and what is left over printed as such.

    used = private pages, each slot once + pages of shared-memory objects, each once
           + pages in RAM that keep their slot + remainder
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memlens.account.facts import Missed, ProcessFacts, Progress, Stop, Want
from memlens.account.inventory import (
    ObjectScan,
    loop_notes,
    read_meminfo_pages,
    read_objects,
)
from memlens.account.model import Cost
from memlens.account.sharedobject import SharedObject
from memlens.account.slotmap import SlotMap, make_slot_map
from memlens.account.sweep import Sweep
from memlens.errors import Unsupported
from memlens.kernel import features
from memlens.kernel.cgroups import charged_swap, find_hierarchy
from memlens.kernel.swaps import Swap, SwapArea, area_numbers, read_swap
from memlens.pages.bits import PM_SWAP_AREA
from memlens.pages.distinct import count_distinct, distinct, is_in

_UNREACHABLE = (
    "not in reach: memfds in unread messages, deleted tmpfs files under loop devices, "
    "detached mounts"
)


@dataclass(frozen=True, slots=True)
class ProcessSwap:
    """
    One process in the ledger.

    :param own_pages: private pages on swap, each slot once; one shared after fork counts
        for every process that holds it.
    :param share_pages: its part of the objects' pages on swap, each object split evenly
        over the processes that map it.
    :param freed_on_exit_pages: slots that are free once it has ended: private ones that
        no other process holds, and those of objects that go with it.
    :param cache_pages: pages in RAM that keep a slot, which it maps.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    own_pages: int
    share_pages: float
    freed_on_exit_pages: int
    cache_pages: int = 0


@dataclass(frozen=True, slots=True)
class CgroupSwap:
    """
    One cgroup in the ledger, without those below it.

    :param charged_pages: what the kernel charges it; None if not known.
    :param own_pages: private slots of its processes, each once.
    :param share_pages: fair shares of its processes in swapped objects.
    """

    path: str
    charged_pages: int | None
    own_pages: int
    share_pages: float


@dataclass(frozen=True, slots=True)
class AreaSwap:
    """
    One swap area.

    :param area: its number in page-table entries.
    :param path: of the device or file, raw.
    :param kind: ``partition``, ``file`` or ``zram``.
    :param private_pages: distinct slots of it in page tables.
    :param stored_bytes: zram: uncompressed size of what it holds; else None.
    :param compressed_bytes: zram: RAM that this takes; else None.
    """

    area: int
    path: str
    kind: str
    size_pages: int
    used_pages: int
    priority: int
    private_pages: int
    stored_bytes: int | None = None
    compressed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ZswapUse:
    """
    The compressed cache before swap; its pages count as swapped everywhere else.

    :param stored_bytes: uncompressed size of what it holds, None if the kernel hides it.
    :param compressed_bytes: RAM that this takes, None if the kernel hides it.
    """

    is_enabled: bool
    stored_bytes: int | None
    compressed_bytes: int | None


@dataclass(frozen=True, slots=True)
class SwapLedger:
    """
    Where swap is.

    :param used_pages: used slots as /proc/swaps says, all areas.
    :param private_pages: distinct slots in page tables.
    :param shared_pages: pages of shared-memory objects on swap, ``swap_cached`` included.
    :param swap_cache_pages: private pages in RAM that keep a slot.
    :param remainder_pages: used pages that none of the three explains; negative if swap
        was freed while it was counted.
    :param zswap: None if this kernel has none.
    :param notes: what to know about the remainder.
    :param is_complete: False if the scan was stopped, or its budget spent.
    :param slots: who has which slot, None unless that was asked for.
    """

    page_size_bytes: int
    used_pages: int
    private_pages: int
    shared_pages: int
    swap_cache_pages: int
    remainder_pages: int
    areas: tuple[AreaSwap, ...]
    zswap: ZswapUse | None
    processes: tuple[ProcessSwap, ...]
    objects: tuple[SharedObject, ...]
    cgroups: tuple[CgroupSwap, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost
    is_complete: bool = True
    slots: SlotMap | None = None

    @property
    def swap_cached_shared_pages(self) -> int:
        """Return the pages of objects that are in RAM again as well."""
        return sum(item.swap_cached_pages for item in self.objects)


def read_swap_ledger(
    *,
    slots: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> SwapLedger:
    """
    Return where the swap of the whole machine is.

    :param slots: whether to say who has which slot, too.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with what is done and what there is in all: processes,
        then objects.
    :param should_stop: asked often; True ends the scan, with the rest in ``missed``.
    :raises Unsupported: if ``proc`` is none.
    """
    size = features.page_size_bytes()
    before = _read_swap(size, proc)
    # Pages in RAM that keep a slot cost a look at the flags of every private page, so look
    # only if the kernel counts any.
    has_cache = bool(before.areas) and read_meminfo_pages("SwapCached", proc) > 0
    want = Want(swap=True, objects=True, cached=has_cache)
    sweep = Sweep(proc, want, budget_s, on_progress, should_stop)
    scan = ObjectScan((), ())
    if before.areas:
        sweep.run()
        scan = read_objects(sweep, only_swapped=True, keep_slots=slots)
    ledger = _ledger(sweep, before, read_swap(size, proc), scan)
    if not slots:
        return ledger
    found = make_slot_map(sweep.processes, ledger.objects, is_walked=scan.is_walked, proc=proc)
    return replace(ledger, slots=found)


def _read_swap(size: int, proc: str) -> Swap:
    try:
        return read_swap(size, proc)
    except Unsupported as error:
        # Without meminfo this is no /proc at all.
        if not os.path.exists(f"{proc}/meminfo"):
            raise
        return Swap(notes=(error.message,))


def _ledger(sweep: Sweep, before: Swap, after: Swap, scan: ObjectScan) -> SwapLedger:
    slots, holders = _count_slots(sweep.processes)
    cached, doubtful = _cached_pages(sweep.processes)
    objects = tuple(item for item in scan.objects if item.swap_pages)
    used = sum(area.used_pages for area in after.areas)
    shared = sum(item.swap_pages for item in objects)
    in_cache = len(distinct(np.concatenate([_NONE, *cached.values()])))
    remainder = used - len(slots) - shared - in_cache
    shares, kept = split_objects(objects)
    notes = [*_notes(before, used, remainder, doubtful, sweep)]
    if remainder > 0:
        notes += [*scan.notes, *loop_notes()]
    return SwapLedger(
        page_size_bytes=features.page_size_bytes(),
        used_pages=used,
        private_pages=len(slots),
        shared_pages=shared,
        swap_cache_pages=in_cache,
        remainder_pages=remainder,
        areas=tuple(_area_rows(after, slots)),
        zswap=_zswap(after),
        processes=tuple(_process_rows(sweep.processes, slots, holders, shares, kept, cached)),
        objects=objects,
        cgroups=tuple(_cgroup_rows(sweep, shares)) if after.areas else (),
        missed=tuple(sweep.missed),
        notes=(*notes, *after.notes),
        cost=sweep.cost(),
        is_complete=sweep.is_complete,
    )


def _area_rows(swap: Swap, slots: NDArray[np.uint64]) -> Iterator[AreaSwap]:
    numbers, counts = count_distinct(slots & PM_SWAP_AREA)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    zram = {figures.device: figures for figures in swap.zram}
    for area, number in zip(swap.areas, _number_areas(swap.areas, list(found)), strict=True):
        figures = zram.get(area.device)
        yield AreaSwap(
            area=number,
            path=area.path,
            kind=area.kind,
            size_pages=area.size_pages,
            used_pages=area.used_pages,
            priority=area.priority,
            private_pages=found.get(number, 0),
            stored_bytes=None if figures is None else figures.stored_bytes,
            compressed_bytes=None if figures is None else figures.used_bytes,
        )


def _number_areas(areas: tuple[SwapArea, ...], seen: list[int]) -> list[int]:
    """
    Return the number of each area in page-table entries.

    Lines keep the order of numbers, but not the gaps that areas leave which were switched
    off: these show if there are slots of as many areas as there are lines.
    """
    numbers = [area_numbers(area.line, len(areas))[0] for area in areas]
    if set(seen) <= set(numbers) or len(seen) != len(areas):
        return numbers
    return sorted(seen)


def _zswap(swap: Swap) -> ZswapUse | None:
    found = swap.zswap
    if found is None:
        return None
    return ZswapUse(found.is_enabled, found.stored_bytes, found.pool_bytes)


def _count_slots(
    processes: Iterable[ProcessFacts],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return every private slot once, and how many processes hold it."""
    every = np.concatenate([_NONE, *[facts.swap_words for facts in processes]])
    return count_distinct(every)


def _cached_pages(
    processes: Iterable[ProcessFacts],
) -> tuple[dict[int, NDArray[np.uint64]], int]:
    """
    Return the frames in RAM that keep a slot, by PID, and how many are in doubt.

    After fork one process may have a page back in RAM while the other's page table still
    holds its slot, at the same address: such a frame's slot may be one that is counted
    already, so that it is left to the remainder.
    """
    holders = [facts for facts in processes if len(facts.cached_pfns)]
    if not holders:
        return {}, 0
    swapped = distinct(np.concatenate([_NO_PAGES, *[f.swap_pages for f in processes]]))
    in_doubt = [f.cached_pfns[is_in(f.cached_pages, swapped)] for f in holders]
    doubtful = distinct(np.concatenate([_NONE, *in_doubt]))
    found = {}
    for facts in holders:
        pfns = distinct(facts.cached_pfns)
        found[facts.pid] = pfns[~is_in(pfns, doubtful)]
    return found, len(doubtful)


def _process_rows(
    processes: Iterable[ProcessFacts],
    slots: NDArray[np.uint64],
    holders: NDArray[np.int64],
    shares: dict[int, float],
    kept: dict[int, int],
    cached: dict[int, NDArray[np.uint64]],
) -> Iterable[ProcessSwap]:
    rows = []
    for facts in processes:
        alone = int((holders[np.searchsorted(slots, facts.swap_words)] == 1).sum())
        in_cache = len(cached.get(facts.pid, ()))
        rows.append(
            ProcessSwap(
                pid=facts.pid,
                name=facts.name,
                uid=facts.uid,
                cgroup=facts.cgroup,
                own_pages=len(facts.swap_words),
                share_pages=shares.get(facts.pid, 0.0),
                freed_on_exit_pages=alone + kept.get(facts.pid, 0),
                cache_pages=in_cache,
            )
        )
    # A process may keep an object alive that it does not map.
    rows = [
        row
        for row in rows
        if row.own_pages or row.share_pages or row.freed_on_exit_pages or row.cache_pages
    ]
    return sorted(rows, key=lambda row: (-row.own_pages - row.share_pages, row.pid))


def split_objects(
    objects: Iterable[SharedObject],
) -> tuple[dict[int, float], dict[int, int]]:
    """
    Return, by PID, the fair share of swapped shared pages, and what goes with its exit.

    An object is split evenly over the processes that map it.
    """
    shares: dict[int, float] = {}
    kept: dict[int, int] = {}
    for item in objects:
        for pid in item.mappers:
            shares[pid] = shares.get(pid, 0.0) + item.swap_pages / len(item.mappers)
        keeper = item.sole_keeper
        if keeper is not None:
            kept[keeper] = kept.get(keeper, 0) + item.swap_pages
    return shares, kept


def _cgroup_rows(sweep: Sweep, shares: dict[int, float]) -> Iterator[CgroupSwap]:
    hierarchy = find_hierarchy(sweep.proc)
    charged = charged_swap(hierarchy) if hierarchy.root else {}
    members: dict[str, list[ProcessFacts]] = {path: [] for path in charged}
    for facts in sweep.processes:
        members.setdefault(facts.cgroup, []).append(facts)
    size = features.page_size_bytes()
    for path, processes in sorted(members.items()):
        own = len(distinct(np.concatenate([_NONE, *[f.swap_words for f in processes]])))
        share = sum(shares.get(facts.pid, 0.0) for facts in processes)
        known = charged.get(path)
        if own or share or known:
            yield CgroupSwap(path, None if known is None else known // size, own, share)


def _notes(
    before: Swap, used: int, remainder: int, doubtful: int, sweep: Sweep
) -> Iterable[str]:
    if remainder > 0:
        yield _UNREACHABLE
    if remainder < 0:
        yield "more was found than is used: swap was freed, or moved, during the scan"
    if doubtful:
        yield (
            f"{doubtful} pages in RAM keep a slot that another process may hold: "
            "left to the remainder"
        )
    was = sum(area.used_pages for area in before.areas)
    if was != used:
        yield f"used changed from {was} to {used} pages during the scan"
    yield from sweep.notes()


_NONE = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
