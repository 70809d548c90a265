"""
The slots that private pages keep which are in RAM again (the swap cache), by process.

Which frames these are, the sweep has found by kpageflags; which slot each keeps, a BPF
program tells.  Where it cannot be had, their number is all that is known, and a frame whose
slot another process may hold as well is left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.kpage import KpageFile
from memlens.kernel.zoneinfo import count_frames
from memlens.pages.arrays import distinct, is_in
from memlens.pages.bits import PM_SWAP_SLOT_SHIFT
from memlens.scan.facts import ProcessFacts
from memlens.scan.frametable import KPF_ANON, KPF_SWAPCACHE
from memlens.scan.machine import Machine

SWITCH = "frameslots"
_FRAMES_AT_ONCE = 1 << 16


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
    if not machine.may(SWITCH):
        return _doubted(holders, processes, f"{SWITCH} is switched off")
    # Imported here: few scans find such pages.
    from memlens.kernel.frameslots import FrameSlotReader

    pfns = distinct(np.concatenate([facts.cached_pfns for facts in holders]))
    try:
        with FrameSlotReader(machine) as reader:
            found = reader.read(pfns)
    except (MemlensError, OSError) as error:
        return _doubted(holders, processes, str(error))
    words = found.slot.astype(np.uint64) << PM_SWAP_SLOT_SHIFT | found.area
    by_pid, frames = {}, {}
    for facts in holders:
        mine = distinct(facts.cached_pfns)
        places = np.searchsorted(pfns, mine)
        # What has left the swap cache since has no slot any more.
        kept = found.is_cached[places]
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
    if not (cached.is_exact and machine.may(SWITCH) and machine.may("kpageflags")):
        return cached
    from memlens.kernel.frameslots import FrameSlotReader

    try:
        pfns = _all_cached_frames(machine)
        with FrameSlotReader(machine) as reader:
            found = reader.read(pfns)
    except (MemlensError, OSError):
        return cached
    words = found.slot.astype(np.uint64) << PM_SWAP_SLOT_SHIFT | found.area
    words = distinct(words[found.is_cached])
    held = [_NONE, *cached.words.values(), *[facts.swap_words for facts in processes]]
    return replace(cached, unowned=words[~is_in(words, distinct(np.concatenate(held)))])


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
    swapped = distinct(np.concatenate([_NO_PAGES, *[f.swap_pages for f in processes]]))
    in_doubt = [f.cached_pfns[is_in(f.cached_pages, swapped)] for f in holders]
    doubtful = distinct(np.concatenate([_NONE, *in_doubt]))
    frames = {}
    for facts in holders:
        pfns = distinct(facts.cached_pfns)
        frames[facts.pid] = pfns[~is_in(pfns, doubtful)]
    return CachedSlots(False, {}, frames, len(doubtful), reason)


_NONE = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
