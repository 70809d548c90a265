"""
The swap slots of private pages, and every slot by its owner: the ledger, slot by slot.

Page tables name the slots of private pages, the page-cache walk those of shared-memory
objects, the folios of frames those of private pages that are in RAM again.  A slot has one
owner; two that claim it are an error, or were told at two moments.

Pages that keep a slot while they are in RAM are in the swap cache.  Which frames these are,
the sweep has found by kpageflags; which slot each keeps, a BPF program tells.  Where it cannot
be had, their number is all that is known, and a frame whose slot another process may hold as
well is left out.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.frameslots import FrameSlotReader, number_areas
from memlens.kernel.kpage import KpageFile
from memlens.kernel.swapareas import NumberedArea
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import count_distinct, distinct, is_in
from memlens.pages.bits import PM_SWAP_AREA, PM_SWAP_SLOT_SHIFT
from memlens.record import Table
from memlens.scan.facts import ProcessFacts
from memlens.scan.frametable import KPF_ANON, KPF_SWAPCACHE
from memlens.scan.machine import Machine
from memlens.shm.facts import ObjectFacts
from memlens.swap.records import (
    SLOT_SIGNS,
    DoubleClaim,
    SlotArea,
    SlotMapLimits,
    SlotOwner,
    SlotRun,
)
from memlens.units import count_of

_SWITCH = "frameslots"
_FRAMES_AT_ONCE = 1 << 16
_NONE = np.empty(0, np.uint64)
# Slots of all areas in one line: the area above, the slot below.
_AREA_SHIFT = 50
_SLOT = (1 << _AREA_SHIFT) - 1
_NOBODY = "none", "pages in RAM of no process that was read"
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CachedSlots:
    """
    What processes keep slots for although it is in RAM.

    :param is_exact: whether ``words`` is known.
    :param words: area and slot of each such page, as ``ProcessFacts.swap_words``, sorted and
        distinct, by PID.
    :param frames: these pages by PID, ``(n,)`` uint64 page frame numbers, sorted and distinct;
        if not exact, without those in doubt.
    :param doubtful: frames whose slot another process may hold too; 0 if exact.
    :param reason: why it is not exact, "" if it is.
    :param unowned: slots of such pages that no process that was read holds, sorted and
        distinct; empty if they were not looked for.
    """

    is_exact: bool = True
    words: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    frames: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    doubtful: int = 0
    reason: str = ""
    unowned: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def words_of(self, pid: int) -> NDArray[np.uint64]:
        """Return the slots of one process, none if they are not known."""
        return self.words.get(pid, _NONE)

    def count_frames(self) -> int:
        """Return the number of frames, each once."""
        return len(distinct(np.concatenate([_NONE, *self.frames.values()])))


def find_cached_slots(processes: Sequence[ProcessFacts], machine: Machine) -> CachedSlots:
    """
    Return the slots of private pages in RAM.

    :param processes: with the frames of these pages.
    :param machine: what they were read from.
    """
    holders = [facts for facts in processes if len(facts.cached_pfns)]
    if not holders:
        return CachedSlots()
    if not machine.may(_SWITCH):
        return _doubted(holders, processes, f"{_SWITCH} is switched off")
    pfns = distinct(np.concatenate([facts.cached_pfns for facts in holders]))
    try:
        words, is_cached = _read_slots(pfns, machine)
    except (MemlensError, OSError) as error:
        return _doubted(holders, processes, str(error))
    by_pid, frames = {}, {}
    for facts in holders:
        mine = distinct(facts.cached_pfns)
        places = np.searchsorted(pfns, mine)
        # What has left the swap cache since has no slot any more.
        kept = is_cached[places]
        by_pid[facts.pid] = distinct(words[places[kept]])
        frames[facts.pid] = mine[kept]
    return CachedSlots(words=by_pid, frames=frames)


def add_unowned(
    cached: CachedSlots, processes: Iterable[ProcessFacts], machine: Machine
) -> CachedSlots:
    """
    Return the same with the slots of private pages in RAM that no process holds.

    The kernel leaves a page that its last process gave up while it was being written to
    swap, with its slot, until it wants the memory back; and processes that refuse even root
    have such pages.  Only all frames of the machine tell: 0.2 us each.

    :raises Stopped: if the scan is to end.
    """
    if not (cached.is_exact and machine.may(_SWITCH) and machine.may("kpageflags")):
        return cached
    try:
        words, is_cached = _read_slots(_all_cached_frames(machine), machine)
    except (MemlensError, OSError):
        return cached
    words = distinct(words[is_cached])
    held = [_NONE, *cached.words.values(), *[facts.swap_words for facts in processes]]
    return replace(cached, unowned=words[~is_in(words, distinct(np.concatenate(held)))])


def _read_slots(
    pfns: NDArray[np.uint64], machine: Machine
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return area and slot of frames, and which are in the swap cache."""
    with FrameSlotReader(machine) as reader:
        found = reader.read(pfns)
    return found.slot.astype(np.uint64) << PM_SWAP_SLOT_SHIFT | found.area, found.is_cached


