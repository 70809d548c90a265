"""
The swap ledger: every used slot once, and what is left over printed as such.

    used = private pages, each slot once + pages of shared-memory objects, each once
           + pages in RAM that keep their slot + remainder
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import Unsupported
from memlens.kernel.cgroups import charged_swap, find_hierarchy
from memlens.kernel.swaps import Swap, is_swap_cache_empty, read_swap
from memlens.pages.arrays import count_distinct, distinct
from memlens.pages.bits import PM_SWAP_AREA
from memlens.record import Table
from memlens.report import Origin, make_sum
from memlens.scan.facts import ProcessFacts, Want
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.sweep import Sweep
from memlens.shm.facts import (
    ObjectFacts,
    holder_notes,
    remainder_note,
    share_notes,
    split_objects,
    sum_shares,
)
from memlens.shm.inventory import (
    ObjectScan,
    holder_tables,
    loop_notes,
    name_holders,
    read_objects,
)
from memlens.swap.records import (
    AreaSwap,
    CgroupSwap,
    ProcessSwap,
    SwapLedger,
    SwappedObject,
    ZswapUse,
)
from memlens.swap.slots import (
    CachedSlots,
    PrivateSlots,
    SlotMap,
    add_unowned,
    confirm_claims,
    count_slots,
    find_cached_slots,
    list_areas,
    make_slot_map,
)
from memlens.units import signed, user_name

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
    ledger, found = _read_once(slots, machine)
    for _ in range(_MORE_LOOKS):
        if found is None or not len(found.twice):
            break
        again, second = _read_once(slots, machine)
        if second is None or not again.is_complete:
            break
        found = confirm_claims(found, second)
        ledger = again
    if found is None:
        return ledger
    return replace(
        ledger,
        tables={**ledger.tables, **found.tables()},
        sections={**ledger.sections, "slot_map": found.limits},
    )


def _read_once(slots: bool, machine: Machine) -> tuple[SwapLedger, SlotMap | None]:
    origin = machine.origin()
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
    swapped = sorted((o for o in scan.objects if o.swap_pages), key=lambda o: -o.swap_pages)
    objects = scan._replace(objects=tuple(swapped))
    private = count_slots(sweep.processes, cached, sweep.may_miss_holders())
    ledger = _ledger(origin, sweep, private, objects, (before, read_swap(machine)))
    if not slots:
        return ledger, None
    return ledger, make_slot_map(
        sweep.processes, private, swapped, machine, is_walked=scan.is_walked
    )


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
    origin: Origin,
    sweep: Sweep,
    slots: PrivateSlots,
    scan: ObjectScan,
    around: tuple[Swap, Swap],
) -> SwapLedger:
    """
    Return the ledger.

    :param scan: of the objects that have pages on swap.
    :param around: what is said of swap before and after the scan.
    """
    after = around[1]
    objects = scan.objects
    was, used = (sum(area.used_pages for area in swap.areas) for swap in around)
    shared = sum(item.swap_pages for item in objects)
    found = len(slots.private) + shared + slots.count_cached()
    shares, kept = split_objects(objects)
    processes = _process_rows(sweep.processes, slots, shares, kept, sweep.machine)
    areas = list(_area_rows(after, slots.private, slots.seen_areas(objects), sweep.machine))
    notes = [*_notes(used - found, slots.cached, sweep)]
    if was != used:
        notes.append(f"used changed from {was} to {used} pages during the scan")
    notes += [*sweep.notes(), *slots.notes(), *holder_notes(objects), *share_notes(objects)]
    notes += [_NO_NUMBER.format(area.path) for area in areas if area.area is None]
    if used > found:
        notes += [*scan.notes, *loop_notes(sweep.machine)]
    return SwapLedger.at(
        origin,
        tables={
            "processes": Table.of(ProcessSwap, processes),
            "objects": Table.of(SwappedObject, [_object_row(*o) for o in enumerate(objects)]),
            "cgroups": Table.of(
                CgroupSwap, _cgroup_rows(sweep, processes) if after.areas else ()
            ),
            "areas": Table.of(AreaSwap, areas),
            **holder_tables(objects),
        },
        sections={"zswap": _zswap(after)},
        sums={
            "swap": make_sum(
                used,
                found,
                used - was,
                private_pages=len(slots.private),
                shared_pages=shared,
                swap_cache_pages=slots.count_cached(),
                shared_swap_cached_pages=sum(item.swap_cached_pages for item in objects),
            )
        },
        missed=sweep.missed,
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
) -> list[ProcessSwap]:
    size = machine.page_size_bytes
    rows = [
        _process_row(facts, slots, shares.get(facts.pid, 0.0), kept.get(facts.pid, 0), size)
        for facts in processes
    ]

    def weight(row: ProcessSwap) -> int:
        share = row.swap_share_bytes
        return row.swap_entries_pages * size if share is None else share

    return sorted(filter(_has_any, rows), key=lambda row: (-weight(row), row.pid))


def _process_row(
    facts: ProcessFacts, slots: PrivateSlots, share: float | None, kept: int, size: int
) -> ProcessSwap:
    entries = facts.count_entries(size)
    only_mine = private = alone = None
    if not (facts.is_swap_hidden and entries):
        only_mine = slots.count_alone(facts.swap_words)
        private = slots.share_pages(facts.swap_words)
    if not facts.is_swap_hidden:
        alone = slots.count_alone(slots.held[facts.pid])
    share = sum_shares([private, share])
    return ProcessSwap(
        pid=facts.pid,
        user=user_name(facts.uid),
        uid=facts.uid,
        swap_only_mine_pages=only_mine,
        swap_share_bytes=None if share is None else round(share * size),
        swap_entries_pages=entries,
        freed_on_exit_pages=None if alone is None else alone + kept,
        swap_cached_pages=len(slots.cached.frames.get(facts.pid, ())),
        cgroup=facts.cgroup,
        name=facts.name,
    )


def _has_any(row: ProcessSwap) -> bool:
    """Return whether anything on swap is a process's: it may keep what it does not map."""
    pages = row.swap_entries_pages or row.freed_on_exit_pages or row.swap_cached_pages
    return bool(pages or row.swap_share_bytes != 0)


