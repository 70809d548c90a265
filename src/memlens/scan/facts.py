"""What a sweep over processes finds, before anything is added up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.pages.runs import Runs

if TYPE_CHECKING:
    from memlens.scan.mapcounts import MapCounts

ObjectKey = tuple[int, int, int]


class Who(NamedTuple):
    """What a process is chosen by; ``cgroup`` is the path of its memory cgroup."""

    pid: int
    name: str
    uid: int
    cgroup: str


@dataclass(frozen=True, slots=True)
class Want:
    """
    What a sweep is to read of each process.

    :param swap: slots of private swapped pages.
    :param objects: shared-memory objects that it maps or has open.
    :param present: which pages of these its page table maps, for each process.
    :param present_pages: how many these are.
    :param identity: its user and cgroup.
    :param cached: private pages in RAM that keep a swap slot.
    :param frames: the page frames that it maps.
    :param rollup: what smaps_rollup sums up, for readers who may not see frames.
    :param who: of which processes the frames, or the rollup, are wanted.
    :param counts: sums up frames by how often they are mapped.
    :param keep_frames: whether to keep the frames beside their sums.
    """

    swap: bool = False
    objects: bool = False
    present: bool = False
    present_pages: bool = False
    identity: bool = True
    cached: bool = False
    frames: bool = False
    rollup: bool = False
    who: Callable[[Who], bool] = lambda _who: True
    counts: "MapCounts | None" = None
    keep_frames: bool = False

    @property
    def has_page_table(self) -> bool:
        """Return whether the page table has to be read."""
        return self.swap or self.present or self.present_pages or self.frames


class ObjectUse(NamedTuple):
    """
    A shared-memory object in the hands of a process.

    :param key: (device, inode, IPC namespace for System V, else 0).
    :param path: as maps or the descriptor names it, raw.
    :param mapping: the mapping, None if the object is only open; of several in a row that
        map consecutive parts, as mprotect leaves them, the first.
    :param stop: address after the last of these, 0 if the object is only open.
    :param fd: number of the descriptor, -1 if mapped.
    :param tid: thread in whose table of descriptors it is, 0 if mapped.
    :param present: pages of the object that the mapping maps; None if not asked.
    :param present_pages: how many these are; None if not asked.
    :param mappings: how many mappings of maps these are: each is an attachment of a segment.
    :param is_huge: whether any of them is mapped by a huge page.
    """

    key: ObjectKey
    path: str
    mapping: Mapping | None
    fd: int = -1
    present: Runs | None = None
    is_huge: bool = False
    stop: int = 0
    tid: int = 0
    present_pages: int | None = None
    mappings: int = 0

    @property
    def end_bytes(self) -> int:
        """Return where in the object ends what is mapped, 0 if it is only open."""
        if self.mapping is None:
            return 0
        return self.mapping.offset_bytes + self.stop - self.mapping.start

    def pages(self, page_size_bytes: int) -> tuple[int, int]:
        """Return the half-open range of the object's pages that is mapped."""
        if self.mapping is None:
            return 0, 0
        first = self.mapping.offset_bytes // page_size_bytes
        return first, first + (self.stop - self.mapping.start) // page_size_bytes


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """
    What a sweep found of one process.

    :param swap_words: word without flags (area and slot) of each private swapped page,
        sorted and distinct, ``(n,)`` uint64.
    :param swap_pages: address of each such page divided by the page size, ``(n,)`` int64,
        in the order of addresses.
    :param swap_entries: how many entries of its page table name these slots: more than one do
        where KSM has merged pages.
    :param is_swap_hidden: whether there are such pages whose slots may not be seen.
    :param cached_pfns: frames of private pages in RAM that keep a slot, ``(n,)`` uint64.
    :param cached_pages: address of each divided by the page size, ``(n,)`` int64.
    :param frames: distinct frames that it maps, sorted, None if not asked.
    :param sockets: link ``socket:[7]`` of each that it has open, and its fdinfo below the root
        of /proc; none if objects were not asked for.
    :param rollup: figures of smaps_rollup in bytes, empty if not asked; VmSwap of status where
        slots are hidden.
    :param tid: thread whose files were read.
    :param arguments: addresses of its arguments, 0 if they may not be seen.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    start_ticks: int
    uses: tuple[ObjectUse, ...]
    swap_words: NDArray[np.uint64]
    swap_pages: NDArray[np.int64]
    is_swap_hidden: bool
    frames: NDArray[np.uint32] | NDArray[np.uint64] | None
    cached_pfns: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    cached_pages: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rollup: dict[str, int] = field(default_factory=dict)
    tid: int = 0
    arguments: tuple[int, int] = (0, 0)
    sockets: dict[str, str] = field(default_factory=dict)
    swap_entries: int = 0

    def count_entries(self, page_size_bytes: int) -> int:
        """Return the swap entries of its page table; where they were not read, VmSwap."""
        if self.rollup or self.is_swap_hidden:
            return self.rollup.get("VmSwap", 0) // page_size_bytes
        return self.swap_entries
