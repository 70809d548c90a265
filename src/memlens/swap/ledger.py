"""
The swap ledger: every used slot once, and what is left over printed as such.

    used = private pages, each slot once + pages of shared-memory objects, each once
           + pages in RAM that keep their slot + remainder
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from memlens.errors import Unsupported
from memlens.kernel.cgroups import charged_swap, find_hierarchy
from memlens.kernel.swaps import Swap, is_swap_cache_empty, read_swap
from memlens.pages.arrays import distinct
from memlens.scan.facts import ProcessFacts, Want
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.sweep import Sweep
from memlens.shm.inventory import ObjectScan, loop_notes, read_objects
from memlens.shm.records import (
    UNREACHABLE,
    holder_notes,
    share_notes,
    split_objects,
    sum_shares,
)
from memlens.swap.areas import area_rows
from memlens.swap.records import CgroupSwap, ProcessSwap, SwapLedger, ZswapUse
from memlens.swap.slotmap import confirm_claims, make_slot_map
from memlens.swap.slots import NO_SLOTS, PrivateSlots, count_slots
from memlens.swap.swapcache import CachedSlots, add_unowned, find_cached_slots

_UNREACHABLE = f"not in reach: {UNREACHABLE}"
_MISSED = "the remainder is of what was missed, or "

# Slots that two claim are looked at again: most often one was freed and taken meanwhile.
_MORE_LOOKS = 2
_NO_NUMBER = (
    "{}: its number is not known: no page seen on swap settles it, and the kernel's own table "
    "cannot be read"
)


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
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    found = _read_once(slots, machine)
    for _ in range(_MORE_LOOKS):
        if found.slots is None or not found.slots.twice:
            break
        again = _read_once(slots, machine)
        if again.slots is None or not again.is_complete:
            break
        confirmed = confirm_claims(found.slots, again.slots)
        found = replace(again, slots=confirmed)
    return found


def _read_once(slots: bool, machine: Machine) -> SwapLedger:
    before = _read_swap(machine)
    # Pages in RAM that keep a slot cost a look at the flags of every private page, so look
    # only if there may be any.
    has_cache = bool(before.areas) and not is_swap_cache_empty(machine)
    sweep = Sweep(machine, Want(swap=True, objects=True, cached=has_cache))
    scan, cached = ObjectScan((), ()), CachedSlots()
    if before.areas:
        sweep.run()
        cached = find_cached_slots(sweep.processes, machine)
        if slots and has_cache:
            cached = _with_unowned(sweep, cached)
        scan = read_objects(sweep, only_swapped=True, keep_slots=slots, tells_present=False)
    ledger = _ledger(sweep, cached, scan, before, read_swap(machine))
    if not slots:
        return ledger
    found = make_slot_map(
        sweep.processes,
        ledger.objects,
        cached=cached,
        is_walked=scan.is_walked,
        machine=machine,
    )
    return replace(ledger, slots=found)


def _with_unowned(sweep: Sweep, cached: CachedSlots) -> CachedSlots:
    try:
        return add_unowned(cached, sweep.processes, sweep.machine)
    except Stopped:
        sweep.miss_rest("pages in RAM of no process")
        return cached


def _read_swap(machine: Machine) -> Swap:
    try:
        return read_swap(machine)
    except Unsupported as error:
        # Without meminfo this is no /proc at all.
        if not os.path.exists(f"{machine.root}/meminfo"):
            message = f"{machine.root} is not a proc file system"
            raise Unsupported(message, path=machine.root) from error
        return Swap(notes=(error.message,))


def _ledger(
    sweep: Sweep, cached: CachedSlots, scan: ObjectScan, before: Swap, after: Swap
) -> SwapLedger:
    slots = count_slots(sweep.processes, cached, sweep.may_miss_holders())
    swapped = [item for item in scan.objects if item.swap_pages]
    objects = tuple(sorted(swapped, key=lambda item: -item.swap_pages))
    used = sum(area.used_pages for area in after.areas)
    shared = sum(item.swap_pages for item in objects)
    remainder = used - len(slots.private) - shared - slots.count_cached()
    shares, kept = split_objects(objects)
    areas = list(area_rows(after, slots.private, slots.seen_areas(objects), sweep.machine))
    notes = [*_notes(before, used, remainder, cached, sweep)]
    notes += [*slots.notes(), *holder_notes(objects), *share_notes(objects)]
    notes += [_NO_NUMBER.format(area.path) for area in areas if area.area is None]
    if remainder > 0:
        notes += [*scan.notes, *loop_notes(sweep.machine)]
    return SwapLedger(
        page_size_bytes=sweep.machine.page_size_bytes,
        used_pages=used,
        private_pages=len(slots.private),
        shared_pages=shared,
        swap_cache_pages=slots.count_cached(),
        remainder_pages=remainder,
        areas=tuple(areas),
        zswap=_zswap(after),
        processes=tuple(_process_rows(sweep.processes, slots, shares, kept, sweep.machine)),
        objects=objects,
        cgroups=tuple(_cgroup_rows(sweep, shares)) if after.areas else (),
        missed=tuple(sweep.missed),
        notes=(*notes, *after.notes),
        cost=sweep.machine.cost(),
        is_complete=sweep.is_complete,
    )


def _zswap(swap: Swap) -> ZswapUse | None:
    found = swap.zswap
    if found is None:
        return None
    return ZswapUse(found.is_enabled, found.stored_bytes, found.pool_bytes)


def _process_rows(
    processes: Iterable[ProcessFacts],
    slots: PrivateSlots,
    shares: dict[int, float | None],
    kept: dict[int, int],
    machine: Machine,
) -> Iterable[ProcessSwap]:
    rows = [
        ProcessSwap(
            pid=facts.pid,
            name=facts.name,
            uid=facts.uid,
            cgroup=facts.cgroup,
            own_pages=facts.count_own(machine.page_size_bytes),
            share_pages=shares.get(facts.pid, 0.0),
            freed_on_exit_pages=_freed_pages(facts, slots, kept),
            cache_pages=len(slots.cached.frames.get(facts.pid, ())),
        )
        for facts in processes
    ]
    rows = [row for row in rows if _has_any(row)]
    return sorted(rows, key=lambda row: (-row.own_pages - (row.share_pages or 0), row.pid))


def _has_any(row: ProcessSwap) -> bool:
    """Return whether anything on swap is a process's: it may keep what it does not map."""
    pages = row.own_pages or row.freed_on_exit_pages or row.cache_pages
    return bool(pages or row.share_pages is None or row.share_pages)


