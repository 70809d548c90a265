"""The swap slots of private pages: each once, and how many processes hold it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.arrays import count_distinct, distinct
from memlens.pages.bits import PM_SWAP_AREA
from memlens.scan.facts import ProcessFacts
from memlens.shm.records import SharedObject
from memlens.swap.swapcache import CachedSlots
from memlens.units import count_of

NO_SLOTS = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class PrivateSlots:
    """
    The slots of private pages.

    :param private: those in page tables, each once, sorted.
    :param held: by PID, those that a process holds, in its page table or by a page in RAM.
    :param every: those of ``held``, each once, sorted.
    :param holders: how many processes hold each of ``every``.
    :param cached: those of pages in RAM.
    :param may_miss_holders: whether processes that were not looked at may hold any, too, as
        after fork.
    """

    private: NDArray[np.uint64]
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

    def seen_areas(self, objects: Iterable[SharedObject]) -> set[int]:
        """Return the numbers of areas that any slot was seen in."""
        parts = [item.slots.area for item in objects]
        areas = np.concatenate([(self.every & PM_SWAP_AREA).astype(np.uint8), *parts])
        return set(distinct(areas).tolist())

    def count_alone(self, pid: int) -> int | None:
        """Return the slots that no other process holds, None if that is not known."""
        places = np.searchsorted(self.every, self.held[pid])
        alone = int((self.holders[places] == 1).sum())
        return None if alone and self.may_miss_holders else alone

    def notes(self) -> list[str]:
        """Return what to know of what exits free, one line each."""
        doubtful = sum(self.count_alone(pid) is None for pid in self.held)
        if not doubtful:
            return []
        count = count_of(doubtful, "process", "processes")
        return [
            f"freed on exit is not known of {count}: processes not looked at may hold the same "
            "private pages, as after fork"
        ]


def count_slots(
    processes: Iterable[ProcessFacts], cached: CachedSlots, may_miss_holders: bool = False
) -> PrivateSlots:
    """Count every private slot once, and how many processes hold it."""
    held = {
        facts.pid: distinct(np.concatenate([facts.swap_words, cached.words_of(facts.pid)]))
        for facts in processes
    }
    private = distinct(np.concatenate([NO_SLOTS, *[facts.swap_words for facts in processes]]))
    every, holders = count_distinct(np.concatenate([NO_SLOTS, *held.values()]))
    return PrivateSlots(private, held, every, holders, cached, may_miss_holders)
