"""Which pages of an object the page tables of its holders map."""

import os
from dataclasses import dataclass, field

import numpy as np

from memlens.account.charges import Charges
from memlens.account.facts import ObjectUse, ProcessFacts
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.pages.bits import PM_FILE, PM_PRESENT
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    concat_runs,
    encode_runs,
    select_runs,
    window_runs,
)

_MAPPED = 1
# Ranges that are closer are looked at in one.
_JOIN_PAGES = 512
_OPEN_AT_MOST = 64


def find_present(
    pagemap: Pagemap, mapping: Mapping, first: int, stop: int, use_scan: bool
) -> tuple[Runs, bool]:
    """
    Return the pages of an object that a mapping of it maps, and if any is huge.

    :param first: first page of the object that is asked about; the mapping covers it.
    :param stop: page after the last.
    :raises MemlensError: as the reads give it.
    """
    size = pagemap.page_size_bytes
    shift = (mapping.start - mapping.offset_bytes) // size
    if use_scan:
        # In a private mapping only pages of the file are the object's.
        needed = PAGE_IS_PRESENT | (0 if mapping.is_shared else PAGE_IS_FILE)
        wanted = needed | PAGE_IS_HUGE
        runs = concat_runs(_scan(pagemap, first + shift, stop + shift, wanted))
        runs = select_runs(runs, (runs.value & needed) == needed)
        is_huge = bool((runs.value & PAGE_IS_HUGE).any())
    else:
        bits = PM_PRESENT | PM_FILE
        parts = [
            encode_runs(((words & bits) == bits).astype(np.uint8), page)
            for page, words in pagemap.iter_words(first + shift, stop - first)
        ]
        runs = concat_runs([select_runs(part, part.value != 0) for part in parts])
        is_huge = False
    ones = np.full(len(runs), _MAPPED, np.uint8)
    return Runs(runs.first - shift, runs.pages, ones), is_huge


def _scan(pagemap: Pagemap, first: int, stop: int, wanted: int) -> list[Runs]:
    size = np.uint64(pagemap.page_size_bytes)
    parts = []
    for regions in pagemap.scan(first, stop - first, PAGE_IS_PRESENT, wanted):
        begin = (regions[:, 0] // size).astype(np.int64)
        end = (regions[:, 1] // size).astype(np.int64)
        parts.append(Runs(begin, end - begin, regions[:, 2].astype(np.uint8)))
    return parts


@dataclass(slots=True)
class PageTables:
    """
    The page tables of the holders of objects, asked about no more pages than needed.

    :param proc: root of the /proc to read.
    :param meter: counts what is read.
    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param charges: learns which cgroups objects are charged to, None if not wanted.
    """

    proc: str
    meter: Meter
    use_scan: bool
    charges: Charges | None
    _open: dict[int, tuple[ProcessDir, Pagemap] | None] = field(default_factory=dict)

    def present(self, facts: ProcessFacts, use: ObjectUse, asked: Runs) -> tuple[Runs, bool]:
        """
        Return which pages of an object a process maps, and if any is huge.

        :param asked: the pages of the object to ask about.
        """
        mapping, size = use.mapping, features.page_size_bytes()
        if mapping is None:
            return EMPTY, False
        inside = clip_runs(asked, *use.pages(size))
        if not len(inside):
            return EMPTY, False
        opened = self._process(facts)
        if opened is None or not self._is_there(facts, use):
            return EMPTY, False
        pagemap = opened[1]
        parts, is_huge = [], False
        try:
            for begin, end in window_runs(inside, _JOIN_PAGES):
                runs, has_huge = find_present(pagemap, mapping, begin, end, self.use_scan)
                parts.append(runs)
                is_huge |= has_huge
            found = concat_runs(parts)
            if self.charges is not None:
                self.charges.learn(use.key, pagemap, mapping, found)
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

    def _process(self, facts: ProcessFacts) -> tuple[ProcessDir, Pagemap] | None:
        if facts.pid not in self._open:
            if len(self._open) >= _OPEN_AT_MOST:
                self.close()
            self._open[facts.pid] = self._open_process(facts)
        return self._open[facts.pid]

    def _open_process(self, facts: ProcessFacts) -> tuple[ProcessDir, Pagemap] | None:
        try:
            process = ProcessDir(facts.pid, self.proc, self.meter)
        except MemlensError:
            return None
        try:
            if process.stat.start_ticks == facts.start_ticks:
                fd = process.open("pagemap")
                size = features.page_size_bytes()
                return process, Pagemap(fd, size, self.meter, process.path)
        except MemlensError:
            pass
        process.close()
        return None

    def _is_there(self, facts: ProcessFacts, use: ObjectUse) -> bool:
        """Return whether the mapping is still of this object, as far as may be seen."""
        if use.mapping is None:
            return False
        try:
            status = os.stat(f"{self.proc}/{facts.pid}/map_files/{use.mapping.name}")
        except OSError:
            # Cut in two, joined with another, or not to be seen: the addresses still hold.
            return True
        return (status.st_dev, status.st_ino) == use.key[:2]
