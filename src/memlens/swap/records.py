"""Records of ``memlens swap``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.report import Cost, Missed
from memlens.shm.records import SharedObject


@dataclass(frozen=True, slots=True)
class ProcessSwap:
    """
    One process in the ledger.

    :param own_pages: private pages on swap, each slot once; one shared after fork counts
        for every process that holds it.  VmSwap of its status where slots are hidden.
    :param share_pages: its part of the objects' pages on swap, each object split evenly
        over the processes that map it; None if not all of these may be known.
    :param freed_on_exit_pages: slots that are free once it has ended: private ones that
        no other process holds, those of its pages in RAM included where they are known, and
        those of objects that go with it; None where slots are hidden, or processes that were
        not looked at may hold them, too.
    :param cache_pages: pages in RAM that keep a slot, which it maps.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    own_pages: int
    share_pages: float | None
    freed_on_exit_pages: int | None
    cache_pages: int = 0


@dataclass(frozen=True, slots=True)
class CgroupSwap:
    """
    One cgroup in the ledger, without those below it.

    :param charged_pages: what the kernel charges it; None if not known.
    :param own_pages: private slots of its processes, each once; None where they are hidden.
    :param share_pages: fair shares of its processes in swapped objects; None if that of any
        is not known.
    """

    path: str
    charged_pages: int | None
    own_pages: int | None
    share_pages: float | None


@dataclass(frozen=True, slots=True)
class ZswapUse:
    """
    The compressed cache before swap; its pages count as swapped everywhere else.

    :param stored_bytes: uncompressed size of what it holds, None if the kernel hides it.
    :param compressed_bytes: RAM that this takes, None if the kernel hides it.
    """

    is_enabled: bool
    stored_bytes: int | None
    compressed_bytes: int | None


@dataclass(frozen=True, slots=True)
class AreaSwap:
    """
    One swap area.

    :param area: its number in page-table entries; None if the kernel leaves it open.
    :param path: of the device or file, raw.
    :param kind: ``partition``, ``file`` or ``zram``.
    :param private_pages: distinct slots of it in page tables; None if ``area`` is.
    :param stored_bytes: zram: uncompressed size of what it holds; else None.
    :param compressed_bytes: zram: RAM that this takes; else None.
    """

    area: int | None
    path: str
    kind: str
    size_pages: int
    used_pages: int
    priority: int
    private_pages: int | None
    stored_bytes: int | None = None
    compressed_bytes: int | None = None


Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OwnedSlots:
    """
    Consecutive slots of one owner, in order.

    :param first: first slot of each run, ``(n,)`` int64.
    :param pages: length of each run, ``(n,)`` int64.
    :param owner: index into ``SlotMap.owners``, ``(n,)`` int64.
    """

    first: Ints
    pages: Ints
    owner: Ints


@dataclass(frozen=True, slots=True)
class AreaSlots:
    """
    The slots of one swap area.

    :param area: its number.
    :param path: its device or file, "" if the kernel does not say for certain.
    :param slots: slots are numbered from 1 and below this.
    :param used_pages: slots that are taken, as /proc/swaps says; None if not known.
    :param runs: slots with their owners; where two claim a slot, both are there.
    """

    area: int
    path: str
    slots: int
    used_pages: int | None
    runs: OwnedSlots

    @property
    def named_pages(self) -> int:
        """Return the slots with an owner."""
        return int(self.runs.pages.sum())


@dataclass(frozen=True, slots=True)
class DoubleClaim:
    """Slots that two owners claim, by their index."""

    area: int
    slot: int
    pages: int
    owners: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SlotOwner:
    """
    What keeps slots.

    :param kind: ``process`` for private pages, ``none`` for those in RAM of no process that was
        read, or the kind of a shared-memory object.
    :param name: of the process or object, raw.
    :param pid: of the process, None for an object.
    :param pages: slots that are its own; a private slot that several processes hold after
        fork is the first one's.
    :param extents: stretches of consecutive slots that these are in.
    :param also_held_pages: of these, slots that other processes hold as well.
    """

    kind: str
    name: str
    pid: int | None
    pages: int = 0
    extents: int = 0
    also_held_pages: int = 0


@dataclass(frozen=True, slots=True)
class SlotMap:
    """
    Who has which slot.

    :param owners: those with most slots first.
    :param areas: by their number.
    :param twice: slots that were claimed twice, on two looks; there should be none.
    :param is_walked: whether slots of shared memory could be told.
    :param cache_reason: why slots of private pages in RAM could not be told, "" if they could.
    """

    owners: tuple[SlotOwner, ...]
    areas: tuple[AreaSlots, ...]
    twice: tuple[DoubleClaim, ...]
    is_walked: bool
    cache_reason: str = ""


@dataclass(frozen=True, slots=True)
class SwapLedger:
    """
    Where swap is.

    :param used_pages: used slots as /proc/swaps says, all areas.
    :param private_pages: distinct slots in page tables.
    :param shared_pages: pages of shared-memory objects on swap, ``swap_cached`` included.
    :param swap_cache_pages: distinct slots of private pages in RAM that no page table holds
        as well.
    :param remainder_pages: used pages that none of the three explains; negative if swap
        was freed while it was counted.
    :param zswap: None if this kernel has none.
    :param notes: what to know about the remainder.
    :param is_complete: False if the scan was stopped, or its budget spent.
    :param slots: who has which slot, None unless that was asked for.
    """

    page_size_bytes: int
    used_pages: int
    private_pages: int
    shared_pages: int
    swap_cache_pages: int
    remainder_pages: int
    areas: tuple[AreaSwap, ...]
    zswap: ZswapUse | None
    processes: tuple[ProcessSwap, ...]
    objects: tuple[SharedObject, ...]
    cgroups: tuple[CgroupSwap, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost
    is_complete: bool = True
    slots: SlotMap | None = None

    @property
    def swap_cached_shared_pages(self) -> int:
        """Return the pages of objects that are in RAM again as well."""
        return sum(item.swap_cached_pages for item in self.objects)
