"""What a sweep over processes finds, before anything is added up."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.frames import Frames
from memlens.kernel.maps import Mapping
from memlens.pages.runs import Runs

ObjectKey = tuple[int, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Want:
    """
    What a sweep is to read of each process.

    :param swap: slots of private swapped pages.
    :param objects: shared-memory objects that it maps or has open.
    :param present: which pages of these its page table maps.
    :param frames: the page frames that it maps.
    :param pages: with the frames, the addresses they are mapped at.
    """

    swap: bool = False
    objects: bool = False
    present: bool = False
    frames: bool = False
    pages: bool = False


@dataclass(frozen=True, slots=True)
class ObjectUse:
    """
    A shared-memory object in the hands of a process.

    :param key: (device, inode, IPC namespace for System V, else 0).
    :param path: as maps or the descriptor names it, raw.
    :param mapping: the mapping, None if the object is only open.
    :param fd: number of the descriptor, -1 if mapped.
    :param present: pages of the object that the page table maps; None if not asked.
    :param is_huge: whether any of them is mapped by a huge page.
    """

    key: ObjectKey
    path: str
    mapping: Mapping | None
    fd: int = -1
    present: Runs | None = None
    is_huge: bool = False


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """
    What a sweep found of one process.

    :param swap_words: word without flags (area and slot) of each private swapped page,
        sorted and distinct, ``(n,)`` uint64.
    :param swap_pages: address of each such page divided by the page size, ``(n,)`` int64,
        in the order of addresses.
    :param is_swap_hidden: whether there are such pages whose slots may not be seen.
    :param frames: what it maps, None if not asked.
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
    frames: Frames | None
    mount_namespace: int
    ipc_namespace: int


@dataclass(frozen=True, slots=True)
class Missed:
    """Something that a run could not look at, and why."""

    what: str
    reason: str
