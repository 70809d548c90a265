"""
Which files hold the page cache, how much of it, and where in them.

A file that no process holds is found only in its directory.  What is found nowhere is told as
what it is: pages of files that were not looked at.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.physical.files import FileFigures, FileScan, HeldFiles
from memlens.physical.records import FileCache, FileReport, FileTotal, StripCell
from memlens.record import Table
from memlens.report import Missed, make_sum
from memlens.scan.machine import Machine, Stopped
from memlens.units import count_of

_STRIP_CELLS = 48
_NUMBERS = tuple(name for name in FileFigures._fields if name not in ("path", "kind", "reason"))
_UNKNOWN = -1
_ROWS_AT_ONCE = 1024


def read_files(
    paths: Iterable[str] = (),
    *,
    pid: int | None = None,
    is_machine: bool = False,
    one_file_system: bool = False,
    strips: int = 20,
    sort: Sequence[str] = (),
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FileReport:
    """
    Return what of files is in the page cache; a million files take about 350 MB.

    :param paths: files and directories; these are walked.
    :param pid: also the files that this process maps or has open.
    :param is_machine: also those of all processes, beside the page cache of the machine.
    :param one_file_system: whether to stay on the file system of each directory named.
    :param strips: of how many files to look where in them the pages are.
    :param sort: of which: the first ones by these columns; most pages if there are none.
    :raises ProcessGone: if there is no such process.
    :raises AccessDenied: if it may not be read.

    >>> report = read_files(["/etc/passwd"])
    >>> report.files[0].path
    '/etc/passwd'
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin = machine.origin()
    is_held = is_machine or pid is not None
    scan = FileScan(paths, machine, one_file_system=one_file_system, is_each_once=is_held)
    held = HeldFiles(scan)
    before = _read_meminfo(machine) if is_machine else {}
    columns, strip = _Columns(), Table.of(StripCell)
    is_complete = True
    try:
        for number, row in enumerate(_iter_rows(scan, held, pid, is_machine)):
            columns.add(row)
            machine.step(number, 0)
    except Stopped:
        is_complete = False
    finally:
        scan.close()
    files = columns.table()
    if is_complete:
        strip = _read_strips(scan, files.sorted_by(sort).top(strips))
    total = _total(files, scan, held)
    sums = {}
    if is_machine:
        sums["page_cache"] = _page_cache(before, _read_meminfo(machine), total)
    return FileReport.at(
        origin,
        tables={"files": files, "strips": strip},
        sections={"total": total},
        sums=sums,
        missed=_missed(files, scan, held),
        notes=_notes(files, scan, held),
        is_complete=is_complete,
        cost=machine.cost(),
    )


def _iter_rows(
    scan: FileScan, held: HeldFiles, pid: int | None, is_machine: bool
) -> Iterator[FileFigures]:
    return chain(
        held.iter_process(pid) if pid is not None else (),
        held.iter_all() if is_machine else (),
        scan.rows() if scan.paths else (),
    )


