"""Private memory as its page tables tell it: an independent and slow look, word by word."""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import raw
from driver import PAGE

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


@dataclass
class Private:
    """
    What a few processes have in private memory, as sets.

    :param slots: (area, offset) of each that is swapped, by PID.
    :param frames: PFN of all that is mapped, by PID; pages of files too.
    :param cached: PFNs of private pages in RAM that keep a slot.
    """

    slots: dict[int, set[int]]
    frames: dict[int, set[int]]
    cached: set[int]

    @property
    def distinct_slots(self) -> int:
        """Return the number of slots, each once."""
        return len(set().union(*self.slots.values()))


def read_private(pids: Iterable[int]) -> Private:
    """Read the page tables of these processes."""
    slots: dict[int, set[int]] = {}
    frames: dict[int, set[int]] = {}
    swapped_at: set[int] = set()
    present: dict[int, set[int]] = {}
    for pid in pids:
        slots[pid], frames[pid] = set(), set()
        for page, word in _iter_words(pid):
            if word & raw.SWAP and word & 31 < raw.FIRST_SPECIAL_TYPE:
                slots[pid].add(word & ((1 << 55) - 1))
                swapped_at.add(page)
            elif word & raw.PRESENT:
                pfn = word & ((1 << 55) - 1)
                frames[pid].add(pfn)
                if not word & raw.FILE:
                    present.setdefault(pfn, set()).add(page)
    # At an address where a relative still has the slot, that slot is counted there.
    cached = {pfn for pfn in _swap_cached(present) if not present[pfn] & swapped_at}
    return Private(slots, frames, cached)


def _swap_cached(pfns: Iterable[int]) -> Iterator[int]:
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for pfn in pfns:
            (flags,) = struct.unpack("<Q", os.pread(file.fileno(), 8, pfn * 8))
            if flags >> raw.KPF_SWAPCACHE & 1 and flags >> KPF_ANON & 1:
                yield pfn
