"""Looking at one shared-memory object after the other: its pages, holders and marks."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.cgroups import cgroup_paths_by_inode, find_hierarchy
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping
from memlens.kernel.syscalls import statx_cached
from memlens.objects.backing import Backing
from memlens.objects.opener import device_text
from memlens.pages.arrays import distinct
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.classes import REASONS, Evidence, PageClass, Verdict
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    concat_runs,
    cut_points,
    merge_runs,
    one_run,
    replace_runs,
    restrict_runs,
    select_runs,
    union_runs,
    window_runs,
)
from memlens.report import Missed
from memlens.residency.answers import ObjectReader
from memlens.residency.walk import Walking
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts
from memlens.scan.machine import Machine
from memlens.scan.mappings import PageTables
from memlens.scan.pagetable import PageTable
from memlens.scan.sweep import Sweep
from memlens.shm.facts import HolderFacts, ObjectFacts
from memlens.shm.sources import GONE, NOT_SHMEM, Finder, FoundObject

_LABELS_NAMED = 3
_PART_PAGES = 1 << 18


@dataclass(slots=True)
class Inspector:
    """
    Looks at objects, one after the other.

    :param sweep: a sweep that has run.
    :param finder: opens what it found.
    :param walking: whether objects are asked by the page-cache walk as well.
    :param only_swapped: whether objects without swapped pages may be left out.
    :param tells_present: whether it matters what of the pages in RAM is mapped.
    :param gone: objects that had vanished.
    """

    sweep: Sweep
    finder: Finder
    walking: Walking
    only_swapped: bool
    tells_present: bool
    gone: int = 0
    _refused: dict[str, list[str]] = field(default_factory=dict)
    _tables: "ObjectTables" = field(init=False)
    _cgroups: dict[int, str] | None = None

    def __post_init__(self) -> None:
        machine, file = self.sweep.machine, None
        if self.tells_present and features.is_pfn_visible():
            with suppress(MemlensError):
                file = KpageFile("kpagecgroup", machine)
        self._tables = ObjectTables(machine, file)

    def close(self) -> None:
        """Close what was opened to look at objects."""
        self._tables.close()
        if self._tables.file is not None:
            self._tables.file.close()

    def read(self, item: FoundObject) -> ObjectFacts | None:
        """
        Return an object; what cannot be opened is all ``unknown``.

        :return: None if it is none, or may be left out.
        :raises Stopped: if the scan is to end.
        """
        if item.file is not None and not item.uses and not item.file.blocks:
            # It owns no memory, so that there is nothing to ask it.
            pages = self._pages_of(item)
            runs = one_run(0, pages, PageClass.NONE) if pages else EMPTY
            return None if self.only_swapped else self._object(item, runs, (), None)
        backing = self.finder.open(item)
        if isinstance(backing, str):
            self.gone += backing == GONE
            is_none = backing in (GONE, NOT_SHMEM)
            return None if is_none else self._refuse(item, backing)
        try:
            return self._ask(item, backing)
        except OSError as error:
            return self._refuse(item, os.strerror(error.errno or 0))
        finally:
            backing.close()

    def _pages_of(self, item: FoundObject) -> int:
        """Return the pages of an object, the last one perhaps in part."""
        return -(-item.size_bytes // self.sweep.machine.page_size_bytes)

    def list_missed(self) -> Iterator[Missed]:
        """Yield the objects that could not be looked at, by the reason."""
        for reason, labels in self._refused.items():
            named = ", ".join(labels[:_LABELS_NAMED])
            more = ", ..." if len(labels) > _LABELS_NAMED else ""
            count = f"{len(labels)} objects ({named}{more})" if len(labels) > 1 else named
            yield Missed(count, reason)

    def _refuse(self, item: FoundObject, reason: str) -> ObjectFacts | None:
        self._refused.setdefault(reason, []).append(item.label)
        if self.only_swapped:
            return None
        pages = self._pages_of(item)
        runs = one_run(0, pages, PageClass.UNKNOWN) if pages else EMPTY
        return self._object(item, runs, (reason,), None)

    def _ask(self, item: FoundObject, backing: Backing) -> ObjectFacts | None:
        sweep = self.sweep
        reader = ObjectReader(backing, sweep.machine, self.walking)
        pages = backing.size_pages()
        if self.only_swapped and reader.is_without_swap():
            return None
        runs = _one_class(reader, pages) or (reader.verdicts(0, pages) if pages else EMPTY)
        if self.tells_present:
            runs = self._mark_present(runs, item)
        runs, reasons = _split_reasons(runs)
        if reasons:
            self._refused.setdefault("; ".join(reasons), []).append(item.label)
        found = self._object(item, runs, reasons, backing)
        beyond = find_beyond_end(reader, pages, found.resident_pages + found.swap_pages)
        if any(beyond):
            found = replace(
                found,
                beyond_end_resident_pages=beyond.resident_pages,
                beyond_end_swap_pages=beyond.swap_pages,
            )
        if reader.walk is None or not self.walking.is_eager:
            return found
        return replace(found, slots=reader.walk.take_slots())

    def _mark_present(self, runs: Runs, item: FoundObject) -> Runs:
        """
        Call ``present`` what is in RAM and mapped by anybody.

        Part by part: every second page of a large object makes millions of runs.
        """
        cached = select_runs(runs, runs.value == PageClass.CACHED)
        end = int(runs.stop[-1]) if len(runs) else 0
        edges = [0, *cut_points(cached, _PART_PAGES), end]
        return concat_runs(
            [self._mark_part(clip_runs(runs, *part), item) for part in pairwise(edges)]
        )

    def _mark_part(self, runs: Runs, item: FoundObject) -> Runs:
        """
        Mark a part of an object.

        Holders are asked one after the other, and only about what none before them maps.
        """
        left = select_runs(runs, runs.value == PageClass.CACHED)
        for _, uses in groupby(item.uses, lambda pair: pair[0].pid):
            if not len(left):
                break
            mapped = self._mapped_by(list(uses), item, left)
            both = restrict_runs(left, mapped)
            value = np.full(len(both), PageClass.PRESENT, np.uint8)
            found = Runs(both.first, both.pages, value)
            runs = replace_runs(runs, found)
            left = replace_runs(left, found)
            left = select_runs(left, left.value == PageClass.CACHED)
        return runs

    def _mapped_by(
        self, uses: list[tuple[ProcessFacts, ObjectUse]], item: FoundObject, asked: Runs
    ) -> Runs:
        """Return which of the pages asked about one process maps."""
        parts = []
        for facts, use in uses:
            if use.mapping is not None:
                self.sweep.machine.check_stop()
                mapped, is_huge = self._tables.present(facts, use, asked)
                item.is_huge |= is_huge
                parts.append(mapped)
        return union_runs(parts)

    def _object(
        self, item: FoundObject, runs: Runs, reasons: tuple[str, ...], backing: Backing | None
    ) -> ObjectFacts:
        return ObjectFacts(
            kind=item.kind,
            name=item.name,
            device=device_text(item.key[0]),
            inode=item.key[1],
            size_bytes=item.size_bytes,
            uid=item.uid,
            runs=runs,
            holders=_holders(item.uses, self._pages_of(item), self.sweep.machine),
            marks=self.finder.marks(item, backing),
            reasons=reasons,
            age_s=_age_s(item, backing),
            cgroup=self._cgroup(item),
            may_have_more_holders=self.finder.may_miss_holders(item),
        )

    def _cgroup(self, item: FoundObject) -> str | None:
        inode = self._tables.cgroups.get(item.key)
        if inode is None:
            return None
        if self._cgroups is None:
            self._cgroups = cgroup_paths_by_inode(find_hierarchy(self.sweep.machine))
        return self._cgroups.get(inode)


def _one_class(reader: ObjectReader, pages: int) -> Runs | None:
    """
    Return the runs of an object that is all cached or all holes; None for any other.

    Most objects are, and three calls tell.
    """
    if not (pages and reader.has_cachestat and reader.is_honest):
        return None
    if not reader.machine.may("seek_data"):
        return None
    cached, evicted = reader.backing.cachestat(0, pages)
    if evicted or cached not in (0, pages):
        return None
    extents = reader.backing.data_extents(0, pages).tolist()
    if extents != ([[0, pages]] if cached else []):
        return None
    return one_run(0, pages, PageClass.CACHED if cached else PageClass.NONE)


def _age_s(item: FoundObject, backing: Backing | None) -> float | None:
    born_s = _born_s(item, backing)
    return None if born_s is None else max(time.time() - born_s, 0.0)


def _born_s(item: FoundObject, backing: Backing | None) -> float | None:
    """Return when it was made; before v6.0 tmpfs kept only when it was changed."""
    if backing is not None:
        try:
            born_s = statx_cached(f"/proc/self/fd/{backing.fd}", 0).born_s
        except OSError:
            born_s = 0.0
        if born_s:
            return born_s
    if item.segment is not None:
        return float(item.segment.changed_s)
    if item.status is not None:
        return item.status.st_ctime
    return item.file.changed_s if item.file is not None else None


def _split_reasons(runs: Runs) -> tuple[Runs, tuple[str, ...]]:
    is_open = runs.value >= Verdict.FIRST_REASON
    reasons = tuple(
        REASONS[value - Verdict.FIRST_REASON] for value in distinct(runs.value[is_open])
    )
    value = np.minimum(runs.value, np.uint8(PageClass.UNKNOWN))
    return merge_runs(Runs(runs.first, runs.pages, value)), reasons


def _holders(
    uses: Iterable[tuple[ProcessFacts, ObjectUse]], pages: int, machine: Machine
) -> tuple[HolderFacts, ...]:
    by_process: dict[int, list[tuple[ProcessFacts, ObjectUse]]] = {}
    for facts, use in uses:
        by_process.setdefault(facts.pid, []).append((facts, use))
    return tuple(_holder(by_process[pid], pages, machine) for pid in sorted(by_process))


def _holder(
    uses: list[tuple[ProcessFacts, ObjectUse]], pages: int, machine: Machine
) -> HolderFacts:
    ranges = []
    for _, use in uses:
        if use.mapping is not None:
            ranges.append(use.pages(machine.page_size_bytes))
    covered = union_runs(
        [Runs(np.array([a]), np.array([b - a]), np.ones(1, np.uint8)) for a, b in ranges]
    )
    present = None if ranges else 0
    if any(use.present is not None for _, use in uses):
        parts = [use.present for _, use in uses if use.present is not None]
        mapped = parts[0] if len(parts) == 1 else union_runs(parts)
        present = int(mapped.pages.sum())
    facts = uses[0][0]
    return HolderFacts(
        pid=facts.pid,
        name=facts.name,
        mapped_pages=int(clip_runs(covered, 0, pages).pages.sum()) if pages else 0,
        present_pages=present,
        is_open=any(use.mapping is None for _, use in uses),
        ranges=tuple(sorted(set(ranges))),
    )


# No file is longer: offsets are signed and of 64 bits.
_ALL_BYTES = 1 << 63


class BeyondEnd(NamedTuple):
    """What an object has beyond its end, in pages."""

    resident_pages: int = 0
    swap_pages: int = 0


def find_beyond_end(reader: ObjectReader, pages: int, found: int) -> BeyondEnd:
    """
    Return what an object of a tmpfs owns beyond its end.

    :param pages: of the object, up to its end.
    :param found: how many of these it owns, in RAM or on swap.
    :raises OSError: if the object cannot be asked at all.
    """
    backing = reader.backing
    if backing.allocated_pages() <= found:
        return BeyondEnd()
    answer = _walked(reader, pages) if _has_to_walk(reader) else None
    if answer is None and reader.has_cachestat and reader.is_honest:
        answer = BeyondEnd(*backing.cachestat(pages, 0))
    # What was written at its end meanwhile is not beyond it.
    return answer if answer is not None and backing.size_pages() == pages else BeyondEnd()


def _has_to_walk(reader: ObjectReader) -> bool:
    """Return whether slots are wanted, or nothing else tells."""
    if reader.walk is None:
        return False
    return reader.walk.walking.is_eager or not reader.has_cachestat


def _walked(reader: ObjectReader, pages: int) -> BeyondEnd | None:
    if reader.walk is None:
        return None
    walked = reader.walk.walk(pages, _ALL_BYTES // reader.machine.page_size_bytes)
    if walked is None:
        return None
    return BeyondEnd(_count(walked, Evidence.CACHE), _count(walked, Evidence.EVICTED))


def _count(runs: Runs, bit: Evidence) -> int:
    return int(runs.pages[(runs.value & bit) != 0].sum())


# Which pages of an object the page tables of its holders map.


# Ranges that are closer are looked at in one.
_JOIN_PAGES = 512
_PRESENT, _PFN = int(PM_PRESENT), int(PM_PFN)


@dataclass(slots=True)
class ObjectTables(PageTables):
    """
    The page tables of the holders of objects, asked about no more pages than needed.

    :param file: kpagecgroup, None if it is not wanted or cannot be read.
    :param cgroups: the inode of the cgroup's directory, by object.

    Pages of one object may be charged to several cgroups, each to that of the process which
    wrote it first: one page that is mapped is asked.
    """

    file: KpageFile | None
    cgroups: dict[ObjectKey, int] = field(default_factory=dict)

    def present(self, facts: ProcessFacts, use: ObjectUse, asked: Runs) -> tuple[Runs, bool]:
        """
        Return which pages of an object a process maps, and if any is huge.

        :param asked: the pages of the object to ask about.
        """
        mapping, size = use.mapping, self.machine.page_size_bytes
        inside = EMPTY if mapping is None else clip_runs(asked, *use.pages(size))
        table = self.of(facts.pid, facts.start_ticks) if len(inside) else None
        if mapping is None or table is None or not self._is_there(facts.pid, use, mapping):
            return EMPTY, False
        parts, is_huge = [], False
        try:
            for begin, end in window_runs(inside, _JOIN_PAGES):
                runs, has_huge = table.mapped_of(mapping, begin, end)
                parts.append(runs)
                is_huge |= has_huge
            found = concat_runs(parts)
            if self.file is not None and use.key not in self.cgroups and len(found):
                page = (mapping.start - mapping.offset_bytes) // size + int(found.first[0])
                self._learn_cgroup(use.key, table, page, self.file)
        except MemlensError:
            # It ended.
            return EMPTY, False
        return found, is_huge

    def _learn_cgroup(
        self, key: ObjectKey, table: PageTable, page: int, file: KpageFile
    ) -> None:
        try:
            before = table.word(page)
            if before is None or not before & _PRESENT:
                return
            charged = file.read_range(before & _PFN, 1)
            # The frame may have changed hands meanwhile.
            after = table.word(page)
        except MemlensError:
            return
        if len(charged) and after == before:
            self.cgroups[key] = int(charged[0])

    def _is_there(self, pid: int, use: ObjectUse, mapping: Mapping) -> bool:
        """Return whether the mapping is still of this object, as far as may be seen."""
        try:
            status = os.stat(f"{self.machine.root}/{pid}/map_files/{mapping.name}")
        except OSError:
            # Cut in two, joined with another, or not to be seen: the addresses still hold.
            return True
        return (status.st_dev, status.st_ino) == use.key[:2]