def _object_row(number: int, item: ObjectFacts) -> SwappedObject:
    return SwappedObject(
        object=number,
        kind=item.kind,
        swap_pages=item.swap_pages,
        swapped_pages=item.swap_pages - item.swap_cached_pages,
        swap_cached_pages=item.swap_cached_pages,
        beyond_end_swapped_pages=item.beyond_end_swap_pages,
        size_bytes=item.size_bytes,
        device=item.device,
        inode=signed(item.inode),
        holders=name_holders(item),
        marks=", ".join(item.marks),
        name=item.name,
    )


def _cgroup_rows(sweep: Sweep, rows: Iterable[ProcessSwap]) -> Iterator[CgroupSwap]:
    hierarchy = find_hierarchy(sweep.machine)
    charged = charged_swap(hierarchy) if hierarchy.root else {}
    members: dict[str, list[ProcessFacts]] = {path: [] for path in charged}
    for facts in sweep.processes:
        members.setdefault(facts.cgroup, []).append(facts)
    shares: dict[str, list[int | None]] = {}
    for row in rows:
        shares.setdefault(row.cgroup, []).append(row.swap_share_bytes)
    size = sweep.machine.page_size_bytes
    for path, processes in sorted(members.items()):
        is_hidden = any(facts.is_swap_hidden for facts in processes)
        every = np.concatenate([np.empty(0, np.uint64), *[f.swap_words for f in processes]])
        own = None if is_hidden else len(distinct(every))
        share = sum_shares(shares.get(path, ()))
        known = charged.get(path)
        if own or is_hidden or share is None or share or known:
            yield CgroupSwap(
                charged_pages=None if known is None else known // size,
                swap_slots_pages=own,
                swap_share_bytes=None if share is None else round(share),
                path=path,
            )


def _notes(remainder: int, cached: CachedSlots, sweep: Sweep) -> Iterator[str]:
    if remainder > 0:
        yield remainder_note(sweep.missed)
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


def _area_rows(
    swap: Swap, private: NDArray[np.uint64], seen: Iterable[int], machine: Machine
) -> Iterator[AreaSwap]:
    """
    Yield a row for each area, in the order of /proc/swaps.

    :param private: the slots of private pages, each once, as ``ProcessFacts.swap_words``.
    :param seen: numbers of other areas that pages were seen in.
    :param machine: whose areas they are.
    """
    numbers, counts = count_distinct(private & PM_SWAP_AREA)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    listed = list_areas({*found, *seen}, machine)
    known = {(row.area.line, row.area.path): row.number for row in listed}
    zram = {figures.device: figures for figures in swap.zram}
    for area in swap.areas:
        figures = zram.get(area.device)
        number = known.get((area.line, area.path))
        yield AreaSwap(
            area=number,
            path=area.path,
            kind=area.kind,
            size_pages=area.size_pages,
            used_pages=area.used_pages,
            priority=area.priority,
            private_pages=_count_in(found, number),
            stored_bytes=None if figures is None else figures.stored_bytes,
            compressed_bytes=None if figures is None else figures.used_bytes,
        )


def _count_in(found: dict[int, int], number: int | None) -> int | None:
    if number is None:
        # No page table names any slot: none of this area, then, whatever its number.
        return None if found else 0
    return found.get(number, 0)
