"""The swap slots of private pages: each once, and how many processes hold it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.arrays import count_distinct, distinct
from memlens.pages.bits import PM_SWAP_AREA
from memlens.scan.facts import ProcessFacts
from memlens.shm.facts import ObjectFacts
from memlens.swap.swapcache import CachedSlots
from memlens.units import count_of

NO_SLOTS = np.empty(0, np.uint64)


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
    entries = [NO_SLOTS, *[facts.swap_words for facts in processes]]
    private, sharers = count_distinct(np.concatenate(entries))
    every, holders = count_distinct(np.concatenate([NO_SLOTS, *held.values()]))
    return PrivateSlots(private, sharers, held, every, holders, cached, may_miss_holders)
