"""Special pages of a process, large, merged or zero: read by several threads, in order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.pages.arrays import distinct
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.flags import KPF_KSM, KPF_THP, KPF_ZERO_PAGE
from memlens.physical.runflags import RunReader
from memlens.scan.jobs import JOB_PAGES, TRIES, count_threads, cut_windows, run_threads
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable, Window

_SPECIAL = KPF_THP | KPF_KSM | KPF_ZERO_PAGE


class SpecialPages(NamedTuple):
    """
    Pages of a range that are part of a transparent huge page, merged, or zero.

    :param stop: page after the range.
    :param vfn: address divided by the page size, ``(n,)`` int64, in order.
    :param pfn: page frame, ``(n,)`` int64.
    :param flags: words of kpageflags, ``(n,)`` uint64.
    :param moved_pages: pages that changed at every look, and are left out.
    """

    stop: int
    vfn: NDArray[np.int64]
    pfn: NDArray[np.int64]
    flags: NDArray[np.uint64]
    moved_pages: int


class SpecialReader:
    """
    Reads ranges of one process; each thread has files of its own.

    :param has_flags: False where kpageflags is hidden: there is ``table`` then, and no more.

    ``table`` is a page table that no thread reads between two results.
    """

    def __init__(
        self, directory: ProcessDir, machine: Machine, *, has_flags: bool = True
    ) -> None:
        self._files = ExitStack()
        self._readers: list[tuple[PageTable, RunReader]] = []
        try:
            self.table = self._open(directory, machine)
            for number in range(count_threads() if has_flags else 0):
                table = self._open(directory, machine) if number else self.table
                flags = self._files.enter_context(KpageFile("kpageflags", machine))
                self._readers.append((table, RunReader(flags)))
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _open(self, directory: ProcessDir, machine: Machine) -> PageTable:
        return self._files.enter_context(PageTable.open(directory, machine))

    def iter_special(self, window: Window) -> Iterator[SpecialPages]:
        """
        Yield the special pages of a range, piece by piece.

        :raises EOFError: if the process is gone.
        """
        first, stop = window
        pieces = [(page, min(page + JOB_PAGES, stop)) for page in range(first, stop, JOB_PAGES)]
        step = len(self._readers)
        for number in range(0, len(pieces), step):
            yield from self._read_batch(pieces[number : number + step])

    def find_special(
        self, first: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """
        Return which of some ranges have special pages, or pages that changed meanwhile.

        :param first: first page of each range, in order, ``(n,)`` int64.
        :param stop: page after the last.
        :raises EOFError: if the process is gone.
        """
        table, reader = self._readers[0]
        found = [np.empty(0, np.int64)]
        for windows in cut_windows(zip(first.tolist(), stop.tolist(), strict=True)):
            words = table.read(windows)
            flags = reader.read(words)
            is_found = table.read(windows) != words
            if np.bitwise_or.reduce(flags.words) & _SPECIAL:
                is_found |= (flags.by_page(len(words)) & _SPECIAL) != 0
            if is_found.any():
                vfn = np.concatenate([np.arange(*window) for window in windows])[is_found]
                place = np.searchsorted(first, vfn, side="right") - 1
                found.append(place[(place >= 0) & (vfn < stop[place])])
        return distinct(np.concatenate(found))

    def _read_batch(self, pieces: Sequence[Window]) -> list[SpecialPages]:
        found: list[SpecialPages | None] = [None] * len(pieces)

        def call(number: int) -> Callable[[], None]:
            def read() -> None:
                found[number] = _read_special(*self._readers[number], pieces[number])

            return read

        run_threads([call(number) for number in range(len(pieces))])
        return [one for one in found if one is not None]


def _read_special(table: PageTable, reader: RunReader, window: Window) -> SpecialPages:
    """Return the special pages of a range, after a look back at the page table."""
    moved = 0
    words = table.read([window])
    for _ in range(TRIES):
        found = reader.read(words)
        if table.are_same([window], words):
            break
        again = table.read([window])
        is_moved = again != words
        words, before = again, words
    else:
        moved = int(np.count_nonzero(is_moved))
        words = np.where(is_moved, np.uint64(0), before)
    if not np.bitwise_or.reduce(found.words) & _SPECIAL:
        empty = np.empty(0, np.int64)
        return SpecialPages(window[1], empty, empty, np.empty(0, np.uint64), moved)
    flags = found.by_page(len(words))
    places = np.flatnonzero(((flags & _SPECIAL) != 0) & (words >= PM_PRESENT))
    pfns = (words[places] & PM_PFN).view(np.int64)
    return SpecialPages(window[1], places + window[0], pfns, flags[places], moved)
