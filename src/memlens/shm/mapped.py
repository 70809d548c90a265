"""Which pages of an object the page tables of its holders map."""

import os
from dataclasses import dataclass, field

from memlens.errors import MemlensError
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.runs import EMPTY, Runs, clip_runs, concat_runs, window_runs
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable

# Ranges that are closer are looked at in one.
_JOIN_PAGES = 512
_OPEN_AT_MOST = 64


@dataclass(slots=True)
class Charges:
    """
    The cgroups of objects, each asked of one page that is mapped.

    :param file: an open kpagecgroup.
    :param inodes: of the cgroup's directory, by object.

    Pages of one object may be charged to several cgroups: each to that of the process which
    wrote it first.
    """

    file: KpageFile
    inodes: dict[ObjectKey, int] = field(default_factory=dict)

    def learn(self, key: ObjectKey, table: PageTable, mapping: Mapping, present: Runs) -> None:
        """
        Ask about the first page that is mapped, unless the object is known.

        :param present: pages of the object that the mapping maps.
        """
        if key in self.inodes or not len(present):
            return
        shift = (mapping.start - mapping.offset_bytes) // table.size
        page = shift + int(present.first[0])
        try:
            before = table.word(page)
            if before is None or not before & _PRESENT:
                return
            charged = self.file.read_range(before & _PFN, 1)
            # The frame may have changed hands meanwhile.
            after = table.word(page)
        except MemlensError:
            return
        if len(charged) and after == before:
            self.inodes[key] = int(charged[0])


@dataclass(slots=True)
class PageTables:
    """
    The page tables of the holders of objects, asked about no more pages than needed.

    :param machine: whose processes they are.
    :param charges: learns which cgroups objects are charged to, None if not wanted.
    """

    machine: Machine
    charges: Charges | None
    _open: dict[int, tuple[ProcessDir, PageTable] | None] = field(default_factory=dict)

    def present(self, facts: ProcessFacts, use: ObjectUse, asked: Runs) -> tuple[Runs, bool]:
        """
        Return which pages of an object a process maps, and if any is huge.

        :param asked: the pages of the object to ask about.
        """
        mapping, size = use.mapping, self.machine.page_size_bytes
        if mapping is None:
            return EMPTY, False
        inside = clip_runs(asked, *use.pages(size))
        if not len(inside):
            return EMPTY, False
        opened = self._process(facts)
        if opened is None or not self._is_there(facts, use):
            return EMPTY, False
        table = opened[1]
        parts, is_huge = [], False
        try:
            for begin, end in window_runs(inside, _JOIN_PAGES):
                runs, has_huge = table.mapped_of(mapping, begin, end)
                parts.append(runs)
                is_huge |= has_huge
            found = concat_runs(parts)
            if self.charges is not None:
                self.charges.learn(use.key, table, mapping, found)
        except MemlensError:
            # It ended.
            return EMPTY, False
        return found, is_huge

    def close(self) -> None:
        """Close what is open."""
        for opened in self._open.values():
            if opened is not None:
                opened[1].close()
                opened[0].close()
        self._open.clear()

    def _process(self, facts: ProcessFacts) -> tuple[ProcessDir, PageTable] | None:
        if facts.pid not in self._open:
            if len(self._open) >= _OPEN_AT_MOST:
                self.close()
            self._open[facts.pid] = self._open_process(facts)
        return self._open[facts.pid]

    def _open_process(self, facts: ProcessFacts) -> tuple[ProcessDir, PageTable] | None:
        try:
            process = ProcessDir(facts.pid, self.machine)
        except MemlensError:
            return None
        try:
            if process.stat.start_ticks == facts.start_ticks:
                return process, PageTable.open(process, self.machine)
        except MemlensError:
            pass
        process.close()
        return None

    def _is_there(self, facts: ProcessFacts, use: ObjectUse) -> bool:
        """Return whether the mapping is still of this object, as far as may be seen."""
        if use.mapping is None:
            return False
        try:
            status = os.stat(f"{self.machine.root}/{facts.pid}/map_files/{use.mapping.name}")
        except OSError:
            # Cut in two, joined with another, or not to be seen: the addresses still hold.
            return True
        return (status.st_dev, status.st_ino) == use.key[:2]


_PRESENT, _PFN = int(PM_PRESENT), int(PM_PFN)