def _all_cached_frames(machine: Machine) -> NDArray[np.uint64]:
    """Return all frames of private pages that keep a slot."""
    both = KPF_ANON | KPF_SWAPCACHE
    parts = [_NONE]
    with KpageFile("kpageflags", machine) as file:
        for first, words in file.iter_range(0, count_frames(machine), _FRAMES_AT_ONCE):
            machine.check_stop()
            parts.append(np.flatnonzero((words & both) == both).astype(np.uint64) + first)
    return np.concatenate(parts)


def _doubted(
    holders: Sequence[ProcessFacts], processes: Iterable[ProcessFacts], reason: str
) -> CachedSlots:
    """
    Return what can be said without the slots.

    After fork one process may have a page back in RAM while the other's page table still
    holds its slot, at the same address: such a frame's slot may be one that is counted
    already, so that it is left out.
    """
    swapped = distinct(
        np.concatenate([np.empty(0, np.int64), *[f.swap_pages for f in processes]])
    )
    in_doubt = [f.cached_pfns[is_in(f.cached_pages, swapped)] for f in holders]
    doubtful = distinct(np.concatenate([_NONE, *in_doubt]))
    frames = {}
    for facts in holders:
        pfns = distinct(facts.cached_pfns)
        frames[facts.pid] = pfns[~is_in(pfns, doubtful)]
    return CachedSlots(False, {}, frames, len(doubtful), reason)


@dataclass(frozen=True, slots=True)
class PrivateSlots:
    """
    The slots of private pages.

    :param private: those in page tables, each once, sorted.
    :param sharers: how many processes have each of ``private`` in their page table.
    :param held: by PID, those that a process holds, in its page table or by a page in RAM.
    :param every: those of ``held``, each once, sorted.
    :param holders: how many processes hold each of ``every``.
    :param cached: those of pages in RAM.
    :param may_miss_holders: whether processes that were not looked at may hold any, too, as
        after fork.
    """

    private: NDArray[np.uint64]
    sharers: NDArray[np.int64]
    held: dict[int, NDArray[np.uint64]]
    every: NDArray[np.uint64]
    holders: NDArray[np.int64]
    cached: CachedSlots
    may_miss_holders: bool = False

    def count_cached(self) -> int:
        """Return the slots of pages in RAM that no page table holds as well."""
        if not self.cached.is_exact:
            return self.cached.count_frames()
        return len(self.every) - len(self.private) + len(self.cached.unowned)

    def seen_areas(self, objects: Iterable[ObjectFacts]) -> set[int]:
        """Return the numbers of areas that any slot was seen in."""
        parts = [item.slots.area for item in objects]
        areas = np.concatenate([(self.every & PM_SWAP_AREA).astype(np.uint8), *parts])
        return set(distinct(areas).tolist())

    def count_alone(self, words: NDArray[np.uint64]) -> int | None:
        """Return how many of a process's slots no other holds, None if that is not known."""
        alone = int((self.holders[np.searchsorted(self.every, words)] == 1).sum())
        return None if alone and self.may_miss_holders else alone

    def share_pages(self, words: NDArray[np.uint64]) -> float | None:
        """Return a process's part of slots in page tables, None if that is not known."""
        if len(words) and self.may_miss_holders:
            return None
        return float((1 / self.sharers[np.searchsorted(self.private, words)]).sum())

    def notes(self) -> list[str]:
        """Return what to know of what exits free and of shares, one line each."""
        held = self.held.values() if self.may_miss_holders else ()
        doubtful = {
            "freed on exit": sum(self.count_alone(words) is None for words in held),
            "share": sum(len(words) > 0 for words in held),
        }
        return [
            f"{what} is not known of {count_of(count, 'process', 'processes')}: processes not "
            "looked at may hold the same private pages, as after fork"
            for what, count in doubtful.items()
            if count
        ]


def count_slots(
    processes: Iterable[ProcessFacts], cached: CachedSlots, may_miss_holders: bool = False
) -> PrivateSlots:
    """Count every private slot once, and how many processes hold it."""
    held = {
        facts.pid: distinct(np.concatenate([facts.swap_words, cached.words_of(facts.pid)]))
        for facts in processes
    }
    entries = [_NONE, *[facts.swap_words for facts in processes]]
    private, sharers = count_distinct(np.concatenate(entries))
    every, holders = count_distinct(np.concatenate([_NONE, *held.values()]))
    return PrivateSlots(private, sharers, held, every, holders, cached, may_miss_holders)