def _freed_pages(facts: ProcessFacts, slots: PrivateSlots, kept: dict[int, int]) -> int | None:
    alone = None if facts.is_swap_hidden else slots.count_alone(facts.pid)
    return None if alone is None else alone + kept.get(facts.pid, 0)


def _cgroup_rows(sweep: Sweep, shares: dict[int, float | None]) -> Iterator[CgroupSwap]:
    hierarchy = find_hierarchy(sweep.machine)
    charged = charged_swap(hierarchy) if hierarchy.root else {}
    members: dict[str, list[ProcessFacts]] = {path: [] for path in charged}
    for facts in sweep.processes:
        members.setdefault(facts.cgroup, []).append(facts)
    size = sweep.machine.page_size_bytes
    for path, processes in sorted(members.items()):
        is_hidden = any(facts.is_swap_hidden for facts in processes)
        every = np.concatenate([NO_SLOTS, *[facts.swap_words for facts in processes]])
        own = None if is_hidden else len(distinct(every))
        share = sum_shares(shares.get(facts.pid, 0.0) for facts in processes)
        known = charged.get(path)
        if own or is_hidden or share is None or share or known:
            yield CgroupSwap(path, None if known is None else known // size, own, share)


def _notes(
    before: Swap, used: int, remainder: int, cached: CachedSlots, sweep: Sweep
) -> Iterable[str]:
    if remainder > 0:
        yield (_MISSED if sweep.missed else "") + _UNREACHABLE
    if remainder < 0:
        yield "more was found than is used: swap was freed, or moved, during the scan"
    if cached.doubtful:
        yield (
            f"{cached.doubtful} pages in RAM keep a slot that another process may hold: "
            f"left to the remainder ({cached.reason})"
        )
    if len(cached.unowned):
        yield (
            f"swap cache: {len(cached.unowned)} pages are of no process that was read; the "
            "kernel takes back what nobody holds when it needs room"
        )
    was = sum(area.used_pages for area in before.areas)
    if was != used:
        yield f"used changed from {was} to {used} pages during the scan"
    yield from sweep.notes()
