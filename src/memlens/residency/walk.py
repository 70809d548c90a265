"""
The page-cache walk as evidence: where it is worth its while, and what its records say.

It tells swapped pages and holes far faster than the other interfaces, pages in RAM more
slowly than cachestat does; and it alone tells slots, and what hugetlbfs and a copied-up
file of an overlay hold.  docs/how-it-works/cachewalk.md.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from memlens.errors import MemlensError
from memlens.kernel import bpf
from memlens.kernel.maps import Mapping
from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import is_swap_cache_empty
from memlens.objects.backing import Backing
from memlens.objects.opener import device_number
from memlens.pages.classes import Evidence
from memlens.pages.runs import (
    Runs,
    clip_runs,
    concat_runs,
    decode_runs,
    encode_runs,
    fill_runs,
    merge_runs,
    one_run,
    replace_runs,
    restrict_runs,
    select_runs,
    shift_runs,
)
from memlens.pages.slotruns import SlotRuns, concat_slots, without_pages
from memlens.scan.machine import Machine

if TYPE_CHECKING:
    from memlens.kernel.cacherecords import CacheRecords
    from memlens.kernel.cachewalk import CacheWalker

# Loading the program takes some 15 ms, which is what the others take for so many pages.
_WORTH_PAGES = 1 << 14

# Pages walked at a time, of which a record may be needed for each; more of what is uniform.
_LEAST_PAGES = 1 << 16
_MOST_PAGES = 1 << 19
_FEW_RECORDS = 1000

# To prove the swap cache empty costs as much as asking mincore about so many pages.
_PROOF_PAGES = 1 << 13
_MINCORE_PAGES = 1 << 16


@dataclass(slots=True)
class Walking:
    """
    The use of the walk in one scan.

    :param machine: what is asked.
    :param is_eager: whether to walk whatever can be, for the slots.
    :param notes: why answers were void, one line each.
    """

    machine: Machine
    is_eager: bool = False
    notes: list[str] = field(default_factory=list)
    _is_usable: bool | None = None
    _is_swap_used: bool | None = None

    def is_usable(self) -> bool:
        """Return whether nothing speaks against the walk here; this loads nothing."""
        if self._is_usable is None:
            self._is_usable = self.machine.may("cachewalk") and _is_permitted()
        return self._is_usable

    def is_worth(self, kind: str, pages: int) -> bool:
        """
        Return whether to walk a range of an object instead of asking the others.

        :param kind: of the object.
        """
        if not self.is_usable() or kind == "overlay":
            return False
        if self.is_eager:
            return True
        return kind == "shmem" and pages >= _WORTH_PAGES and self.has_swap()

    def walk_fd(self, fd: int, first: int, stop: int, name: str) -> "CacheRecords | None":
        """Return the records of an open object, None if there is no valid answer."""
        return self._walk(lambda found: found.walk_fd(fd, first, stop), name)

    def walk_mapping(
        self, tid: int, mapping: Mapping, first: int, stop: int, *, is_of_layer: bool = False
    ) -> "CacheRecords | None":
        """
        Return the records of what is mapped, None if there is no valid answer.

        :param tid: a live thread of whose mapping it is, as ``proc`` numbers it: a first thread
            that has ended has no memory.
        :param first: first page of the object.
        :param stop: page of the object to stop before.
        :param is_of_layer: whether an overlay is mapped: what is walked is then the file of a
            layer, which has another number.
        """
        if not self._is_own_proc():
            return None  # the number may be another thread's here
        records = self._walk(
            # It holds the mmap lock of the process.
            lambda found: self.machine.meter.time(
                lambda: found.walk_vma(tid, mapping.start, first, stop)
            ),
            mapping.path,
        )
        place = mapping.start, mapping.stop, mapping.offset_bytes
        if records is None or records.object.vma != place:
            return None
        # Another object may have come to be mapped at just this place.
        walked = records.object.device, records.object.inode
        named = device_number(mapping.device), mapping.inode
        return records if is_of_layer or walked == named else None

    def _is_own_proc(self) -> bool:
        try:
            return os.readlink(f"{self.machine.root}/self") == str(os.getpid())
        except OSError:
            return False

    def _walk(
        self, call: Callable[["CacheWalker"], "CacheRecords"], name: str
    ) -> "CacheRecords | None":
        if not self.is_usable():
            return None
        # Imported here, as it is loaded: most scans need neither.
        from memlens.kernel.cacherecords import CacheWalkInvalid
        from memlens.kernel.cachewalk import walker

        try:
            loaded = walker()
        except MemlensError:
            self._is_usable = False
            return None
        try:
            records = call(loaded)
        except CacheWalkInvalid as error:
            self.notes.append(f"{name}: the page-cache walk is void: {error}")
            return None
        except (MemlensError, OSError):
            return None
        self.machine.meter.used.add("cachewalk")
        return records

    def has_swap(self) -> bool:
        """Return whether any swap is in use, without which no slot can be."""
        if self._is_swap_used is None:
            try:
                lines = read_file(f"{self.machine.root}/swaps").splitlines()[1:]
                self._is_swap_used = any(line.split()[-2] != b"0" for line in lines)
            except (OSError, IndexError):
                self._is_swap_used = False
        return self._is_swap_used


def _is_permitted() -> bool:
    try:
        bpf.raise_if_unusable()
    except MemlensError:
        return False
    return True


@dataclass(slots=True)
class ObjectWalk:
    """
    The walk of one open object.

    :param walking: of the scan.
    :param backing: the object.
    :param has_seek: whether SEEK_DATA may be asked, about what is not in RAM.
    :param has_mincore: whether mincore may be asked, about copies in the swap cache.
    """

    walking: Walking
    backing: Backing
    has_seek: bool
    has_mincore: bool
    _slots: list[SlotRuns] = field(default_factory=list)

    def take_slots(self) -> SlotRuns:
        """Return where pages are that were walked since the last time, if eager."""
        slots = concat_slots(self._slots)
        self._slots = []
        return slots

    def is_worth(self, pages: int) -> bool:
        """Return whether to walk a range of so many pages."""
        return self.walking.is_worth(self.backing.kind, pages)

    def look(self, first: int, stop: int, ask: Callable[[int, int], list[Runs]]) -> list[Runs]:
        """
        Return ``Evidence`` for every page of a range, by walking or by what is faster.

        What comes next is most likely as what came before: after pages in RAM the others
        are asked, after pages on swap it is walked on.

        :param ask: asks the other interfaces about a range.
        """
        parts: list[Runs] = []
        pages, is_walking = _LEAST_PAGES, True
        while first < stop:
            self.walking.machine.check_stop()
            end = min(first + pages, stop)
            records = self._records(first, end) if is_walking else None
            if records is None:
                found = concat_runs(ask(first, end))
                is_swapped = (found.value & Evidence.EVICTED) != 0
                is_walking = int(found.pages[is_swapped].sum()) * 2 > end - first
            else:
                found = self._evidence(records, first, end)
                is_walking = self.walking.is_eager or _is_quick(records)
            is_uniform = records is not None and is_walking and len(records) < _FEW_RECORDS
            pages = min(pages * 2, _MOST_PAGES) if is_uniform else _LEAST_PAGES
            parts.append(found)
            first = end
        return [self._add_copies(concat_runs(parts))]

    def walk(self, first: int, stop: int) -> Runs | None:
        """Return ``Evidence`` for every page of a range, None if there is no answer."""
        records = self._records(first, stop)
        if records is None:
            return None
        return self._add_copies(self._evidence(records, first, stop))

    def _records(self, first: int, stop: int) -> "CacheRecords | None":
        name = self.backing.path or "an object"
        return self.walking.walk_fd(self.backing.fd, first, stop, name)

    def _evidence(self, records: "CacheRecords", first: int, stop: int) -> Runs:
        kind = self.backing.kind
        evidence = record_evidence(records, kind, first, stop)
        if kind == "shmem":
            if self.walking.is_eager:
                self._keep_slots(records, first, stop)
            return evidence
        return self._add_data(evidence, first, stop) if self.has_seek else evidence

    def _keep_slots(self, records: "CacheRecords", first: int, stop: int) -> None:
        # Ranges that are looked at again come in any order, each after the whole.
        if any(len(part) and first < int(part.stop[-1]) for part in self._slots):
            again = one_run(first, stop - first, 1)
            self._slots = [without_pages(self.take_slots(), again)]
        found = record_slots(records)
        if len(found):
            self._slots.append(found)

    def _add_copies(self, evidence: Runs) -> Runs:
        """Say of swapped pages whether there is a copy in RAM as well."""
        is_known = Evidence.EVICTED | Evidence.RESIDENT | Evidence.ABSENT
        is_swapped = (evidence.value & is_known) == Evidence.EVICTED
        swapped = select_runs(evidence, is_swapped)
        if self.backing.kind != "shmem" or not len(swapped):
            return evidence
        is_many = int(swapped.pages.sum()) >= _PROOF_PAGES or not self.has_mincore
        if is_many and is_swap_cache_empty(self.walking.machine):
            absent = np.where(is_swapped, np.uint8(Evidence.ABSENT), np.uint8(0))
            return Runs(evidence.first, evidence.pages, evidence.value | absent)
        if not self.has_mincore:
            return evidence
        start, end = int(swapped.first[0]), int(swapped.stop[-1])
        found = []
        for begin in range(start, end, _MINCORE_PAGES):
            self.walking.machine.check_stop()
            piece = clip_runs(swapped, begin, min(begin + _MINCORE_PAGES, end))
            found.append(self._resident(piece))
        return replace_runs(evidence, concat_runs(found))

    def _resident(self, swapped: Runs) -> Runs:
        if not len(swapped):
            return swapped
        first, stop = int(swapped.first[0]), int(swapped.stop[-1])
        is_resident = self.backing.mincore(first, stop - first)
        bits = np.where(is_resident, np.uint8(Evidence.RESIDENT), np.uint8(Evidence.ABSENT))
        dense = decode_runs(shift_runs(swapped, -first), stop - first)
        return restrict_runs(encode_runs(dense | bits, first), swapped)

    def _add_data(self, evidence: Runs, first: int, stop: int) -> Runs:
        """Say of what is not in RAM whether the disk holds it."""
        extents = self.backing.data_extents(first, stop)
        value = np.full(len(extents), Evidence.NEITHER | Evidence.DATA, np.uint8)
        data = Runs(extents[:, 0], extents[:, 1] - extents[:, 0], value)
        absent = select_runs(evidence, evidence.value == Evidence.NEITHER)
        hole = np.full(len(absent), Evidence.NEITHER | Evidence.HOLE, np.uint8)
        evidence = replace_runs(evidence, Runs(absent.first, absent.pages, hole))
        return replace_runs(evidence, restrict_runs(data, absent))


def record_evidence(records: "CacheRecords", kind: str, first: int, stop: int) -> Runs:
    """
    Return what records say of every page of ``[first, stop)``, as ``Evidence``.

    :param kind: kind of the object: only shmem has swapped and preallocated pages, and
        is nowhere else.
    """
    if kind != "shmem":
        value = np.full(len(records), Evidence.CACHE, np.uint8)
        # A block device has no holes.
        rest = Evidence.NEITHER | Evidence.DATA if kind == "block" else Evidence.NEITHER
    else:
        # A folio that was never filled is one that nobody wrote since fallocate.
        in_ram = np.where(
            records.is_uptodate,
            np.uint8(Evidence.CACHE | Evidence.DATA),
            np.uint8(Evidence.CACHE | Evidence.HOLE),
        )
        on_swap = np.uint8(Evidence.EVICTED | Evidence.DATA)
        value = np.where(records.is_swap, on_swap, in_ram)
        rest = Evidence.NEITHER | Evidence.HOLE
    runs = merge_runs(Runs(records.index, records.pages, value))
    return merge_runs(fill_runs(runs, first, stop, rest))


def record_slots(records: "CacheRecords") -> SlotRuns:
    """Return the slots of the pages that records call swapped."""
    kept = records.is_swap
    return SlotRuns(
        records.index[kept],
        records.pages[kept],
        records.area[kept],
        records.slot[kept].astype(np.int64),
    )


def _is_quick(records: "CacheRecords") -> bool:
    """Return whether the others would have been slower: folios cost most, one by one."""
    folios = int((records.pages[~records.is_swap] >> records.order[~records.is_swap]).sum())
    swapped = int(records.pages[records.is_swap].sum())
    return folios * 4 <= swapped * 3 or folios < _FEW_RECORDS
