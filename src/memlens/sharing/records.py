"""The results of a look at sharing; nothing here reads anything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.report import Cost, Missed


@dataclass(frozen=True, slots=True)
class MappingShare:
    """
    One mapping, in pages; only those that have any in RAM are told of.

    :param shared_with_parent_pages: of RSS, frames that the parent maps too; None if this
        was not forked from a process of the scan.
    :param copied_pages: of RSS, where the parent has another page at the same address: one
        of the two has written since the fork.
    :param new_pages: of RSS, where the parent has none.
    :param new_object_pages: of these, pages of files and shared memory: mapped since the fork,
        not made by it.
    """

    start: int
    stop: int
    permissions: str
    path: str
    rss_pages: int
    pss_pages: float
    uss_pages: int
    shared_with_parent_pages: int | None
    copied_pages: int | None
    new_pages: int | None
    new_object_pages: int | None

    @classmethod
    def of(
        cls, mapping: Mapping, counts: "ShareCounts", number: int, is_fork: bool
    ) -> "MappingShare":
        """Return the row of a mapping."""
        return cls(
            start=mapping.start,
            stop=mapping.stop,
            permissions=mapping.permissions,
            path=mapping.path,
            rss_pages=int(counts.rss[number]),
            pss_pages=float(counts.pss[number]),
            uss_pages=int(counts.uss[number]),
            shared_with_parent_pages=int(counts.shared[number]) if is_fork else None,
            copied_pages=int(counts.copied[number]) if is_fork else None,
            new_pages=int(counts.fresh[number]) if is_fork else None,
            new_object_pages=int(counts.fresh_objects[number]) if is_fork else None,
        )


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """
    One process, in pages.

    :param parent: PID of the process of the scan that it was forked from, None if there is
        none or it has executed another program since.
    :param rss_pages: mapped, as the kernel counts them; without those that moved.
    :param pss_pages: each divided by how often it is mapped, by whomever.
    :param uss_pages: those that nobody else maps.
    :param freed_on_exit_pages: free once it has ended: private ones that nobody else maps,
        and those of shared-memory objects that go with it.  Pages of files stay cached.
    :param moved_pages: changed while they were read; in no other number.
    :param swapped_pages: private pages on swap.
    """

    pid: int
    name: str
    parent: int | None
    rss_pages: int
    pss_pages: float
    uss_pages: int
    freed_on_exit_pages: int | None
    moved_pages: int
    swapped_pages: int
    shared_with_parent_pages: int | None
    copied_pages: int | None
    new_pages: int | None
    new_object_pages: int | None
    mappings: tuple[MappingShare, ...]


@dataclass(frozen=True, slots=True)
class PairShare:
    """Two processes and the distinct frames that both map."""

    a: int
    b: int
    shared_pages: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """
    What processes use and share.

    :param processes: parents before their children.
    :param pairs: every pair once.
    :param distinct_pages: frames that any of them maps; None if frames are hidden.
    :param is_hidden: whether this reader may not see frames: then there are no pairs, and
        the rest is what smaps says.
    """

    page_size_bytes: int
    processes: tuple[ProcessShare, ...]
    pairs: tuple[PairShare, ...]
    distinct_pages: int | None
    is_hidden: bool
    is_complete: bool
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class ShareCounts:
    """Sums by mapping, ``(n,)`` each; ``pss`` float64, the others int64."""

    rss: NDArray[np.int64]
    pss: NDArray[np.float64]
    uss: NDArray[np.int64]
    shared: NDArray[np.int64]
    copied: NDArray[np.int64]
    fresh: NDArray[np.int64]
    fresh_objects: NDArray[np.int64]

    @classmethod
    def zeros(cls, mappings: int) -> "ShareCounts":
        """Return sums of nothing."""
        zeros = [np.zeros(mappings, np.int64) for _ in range(6)]
        return cls(zeros[0], np.zeros(mappings), *zeros[1:])

    def add(self, place: NDArray[np.int64], times: NDArray[np.uint32]) -> None:
        """Add pages: the mapping of each, and how often it is mapped."""
        many = len(self.rss)
        self.rss[:] += np.bincount(place, minlength=many)
        self.pss[:] += np.bincount(place, weights=1.0 / times, minlength=many)
        self.uss[:] += np.bincount(place[times == 1], minlength=many)

    def add_fork(
        self,
        place: NDArray[np.int64],
        is_shared: NDArray[np.bool_],
        has_own: NDArray[np.bool_],
        is_file: NDArray[np.bool_],
    ) -> None:
        """
        Add pages.

        :param place: the mapping of each.
        :param is_shared: whether the parent maps the same frame.
        :param has_own: whether it has another there.
        :param is_file: whether the page is of a file or of shared memory.
        """
        many = len(self.rss)
        self.shared[:] += np.bincount(place[is_shared], minlength=many)
        self.copied[:] += np.bincount(place[has_own], minlength=many)
        is_fresh = ~is_shared & ~has_own
        self.fresh[:] += np.bincount(place[is_fresh], minlength=many)
        self.fresh_objects[:] += np.bincount(place[is_fresh & is_file], minlength=many)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """
    One process.

    :param rss_pages: pages that its page table maps, as the kernel counts them.
    :param pss_pages: each page divided by how often it is mapped.
    :param uss_pages: pages that nobody else maps.
    :param freed_on_exit_pages: pages that are free once it has ended: private ones mapped
        by it alone, and those of shared-memory objects that go with it.  Pages of files
        stay in the page cache.  0 of what it maps if another process runs in the same
        memory.  None if the reader may not see page frames, or not tell that.
    :param swap_own_pages: private pages on swap, each slot once.
    :param swap_share_pages: its even part of swapped pages of objects that it maps; None if
        processes that were not looked at may map these, too.
    :param shared_memory_pages: pages of shared-memory objects that it maps now.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    rss_pages: int
    pss_pages: float
    uss_pages: int
    swap_own_pages: int
    swap_share_pages: float | None
    freed_on_exit_pages: int | None
    shared_memory_pages: int


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """
    Processes with the same name, user or cgroup; a page that many map counts once.

    :param distinct_rss_pages: number of distinct page frames; None if they are hidden.
    :param pss_pages: sum of the PSS of its processes; one memory of several counts once.
    :param uss_pages: sum of the USS of its processes, the same.
    :param swap_own_pages: distinct private slots; None if they are hidden.
    :param swap_share_pages: sum of the shares of its processes, None if any is not known.
    """

    key: str
    pids: tuple[int, ...]
    distinct_rss_pages: int | None
    pss_pages: float
    uss_pages: int
    swap_own_pages: int | None
    swap_share_pages: float | None


@dataclass(frozen=True, slots=True)
class ProcessList:
    """Processes, their groups, and what could not be looked at."""

    page_size_bytes: int
    processes: tuple[ProcessMemory, ...]
    groups: tuple[ProcessGroup, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost
    is_complete: bool = True
