"""What is known of a shared-memory object, and sums over objects."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import PageClass
from memlens.pages.runs import Runs, count_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns
from memlens.report import Missed
from memlens.units import count_of

# Memory of these kinds is in the remainder: nothing that the kernel lists leads to it.
_UNREACHABLE = (
    "not in reach: what only the kernel holds (memfds in unread messages or registered with "
    "io_uring, deleted tmpfs files under loop devices, memory of drivers), files on detached "
    "mounts or below others, namespaces that no process is in, the root file system of the "
    "boot (initramfs)"
)
_MISSED = "the remainder is of what was missed, or "
_UNSEEN = "that processes not looked at may hold, too"


@dataclass(frozen=True, slots=True)
class HolderFacts:
    """
    A process that maps an object or has it open.

    :param mapped_pages: pages of the object that its mappings cover.
    :param present_pages: pages of the object that its page table maps now; None if it has
        mappings of it and the page tables were not read.
    :param is_open: whether it has a descriptor of it.
    :param ranges: half-open page ranges of the object that it maps.
    """

    pid: int
    name: str
    mapped_pages: int
    present_pages: int | None
    is_open: bool
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """
    One shared-memory object.

    :param kind: ``memfd``, ``tmpfs``, ``sysv`` or ``anonymous``.
    :param name: raw: a path for tmpfs, ``memfd:NAME``, ``sysv:ID``.
    :param device: ``major:minor`` in hexadecimal, as in maps.
    :param runs: a ``PageClass`` for every page up to the end of the object; ``present``
        means mapped by at least one process, ``cached`` in RAM and mapped by none that could
        be looked at.
    :param holders: processes, by PID.
    :param marks: ``deleted``, ``no_holder`` (only if every process could be looked at),
        ``detached`` (System V, no attachment), ``huge``, ``sealed``,
        ``other_mount_namespace``, ``other_ipc_namespace``.
    :param reasons: why pages are ``unknown``.
    :param age_s: since it was made, when it was looked at; None if not known.
    :param cgroup: what a page of it that is mapped is charged to; None if not known.
    :param slots: where its swapped pages are, if that was asked for and can be known.
    :param may_have_more_holders: whether processes that could not be looked at may hold it.
    :param beyond_end_resident_pages: what it owns beyond its end, in RAM: fallocate(2) with
        FALLOC_FL_KEEP_SIZE sets it aside, or a huge page of a small file reaches there.
    :param beyond_end_swap_pages: the same, on swap.
    :param is_kept: whether it stays without any process: it is named, mounted, or under a loop
        device.
    :param doubt: what else may keep it, as a note says it; "" if nothing may.
    """

    kind: str
    name: str
    device: str
    inode: int
    size_bytes: int
    uid: int | None
    runs: Runs
    holders: tuple[HolderFacts, ...]
    marks: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    age_s: float | None = None
    cgroup: str | None = None
    slots: SlotRuns = NO_SLOTS
    may_have_more_holders: bool = False
    beyond_end_resident_pages: int = 0
    beyond_end_swap_pages: int = 0
    is_kept: bool = False
    doubt: str = ""

    def counts(self) -> NDArray[np.int64]:
        """Return the pages in each class, ``(len(PageClass),)`` int64."""
        return count_runs(self.runs, len(PageClass))

    @property
    def resident_pages(self) -> int:
        """Return the pages that count in ``Shmem`` of /proc/meminfo."""
        counts = self.counts()
        kinds = (PageClass.PRESENT, PageClass.CACHED, PageClass.PREALLOCATED)
        return int(sum(counts[kind] for kind in kinds)) + self.beyond_end_resident_pages

    @property
    def swap_pages(self) -> int:
        """Return the pages that hold a swap slot."""
        counts = self.counts()
        kinds = (PageClass.SWAPPED, PageClass.SWAP_CACHED)
        return int(sum(counts[kind] for kind in kinds)) + self.beyond_end_swap_pages

    @property
    def swap_cached_pages(self) -> int:
        """Return the pages that hold a swap slot and are in RAM again."""
        return int(self.counts()[PageClass.SWAP_CACHED])

    @property
    def mappers(self) -> tuple[int, ...]:
        """Return the PIDs that map it."""
        return tuple(holder.pid for holder in self.holders if holder.mapped_pages)

    @property
    def swap_share(self) -> float | None:
        """Return the part in its pages on swap of each that maps it, None if not known."""
        mappers = self.mappers
        if not (mappers and self.swap_pages):
            return 0.0
        return None if self.may_have_more_holders else self.swap_pages / len(mappers)

    @property
    def sole_keeper(self) -> int | None:
        """
        Return the PID with whose exit the object goes, None if it would or may stay.

        In a list of all objects messages and loop devices are not asked whether they hold it.
        """
        return None if self.may_have_more_holders or self.doubt else self._only_holder

    @property
    def reason_to_doubt(self) -> str:
        """Return why it may outlive its one holder, "" if it does not or surely does."""
        if self._only_holder is None:
            return ""
        return _UNSEEN if self.may_have_more_holders else self.doubt

    @property
    def _only_holder(self) -> int | None:
        """Return who alone is known to keep it, None if several do or anything else does."""
        is_named = self.kind in ("tmpfs", "sysv") and "deleted" not in self.marks
        is_shared = is_named or self.is_kept or len(self.holders) != 1
        return None if is_shared else self.holders[0].pid


def remainder_note(missed: Sequence[Missed]) -> str:
    """Return what pages may be of that no object or process explains."""
    return (_MISSED if missed else "the remainder is ") + _UNREACHABLE


def holder_notes(objects: Iterable[ObjectFacts]) -> list[str]:
    """Return what to know of what exits free, one line each."""
    reasons = Counter(item.reason_to_doubt for item in objects)
    return [
        f"freed on exit leaves out {count_of(count, 'object', 'objects')} {reason}"
        for reason, count in sorted(reasons.items())
        if reason
    ]


def kept_pages(objects: Iterable[ObjectFacts]) -> dict[int, int]:
    """Return, by PID, the pages in RAM of objects that go with its exit."""
    kept: dict[int, int] = {}
    for item in objects:
        keeper = item.sole_keeper
        if keeper is not None:
            kept[keeper] = kept.get(keeper, 0) + item.resident_pages
    return kept


def sum_shares(shares: Iterable[float | None]) -> float | None:
    """
    Return the sum of fair shares, None if any of them is not known.

    >>> sum_shares([1.5, 2.0]), sum_shares([1.5, None])
    (3.5, None)
    """
    found = list(shares)
    return None if None in found else math.fsum(share or 0.0 for share in found)


def share_notes(objects: Iterable[ObjectFacts]) -> list[str]:
    """Return what to know of fair shares, one line each."""
    unknown = sum(item.swap_share is None for item in objects)
    if not unknown:
        return []
    count = count_of(unknown, "object", "objects")
    return [f"share is not known of {count} on swap that processes not looked at may map, too"]


def mapper_notes(objects: Iterable[ObjectFacts]) -> list[str]:
    """Return what to know of pages that nobody who was seen maps, one line each."""
    doubtful = sum(
        item.may_have_more_holders and bool(item.counts()[PageClass.CACHED]) for item in objects
    )
    if not doubtful:
        return []
    count = count_of(doubtful, "object", "objects")
    return [f"cached pages of {count} may be mapped by processes not looked at"]


def split_objects(
    objects: Iterable[ObjectFacts],
) -> tuple[dict[int, float | None], dict[int, int]]:
    """
    Return, by PID, the fair share of swapped shared pages, and what goes with its exit.

    An object is split evenly over the processes that map it; a share is None if it is not
    known who these are.
    """
    shares: dict[int, float | None] = {}
    kept: dict[int, int] = {}
    for item in objects:
        for pid in item.mappers:
            shares[pid] = sum_shares([shares.get(pid, 0.0), item.swap_share])
        keeper = item.sole_keeper
        if keeper is not None:
            kept[keeper] = kept.get(keeper, 0) + item.swap_pages
    return shares, kept
