"""Private memory as its page tables tell it: an independent and slow look, word by word."""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import PAGE

KPF_ANON = 12


def _iter_words(pid: int) -> Iterator[tuple[int, int]]:
    """Yield page number and word of everything that a process maps."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for line in maps:
            first, stop = (int(part, 16) // PAGE for part in line.split()[0].split("-"))
            if first >= 1 << 51:
                continue
            data = os.pread(file.fileno(), (stop - first) * 8, first * 8)
            for number, (word,) in enumerate(struct.iter_unpack("<Q", data)):
                if word:
                    yield first + number, word


# A slot, by what can be told without memlens: the word of a page-table entry, or a frame whose
# slot no entry names.
Slot = tuple[str, int]


@dataclass
class Private:
    """
    What a few processes have in private memory, as sets.

    :param slots: (area, offset) of each that is swapped, by PID.
    :param frames: PFN of all that is mapped, by PID; pages of files too.
    :param kept: PFNs of private pages in RAM that keep a slot, by PID.
    :param held: the slots of both, by PID.  A page in RAM at an address where another of the
        processes has an entry keeps that entry's slot: true of relatives whose pages were
        swapped out before they were forked.
    """

    slots: dict[int, set[int]]
    frames: dict[int, set[int]]
    kept: dict[int, set[int]]
    held: dict[int, set[Slot]]

    @property
    def distinct_slots(self) -> int:
        """Return the number of slots in page tables, each once."""
        return len(set().union(*self.slots.values()))

    @property
    def distinct_held(self) -> int:
        """Return the number of slots in page tables and of pages in RAM, each once."""
        return len(set().union(*self.held.values()))

    def has_slots_of(self, other: "Private") -> bool:
        """Return whether the two have the same slots, whatever else moved."""
        return (self.slots, self.kept, self.held) == (other.slots, other.kept, other.held)

    def held_alone(self, pid: int) -> int:
        """Return the number of slots that no other of the processes holds."""
        return len(self.held[pid].difference(*(s for p, s in self.held.items() if p != pid)))

    def entries_alone(self, pid: int) -> int:
        """Return the number of slots in its page table that no other of the processes holds."""
        entries = {("entry", word) for word in self.slots[pid]}
        return len(entries.difference(*(s for p, s in self.held.items() if p != pid)))

    def share(self, pid: int) -> float:
        """Return the slots in its page table, each divided among those that have it there."""
        return sum(
            1 / sum(slot in slots for slots in self.slots.values()) for slot in self.slots[pid]
        )


def read_private(pids: Iterable[int]) -> Private:
    """Read the page tables of these processes."""
    found = Private({}, {}, {}, {})
    entries: dict[int, int] = {}
    present: dict[int, dict[int, int]] = {}
    for pid in pids:
        found.slots[pid], found.frames[pid], present[pid] = set(), set(), {}
        for page, word in _iter_words(pid):
            place = word & ((1 << 55) - 1)
            if word & oracle.SWAP and word & 31 < oracle.FIRST_SPECIAL_TYPE:
                found.slots[pid].add(place)
                entries[page] = place
            elif word & oracle.PRESENT:
                found.frames[pid].add(place)
                if not word & oracle.FILE:
                    present[pid][page] = place
    cached = set(_swap_cached({pfn for pages in present.values() for pfn in pages.values()}))
    for pid, pages in present.items():
        kept = {page: pfn for page, pfn in pages.items() if pfn in cached}
        found.kept[pid] = set(kept.values())
        found.held[pid] = {("entry", word) for word in found.slots[pid]} | {
            ("entry", entries[page]) if page in entries else ("frame", pfn)
            for page, pfn in kept.items()
        }
    return found


def _swap_cached(pfns: Iterable[int]) -> Iterator[int]:
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for pfn in pfns:
            (flags,) = struct.unpack("<Q", os.pread(file.fileno(), 8, pfn * 8))
            if flags >> oracle.KPF_SWAPCACHE & 1 and flags >> KPF_ANON & 1:
                yield pfn