class _Columns:
    """Figures of files, a few bytes for each."""

    def __init__(self) -> None:
        self._rows: list[FileFigures] = []
        self._texts: list[list[str]] = [[], [], []]
        self._numbers = [array("q") for _ in _NUMBERS]

    def add(self, row: FileFigures) -> None:
        """Take a file in."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        columns: list[Any] = list(zip(*self._rows, strict=True))
        for texts, found in zip(self._texts, columns[:3], strict=False):
            texts.extend(found)
        for numbers, found in zip(self._numbers, columns[3:], strict=False):
            numbers.extend([_UNKNOWN if number is None else number for number in found])
        self._rows.clear()

    def table(self) -> Table[FileCache]:
        """Return the files, most pages first; what is not known comes before nothing."""
        self._flush()
        found = dict(zip(_NUMBERS, map(np.asarray, self._numbers), strict=True))
        masked = {n: np.ma.MaskedArray(a, a == _UNKNOWN) for n, a in found.items()}
        # Of inodes every bit pattern is one.
        masked["inode"] = np.ma.MaskedArray(found["inode"], found["device"] == _UNKNOWN)
        paths, kinds, reasons = self._texts
        table = Table.of_columns(FileCache, path=paths, kind=kinds, reason=reasons, **masked)
        self._texts.clear()
        cached = found["cached_pages"].astype(np.float64)
        return table[np.argsort(-np.where(cached == _UNKNOWN, 0.5, cached), kind="stable")]


def _read_strips(scan: FileScan, files: Table[FileCache]) -> Table[StripCell]:
    rows = []
    for file in files:
        if not file.cached_pages or file.device is None or file.inode is None:
            continue
        if scan.machine.is_over():
            break
        cells = scan.cells(file.path, (file.device, file.inode), _STRIP_CELLS)
        for number, (pages, figures) in enumerate(cells):
            rows.append(
                StripCell(
                    file.device, file.inode, number, pages, figures.cached or 0, figures.evicted
                )
            )
    return Table.of(StripCell, rows)


def _total(files: Table[FileCache], scan: FileScan, held: HeldFiles) -> FileTotal:
    sizes = np.ma.filled(files.column("size_bytes"), 0)
    return FileTotal(
        files=len(files),
        unknown_files=int(np.ma.getmaskarray(files.column("cached_pages")).sum()),
        other_names=scan.other_names,
        named_paths=len(scan.paths),
        denied_processes=held.denied,
        size_bytes=int(sizes.sum()),
        pages=int((-(-sizes // scan.page_size_bytes)).sum()),
        cached_pages=_sum(files.column("cached_pages")),
        mapped_pages=_sum(files.column("mapped_pages")),
        dirty_pages=_sum(files.column("dirty_pages")),
        writeback_pages=_sum(files.column("writeback_pages")),
        evicted_pages=_sum(files.column("evicted_pages")),
        recently_evicted_pages=_sum(files.column("recently_evicted_pages")),
    )


def _sum(pages: NDArray[np.int64]) -> int | None:
    """Return a sum over the files of which it is known; None if it is of none of them."""
    if len(pages) and np.ma.getmaskarray(pages).all():
        return None
    return int(np.ma.filled(pages, 0).sum())


def _read_meminfo(machine: Machine) -> dict[str, int]:
    """Return the figures of /proc/meminfo in pages."""
    try:
        sizes = parse_meminfo(read_file(f"{machine.root}/meminfo"))
    except OSError:
        return {}
    return {name: size // machine.page_size_bytes for name, size in sizes.items()}


def _page_cache(
    before: dict[str, int], after: dict[str, int], total: FileTotal
) -> dict[str, int | None]:
    """
    Return the page cache of the machine beside what was found of it.

    ``Cached`` of /proc/meminfo is of files and shared memory; ``Buffers``, of block devices,
    is no part of it.
    """
    cached, earlier = after.get("Cached"), before.get("Cached")
    return make_sum(
        total_pages=cached,
        explained_pages=total.cached_pages,
        drift_pages=None if cached is None or earlier is None else cached - earlier,
        shmem_pages=after.get("Shmem"),
        buffer_pages=after.get("Buffers"),
    )


def _missed(files: Table[FileCache], scan: FileScan, held: HeldFiles) -> Iterator[Missed]:
    named = set(scan.paths)
    for file in files[files.column("kind") == ""]:
        if file.path in named:
            yield Missed(file.path, file.reason)
    for path, reason in scan.walk.skipped:
        yield Missed(path, reason)
    if held.denied:
        processes = count_of(held.denied, "process", "processes")
        yield Missed(processes, "this user may not see the files that they hold")


def _notes(files: Table[FileCache], scan: FileScan, held: HeldFiles) -> list[str]:
    notes = scan.notes()
    if held.refused:
        notes.append(f"{held.refused} files that processes hold could not be opened")
    if _sum(files.column("evicted_pages")[files.column("kind") == "shmem"]):
        notes.append("evicted pages of shared memory are on swap")
    return notes