@dataclass(frozen=True, slots=True)
class SlotMap:
    """
    Who has which slot.

    :param owners: those with most slots first.
    :param areas: by their number.
    """

    owners: Table[SlotOwner]
    areas: Table[SlotArea]
    runs: Table[SlotRun]
    twice: Table[DoubleClaim]
    limits: SlotMapLimits

    def tables(self) -> dict[str, Table[Any]]:
        """Return its tables by their names in the ledger."""
        return {
            "slot_owners": self.owners,
            "slot_areas": self.areas,
            "slot_runs": self.runs,
            "slots_claimed_twice": self.twice,
        }


@dataclass(frozen=True, slots=True)
class _Claims:
    """Runs of slots, ``key`` as ``_AREA_SHIFT`` says, in no order."""

    key: Ints
    pages: Ints
    owner: Ints


def make_slot_map(
    processes: Sequence[ProcessFacts],
    slots: PrivateSlots,
    objects: Sequence[ObjectFacts],
    machine: Machine,
    *,
    is_walked: bool,
) -> SlotMap:
    """
    Return who has which slot.

    :param processes: whose private slots these are.
    :param slots: of private pages.
    :param objects: with their slots.
    :param machine: whose swap it is.
    :param is_walked: whether the slots of objects could be asked.
    """
    held = [slots.held[facts.pid] for facts in processes]
    private, shared_by = _private_claims(held)
    kinds = [*["process"] * len(processes), *[item.kind for item in objects]]
    names = [*[facts.name for facts in processes], *[item.name for item in objects]]
    parts = [private, *_object_claims(objects, len(processes))]
    parts.append(_unowned_claims(slots.cached.unowned, len(names)))
    claims = _joined(parts)
    pages, extents = _sums(claims, len(names) + 1)
    rank = np.argsort(-pages, kind="stable")
    rank = rank[pages[rank] > 0]
    place = np.full(len(pages), -1, np.int64)
    place[rank] = np.arange(len(rank))
    claims = _Claims(claims.key, claims.pages, place[claims.owner])
    number = np.ma.masked_outside(rank - len(processes), 0, len(objects) - 1)
    pids = [facts.pid for facts in processes]
    owners = Table.of_columns(
        SlotOwner,
        owner=np.arange(len(rank)),
        sign=[SLOT_SIGNS[min(index, len(SLOT_SIGNS) - 1)] for index in range(len(rank))],
        pid=[pids[index] if index < len(pids) else None for index in rank],
        object=number if objects else [None] * len(rank),
        pages=pages[rank],
        extents=extents[rank],
        slots_per_extent=np.round(pages[rank] / extents[rank], 1),
        also_held_pages=[shared_by.get(index, 0) for index in rank.tolist()],
        kind=[[*kinds, _NOBODY[0]][index] for index in rank],
        name=[[*names, _NOBODY[1]][index] for index in rank],
    )
    return SlotMap(
        owners=owners,
        areas=Table.of(SlotArea, _areas(claims, machine)),
        runs=Table.of_columns(
            SlotRun,
            area=claims.key >> _AREA_SHIFT,
            slot=claims.key & _SLOT,
            pages=claims.pages,
            owner=claims.owner,
        ),
        twice=Table.of(DoubleClaim, _twice(claims)),
        limits=SlotMapLimits(is_walked, slots.cached.reason),
    )


def confirm_claims(first: SlotMap, second: SlotMap) -> SlotMap:
    """
    Return the second map with the double claims that the first has too.

    A slot that was freed and taken while a map was made is in it twice, but not in both.
    """
    known = {claim for twice in first.twice for claim in _claimed(first, twice)}
    kept = [twice for twice in second.twice if known.intersection(_claimed(second, twice))]
    return replace(second, twice=Table.of(DoubleClaim, kept))


def _claimed(slots: SlotMap, twice: DoubleClaim) -> Iterator[tuple[object, ...]]:
    """Yield what tells a claim of each slot from others, in whatever map."""
    owners = [slots.owners[index] for index in (twice.owner, twice.other_owner)]
    names = sorted((owner.kind, owner.name, owner.pid or 0) for owner in owners)
    for slot in range(twice.slot, twice.slot + twice.pages):
        yield twice.area, slot, *names


