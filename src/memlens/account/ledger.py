"""
The swap ledger: every used slot once, and what is left over printed as such.

    used = private pages, each slot once + pages of shared-memory objects, each once
           + pages in RAM that keep their slot + remainder
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.facts import Missed, ProcessFacts, Progress, Want
from memlens.account.inventory import SharedObject, read_meminfo_pages, read_objects
from memlens.account.model import Cost
from memlens.account.sweep import Sweep
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.cgroups import find_hierarchy
from memlens.kernel.kpage import read_kpageflags
from memlens.kernel.swaps import Swap, SwapArea, read_swap

_KPF_ANON = np.uint64(1 << 12)
_KPF_SWAPCACHE = np.uint64(1 << 13)
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
    One cgroup in the ledger.

    :param charged_pages: what the kernel charges it, with those below; None if not known.
    :param found_pages: private slots of its processes, each once.
    """

    path: str
    charged_pages: int | None
    found_pages: int


@dataclass(frozen=True, slots=True)
class SwapLedger:
    """
    Where swap is.

    :param used_pages: used slots as /proc/swaps says, all areas.
    :param private_pages: distinct slots in page tables.
    :param shared_pages: pages of shared-memory objects on swap, ``swap_cached`` included.
    :param swap_cache_pages: private pages in RAM that keep a slot.
    :param remainder_pages: used pages that none of the three explains.
    :param notes: what to know about the remainder.
    """

    page_size_bytes: int
    used_pages: int
    private_pages: int
    shared_pages: int
    swap_cache_pages: int
    remainder_pages: int
    swap: Swap
    processes: tuple[ProcessSwap, ...]
    objects: tuple[SharedObject, ...]
    cgroups: tuple[CgroupSwap, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost

    @property
    def areas(self) -> tuple[SwapArea, ...]:
        """Return the swap areas, as /proc/swaps lists them."""
        return self.swap.areas


def read_swap_ledger(
    *,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
) -> SwapLedger:
    """
    Return where the swap of the whole machine is.

    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with processes done and processes in all.
    :raises Unsupported: if ``proc`` is none, or the kernel has no swap.
    """
    size = features.page_size_bytes()
    before = read_swap(size, proc)
    # Pages in RAM that keep a slot cost a look at every mapped frame, so look only if the
    # kernel counts any.
    has_cache = bool(before.areas) and read_meminfo_pages("SwapCached", proc) > 0
    want = Want(swap=True, objects=True, frames=has_cache, pages=has_cache)
    sweep = Sweep(proc, want, budget_s, on_progress)
    objects: list[SharedObject] = []
    if before.areas:
        sweep.run()
        objects = read_objects(sweep, only_swapped=True)
    return _ledger(sweep, before, read_swap(size, proc), objects)


def _ledger(sweep: Sweep, before: Swap, after: Swap, objects: list[SharedObject]) -> SwapLedger:
    slots, holders = _count_slots(sweep.processes)
    cached, doubtful = _cached_pages(sweep)
    used = sum(area.used_pages for area in after.areas)
    shared = sum(item.swap_pages for item in objects)
    in_cache = len(np.unique(np.concatenate([*cached.values(), _NONE])))
    remainder = used - len(slots) - shared - in_cache
    return SwapLedger(
        page_size_bytes=features.page_size_bytes(),
        used_pages=used,
        private_pages=len(slots),
        shared_pages=shared,
        swap_cache_pages=in_cache,
        remainder_pages=remainder,
        swap=after,
        processes=tuple(_process_rows(sweep.processes, slots, holders, objects, cached)),
        objects=tuple(objects),
        cgroups=tuple(_cgroup_rows(sweep)),
        missed=tuple(sweep.missed),
        notes=tuple(_notes(before, used, remainder, doubtful, sweep)),
        cost=_cost(sweep),
    )


def _count_slots(
    processes: Iterable[ProcessFacts],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return every private slot once, and how many processes hold it."""
    every = np.concatenate([_NONE, *[facts.swap_words for facts in processes]])
    return np.unique(every, return_counts=True)


def _cached_pages(sweep: Sweep) -> tuple[dict[int, NDArray[np.uint64]], int]:
    """
    Return the frames in RAM that keep a slot, by PID, and how many are in doubt.

    After fork one process may have a page back in RAM while the other's page table still
    holds its slot, at the same address: such a frame's slot may be one that is counted
    already, so that it is left to the remainder.
    """
    candidates = [f for f in sweep.processes if f.frames is not None and len(f.frames.pfn)]
    if not candidates:
        return {}, 0
    frames = [f.frames for f in candidates if f.frames is not None]
    try:
        pfns = np.unique(np.concatenate([f.pfn[~f.is_file].astype(np.uint64) for f in frames]))
        flags = read_kpageflags(pfns[pfns != 0], sweep.proc, sweep.meter)
    except MemlensError as error:
        sweep.missed.append(Missed("private pages in the swap cache", str(error)))
        return {}, 0
    wanted = _KPF_ANON | _KPF_SWAPCACHE
    in_cache = pfns[pfns != 0][(flags & wanted) == wanted]
    swapped = np.unique(np.concatenate([_NO_PAGES, *[f.swap_pages for f in sweep.processes]]))
    found, doubtful = {}, _NONE
    for facts in candidates:
        mapped = facts.frames
        if mapped is None:
            continue
        is_cached = ~mapped.is_file & np.isin(mapped.pfn, in_cache)
        is_doubtful = is_cached & np.isin(mapped.page, swapped)
        doubtful = np.union1d(doubtful, mapped.pfn[is_doubtful].astype(np.uint64))
        found[facts.pid] = np.unique(mapped.pfn[is_cached]).astype(np.uint64)
    return {pid: np.setdiff1d(f, doubtful) for pid, f in found.items()}, len(doubtful)


def _process_rows(
    processes: Iterable[ProcessFacts],
    slots: NDArray[np.uint64],
    holders: NDArray[np.int64],
    objects: Iterable[SharedObject],
    cached: dict[int, NDArray[np.uint64]],
) -> Iterable[ProcessSwap]:
    shares, kept = split_objects(objects)
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
    rows = [row for row in rows if row.own_pages or row.share_pages or row.cache_pages]
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


def _cgroup_rows(sweep: Sweep) -> Iterable[CgroupSwap]:
    hierarchy = find_hierarchy(sweep.proc)
    by_path: dict[str, list[NDArray[np.uint64]]] = {}
    for facts in sweep.processes:
        by_path.setdefault(facts.cgroup, []).append(facts.swap_words)
    size = features.page_size_bytes()
    for path, words in sorted(by_path.items()):
        charged = hierarchy.swap_bytes(path) if hierarchy.root else None
        found = len(np.unique(np.concatenate([_NONE, *words])))
        if found or charged:
            yield CgroupSwap(path, None if charged is None else charged // size, found)


def _notes(
    before: Swap, used: int, remainder: int, doubtful: int, sweep: Sweep
) -> Iterable[str]:
    if remainder:
        yield _UNREACHABLE
    if doubtful:
        yield (
            f"{doubtful} pages in RAM keep a slot that another process may hold: "
            "left to the remainder"
        )
    was = sum(area.used_pages for area in before.areas)
    if was != used:
        yield f"used changed from {was} to {used} pages during the scan"
    if sweep.gone:
        yield f"{sweep.gone} processes ended during the scan"


def _cost(sweep: Sweep) -> Cost:
    meter = sweep.meter
    return Cost(meter.wall_s(), meter.read_bytes, meter.longest_read_s)


_NONE = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
