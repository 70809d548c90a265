"""The results of a look at memory cgroups; nothing here reads anything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.cost import Cost
from memlens.account.facts import Missed

# Codes of kinds, from 1; 0 is no page of the cgroup.
KINDS = ("anonymous", "shmem", "file", "hugetlb", "kernel")
# What becomes of a page of a kind: mapped by any process, only cached, kept twice, or given
# back as part of a huge page that is not split yet.
STATES = ("present", "cached", "swap_cached", "unmapped")


@dataclass(frozen=True, slots=True)
class KindPages:
    """
    Charged pages of one kind and state.

    :param kind: ``anonymous``, ``shmem``, ``file``, ``hugetlb`` or ``kernel``.
    :param state: ``present``: a page table maps it; ``cached``: in the page cache and
        mapped by none; ``swap_cached``: it has a slot on swap, too; ``unmapped``: private
        memory that nobody maps, as the rest of a huge page of which a part was given back.
    :param dirty_pages: of these, newer than what is on disk.
    """

    kind: str
    state: str
    pages: int
    dirty_pages: int


@dataclass(frozen=True, slots=True)
class OwnerPages:
    """
    Charged pages that belong to a file, or that a process maps.

    :param name: path of the file, or the process's comm; raw.
    :param pid: of the process, 0 for a file.
    :param cgroup: of the process, "" for a file.
    :param pages: each page in one row only: of a file, or else of the first process.
    :param mapped_pages: all that the process maps of what is charged.
    """

    name: str
    pid: int
    cgroup: str
    pages: int
    mapped_pages: int


@dataclass(frozen=True, slots=True)
class ElsewherePages:
    """Pages that are charged in one cgroup and mapped by processes of another."""

    cgroup: str
    pages: int


@dataclass(frozen=True, slots=True)
class StatLine:
    """
    A figure of memory.stat beside what was found.

    :param difference_pages: what memory.stat says more than was found.
    """

    name: str
    stat_pages: int
    found_pages: int

    @property
    def difference_pages(self) -> int:
        """Return what the kernel counts and was not found."""
        return self.stat_pages - self.found_pages


@dataclass(frozen=True, slots=True)
class CgroupPages:
    """
    What a cgroup, with those below it, is charged.

    :param path: as /proc/PID/cgroup has it.
    :param version: of the hierarchy, 1 or 2.
    :param cgroups: how many that are.
    :param charged_pages: frames in RAM.
    :param kinds: their sums by kind and state.
    :param files: by file, those that a process maps; most pages first.
    :param processes: by process, private pages.
    :param unowned_pages: frames that no process maps.
    :param used_elsewhere: of the charged ones, mapped by processes of other cgroups.
    :param only_elsewhere_pages: of the charged ones, mapped by such processes alone.
    :param charged_elsewhere: mapped by processes of this cgroup, charged to others.
    :param stat: memory.stat beside these.
    :param moved_pages: changed hands while they were read; in no other number.
    """

    path: str
    version: int
    page_size_bytes: int
    cgroups: int
    charged_pages: int
    kinds: tuple[KindPages, ...]
    files: tuple[OwnerPages, ...]
    processes: tuple[OwnerPages, ...]
    unowned_pages: int
    used_elsewhere: tuple[ElsewherePages, ...]
    only_elsewhere_pages: int
    charged_elsewhere: tuple[ElsewherePages, ...]
    stat: tuple[StatLine, ...]
    moved_pages: int
    is_complete: bool
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class CgroupRow:
    """
    One cgroup of the overview, without those below it.

    :param path: None if it is in no directory that this reader sees.
    :param pages: by ``KINDS``.
    """

    path: str | None
    inode: int
    pages: tuple[int, ...]

    @property
    def charged_pages(self) -> int:
        """Return the sum over all kinds."""
        return sum(self.pages)


@dataclass(frozen=True, slots=True)
class CgroupList:
    """Every cgroup that is charged for a frame in RAM, most pages first."""

    version: int
    page_size_bytes: int
    rows: tuple[CgroupRow, ...]
    is_complete: bool
    cost: Cost


def count_codes(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each code occurs, ``(len(KINDS) + 1,)`` int64."""
    return np.bincount(codes, minlength=len(KINDS) + 1)
