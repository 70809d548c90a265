"""
Every slot of swap by its owner: the ledger, slot by slot.

Page tables name the slots of private pages, the page-cache walk those of shared-memory
objects, the folios of frames those of private pages that are in RAM again.  A slot has one
owner; two that claim it are an error, or were told at two moments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.swapareas import number_areas
from memlens.pages.arrays import distinct
from memlens.pages.bits import PM_SWAP_AREA, PM_SWAP_SLOT_SHIFT
from memlens.record import Table
from memlens.scan.facts import ProcessFacts
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
from memlens.swap.swapcache import CachedSlots

# Slots of all areas in one line: the area above, the slot below.
_AREA_SHIFT = 50
_SLOT = (1 << _AREA_SHIFT) - 1
_NOBODY = "none", "pages in RAM of no process that was read"
Ints = NDArray[np.int64]


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
    objects: Sequence[ObjectFacts],
    machine: Machine,
    *,
    cached: CachedSlots | None = None,
    is_walked: bool,
) -> SlotMap:
    """
    Return who has which slot.

    :param processes: with their swapped private pages.
    :param objects: with their slots.
    :param machine: whose swap it is.
    :param cached: the slots of private pages in RAM, None if there are none.
    :param is_walked: whether the slots of objects could be asked.
    """
    cached = cached or CachedSlots()
    private, shared_by = _private_claims(processes, cached)
    kinds = [*["process"] * len(processes), *[item.kind for item in objects]]
    names = [*[facts.name for facts in processes], *[item.name for item in objects]]
    parts = [private, *_object_claims(objects, len(processes))]
    parts.append(_unowned_claims(cached.unowned, len(names)))
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
        limits=SlotMapLimits(is_walked, cached.reason),
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


def _private_claims(
    processes: Sequence[ProcessFacts], cached: CachedSlots
) -> tuple[_Claims, dict[int, int]]:
    """Return every private slot once, and how many slots of each others hold as well."""
    each = [
        distinct(np.concatenate([facts.swap_words, cached.words_of(facts.pid)]))
        for facts in processes
    ]
    words = np.concatenate([_NO_WORDS, *each])
    lengths = [len(mine) for mine in each]
    owner = np.repeat(np.arange(len(processes), dtype=np.int64), lengths)
    key = _keys(words)
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order]
    is_first = np.ones(len(key), bool)
    is_first[1:] = key[1:] != key[:-1]
    heads = np.flatnonzero(is_first)
    holders = np.diff(np.append(heads, len(key)))
    held = np.bincount(owner[heads][holders > 1], minlength=len(processes))
    also = {index: int(count) for index, count in enumerate(held.tolist()) if count}
    ones = np.ones(len(heads), np.int64)
    return _merged(_Claims(key[heads], ones, owner[heads])), also


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
    try:
        listed = number_areas(machine, seen)
    except (MemlensError, OSError):
        listed = []
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


_NO_WORDS = np.empty(0, np.uint64)
