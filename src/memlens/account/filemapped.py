"""How many pages of a file processes map, each page once."""

from collections.abc import Iterable

import numpy as np

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel import features
from memlens.kernel.filemaps import FileMapping
from memlens.kernel.pagemap import PAGE_IS_FILE, PAGE_IS_PRESENT, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.pages.bits import PM_FILE, PM_PRESENT
from memlens.pages.runs import (
    Runs,
    clip_runs,
    concat_runs,
    encode_runs,
    select_runs,
    union_runs,
)

# Page tables that stay open, for many files are mapped by the same processes.
_OPEN_AT_MOST = 128
_NEEDED = PAGE_IS_PRESENT | PAGE_IS_FILE
_BITS = PM_PRESENT | PM_FILE


class MappedPages:
    """
    Counts mapped pages of one file after the other.

    :param proc: root of the /proc to read.

    ``denied`` counts the processes whose page table may not be read.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc
        self._size = features.page_size_bytes()
        disabled = features.read_disabled()
        self._use_scan = "pagemap_scan" not in disabled and features.has_pagemap_scan()
        self._open: dict[int, Pagemap | None] = {}
        self._denied: set[int] = set()

    @property
    def denied(self) -> int:
        """Return how many processes could not be read."""
        return len(self._denied)

    def close(self) -> None:
        """Close the page tables."""
        for pagemap in self._open.values():
            if pagemap is not None:
                pagemap.close()
        self._open.clear()

    def count(self, mappings: Iterable[FileMapping], pages: int) -> int:
        """
        Return how many pages of a file any of its mappings has in a page table.

        :param mappings: of this file alone.
        :param pages: up to the end of the file.
        """
        return int(self.runs(mappings, pages).pages.sum())

    def runs(self, mappings: Iterable[FileMapping], pages: int) -> Runs:
        """Return which pages these are, as runs of value 1."""
        parts = []
        for mapping in mappings:
            pagemap = self._pagemap(mapping.pid)
            if pagemap is None:
                continue
            try:
                parts.append(self._read(pagemap, mapping))
            except MemlensError:
                # Ended meanwhile: it maps nothing any more.
                continue
        return clip_runs(union_runs(parts), 0, pages)

    def _read(self, pagemap: Pagemap, mapping: FileMapping) -> Runs:
        size = self._size
        first, length = mapping.start // size, (mapping.stop - mapping.start) // size
        if self._use_scan:
            parts = []
            for regions in pagemap.scan(first, length, PAGE_IS_PRESENT, _NEEDED):
                rows = regions[(regions[:, 2] & np.uint64(_NEEDED)) == np.uint64(_NEEDED)]
                begin = (rows[:, 0] // np.uint64(size)).astype(np.int64)
                end = (rows[:, 1] // np.uint64(size)).astype(np.int64)
                parts.append(Runs(begin, end - begin, np.ones(len(rows), np.uint8)))
        else:
            parts = [
                encode_runs(((words & _BITS) == _BITS).astype(np.uint8), page)
                for page, words in pagemap.iter_words(first, length)
            ]
            parts = [select_runs(part, part.value != 0) for part in parts]
        runs = concat_runs(parts)
        return Runs(runs.first - first + mapping.offset // size, runs.pages, runs.value)

    def _pagemap(self, pid: int) -> Pagemap | None:
        if pid not in self._open:
            if len(self._open) >= _OPEN_AT_MOST:
                self.close()
            self._open[pid] = self._open_pagemap(pid)
        return self._open[pid]

    def _open_pagemap(self, pid: int) -> Pagemap | None:
        try:
            with ProcessDir(pid, self.proc) as process:
                path = f"{process.path}/pagemap"
                return Pagemap(process.open("pagemap"), self._size, Meter(), path)
        except AccessDenied:
            self._denied.add(pid)
        except MemlensError:
            pass
        return None
