"""
Every slot of swap by its owner: the ledger, slot by slot.

Page tables name the slots of private pages, the page-cache walk those of shared-memory
objects, the folios of frames those of private pages that are in RAM again.  A slot has one
owner; two that claim it are an error, or were told at two moments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.swapareas import NumberedArea, number_areas
from memlens.pages.arrays import distinct
from memlens.pages.bits import PM_SWAP_AREA, PM_SWAP_SLOT_SHIFT
from memlens.scan.facts import ProcessFacts
from memlens.scan.machine import Machine
from memlens.shm.records import SharedObject
from memlens.swap.records import AreaSlots, DoubleClaim, Ints, OwnedSlots, SlotMap, SlotOwner
from memlens.swap.swapcache import CachedSlots

# Slots of all areas in one line: the area above, the slot below.
_AREA_SHIFT = 50
_SLOT = (1 << _AREA_SHIFT) - 1
_NOBODY = SlotOwner("none", "pages in RAM of no process that was read", None)


@dataclass(frozen=True, slots=True)
class _Claims:
    """Runs of slots, ``key`` as ``_AREA_SHIFT`` says, in no order."""

    key: Ints
    pages: Ints
    owner: Ints


def make_slot_map(
    processes: Sequence[ProcessFacts],
    objects: Sequence[SharedObject],
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
    owners = [SlotOwner("process", facts.name, facts.pid) for facts in processes]
    owners += [SlotOwner(item.kind, item.name, None) for item in objects]
    parts = [private, *_object_claims(objects, len(processes))]
    parts.append(_unowned_claims(cached.unowned, len(owners)))
    owners.append(_NOBODY)
    claims = _joined(parts)
    pages, extents = _sums(claims, len(owners))
    rank = np.argsort(-pages, kind="stable")
    rank = rank[pages[rank] > 0]
    place = np.full(len(owners), -1, np.int64)
    place[rank] = np.arange(len(rank))
    claims = _Claims(claims.key, claims.pages, place[claims.owner])
    ranked = tuple(
        SlotOwner(
            kind=owners[index].kind,
            name=owners[index].name,
            pid=owners[index].pid,
            pages=int(pages[index]),
            extents=int(extents[index]),
            also_held_pages=shared_by.get(index, 0),
        )
        for index in rank.tolist()
    )
    return SlotMap(
        ranked, _areas(claims, machine), tuple(_twice(claims)), is_walked, cached.reason
    )


def confirm_claims(first: SlotMap, second: SlotMap) -> SlotMap:
    """
    Return the second map with the double claims that the first has too.

    A slot that was freed and taken while a map was made is in it twice, but not in both.
    """
    known = {claim for twice in first.twice for claim in _claimed(first, twice)}
    kept = tuple(twice for twice in second.twice if known.intersection(_claimed(second, twice)))
    return replace(second, twice=kept)


def _claimed(slots: SlotMap, twice: DoubleClaim) -> Iterator[tuple[object, ...]]:
    """Yield what tells a claim of each slot from others, in whatever map."""
    owners = [slots.owners[index] for index in twice.owners]
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


def _object_claims(objects: Sequence[SharedObject], first_owner: int) -> list[_Claims]:
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


def _areas(claims: _Claims, machine: Machine) -> tuple[AreaSlots, ...]:
    numbers = claims.key >> _AREA_SHIFT
    seen = np.flatnonzero(np.bincount(numbers, minlength=1)).tolist()
    try:
        listed = number_areas(machine, seen)
    except (MemlensError, OSError):
        listed = []
    known = {row.number: row for row in listed if row.number is not None}
    found = []
    for number in sorted({*seen, *known}):
        low, high = np.searchsorted(numbers, [number, number + 1])
        runs = OwnedSlots(
            claims.key[low:high] & _SLOT, claims.pages[low:high], claims.owner[low:high]
        )
        found.append(_area(number, known.get(number), runs))
    return tuple(found)


def _area(number: int, row: NumberedArea | None, runs: OwnedSlots) -> AreaSlots:
    if row is not None:
        return AreaSlots(number, row.area.path, row.slots, row.area.used_pages, runs)
    end = int((runs.first + runs.pages).max()) if len(runs.first) else 1
    return AreaSlots(number, "", end, None, runs)


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
        found.append(DoubleClaim(key >> _AREA_SHIFT, key & _SLOT, pages, owners))
    return found


_NO_WORDS = np.empty(0, np.uint64)