def _private_claims(held: list[NDArray[np.uint64]]) -> tuple[_Claims, dict[int, int]]:
    """Return every private slot once, and how many slots of each others hold as well."""
    owner = np.repeat(np.arange(len(held), dtype=np.int64), [len(mine) for mine in held])
    key = _keys(np.concatenate([_NONE, *held]))
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order]
    is_first = np.ones(len(key), bool)
    is_first[1:] = key[1:] != key[:-1]
    heads = np.flatnonzero(is_first)
    holders = np.diff(np.append(heads, len(key)))
    also = np.bincount(owner[heads][holders > 1], minlength=len(held))
    ones = np.ones(len(heads), np.int64)
    return _merged(_Claims(key[heads], ones, owner[heads])), dict(enumerate(also.tolist()))


def _unowned_claims(words: NDArray[np.uint64], owner: int) -> _Claims:
    key = np.sort(_keys(words))
    ones = np.ones(len(key), np.int64)
    return _merged(_Claims(key, ones, np.full(len(key), owner, np.int64)))


def _keys(words: NDArray[np.uint64]) -> Ints:
    area = (words & PM_SWAP_AREA).astype(np.int64)
    return area << _AREA_SHIFT | (words >> PM_SWAP_SLOT_SHIFT).astype(np.int64)


def _object_claims(objects: Sequence[ObjectFacts], first_owner: int) -> list[_Claims]:
    found = []
    for index, item in enumerate(objects, first_owner):
        key = item.slots.area.astype(np.int64) << _AREA_SHIFT | item.slots.slot
        owner = np.full(len(key), index, np.int64)
        order = np.argsort(key, kind="stable")
        found.append(_merged(_Claims(key[order], item.slots.pages[order], owner)))
    return found


def _merged(claims: _Claims) -> _Claims:
    """Join sorted runs of one owner that go on."""
    if len(claims.key) < 2:
        return claims
    stop = claims.key + claims.pages
    is_new = np.ones(len(claims.key), bool)
    is_new[1:] = (claims.key[1:] != stop[:-1]) | (claims.owner[1:] != claims.owner[:-1])
    heads = np.flatnonzero(is_new)
    last = np.append(heads[1:], len(claims.key)) - 1
    return _Claims(claims.key[heads], stop[last] - claims.key[heads], claims.owner[heads])


def _joined(parts: Sequence[_Claims]) -> _Claims:
    key = np.concatenate([part.key for part in parts])
    order = np.argsort(key, kind="stable")
    return _Claims(
        key[order],
        np.concatenate([part.pages for part in parts])[order],
        np.concatenate([part.owner for part in parts])[order],
    )


def _sums(claims: _Claims, owners: int) -> tuple[Ints, Ints]:
    pages = np.bincount(claims.owner, weights=claims.pages, minlength=owners)
    return pages.astype(np.int64), np.bincount(claims.owner, minlength=owners)


def _areas(claims: _Claims, machine: Machine) -> Iterator[SlotArea]:
    numbers = claims.key >> _AREA_SHIFT
    seen = np.flatnonzero(np.bincount(numbers, minlength=1)).tolist()
    listed = list_areas(seen, machine)
    known = {row.number: row for row in listed if row.number is not None}
    for number in sorted({*seen, *known}):
        low, high = np.searchsorted(numbers, [number, number + 1])
        stop = (claims.key[low:high] & _SLOT) + claims.pages[low:high]
        row = known.get(number)
        yield SlotArea(
            area=number,
            slots=row.slots if row is not None else int(stop.max(initial=1)),
            used_pages=row.area.used_pages if row is not None else None,
            named_pages=int(claims.pages[low:high].sum()),
            path=row.area.path if row is not None else "",
        )


def list_areas(seen: Collection[int], machine: Machine) -> list[NumberedArea]:
    """
    Return the swap areas with their numbers, none where these cannot be found out.

    :param seen: numbers of areas that slots were seen in.
    """
    try:
        return number_areas(machine, seen)
    except (MemlensError, OSError):
        return []


def _twice(claims: _Claims) -> list[DoubleClaim]:
    """Return where a run begins before one that began earlier ends."""
    if len(claims.key) < 2:
        return []
    stop = claims.key + claims.pages
    furthest = np.maximum.accumulate(stop)[:-1]
    found = []
    for index in (np.flatnonzero(claims.key[1:] < furthest) + 1).tolist():
        before = int(np.flatnonzero(stop[:index] == furthest[index - 1])[0])
        key = int(claims.key[index])
        pages = min(int(stop[index]), int(furthest[index - 1])) - key
        owners = int(claims.owner[before]), int(claims.owner[index])
        found.append(DoubleClaim(key >> _AREA_SHIFT, key & _SLOT, pages, *owners))
    return found
