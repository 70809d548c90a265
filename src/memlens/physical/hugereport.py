"""
Huge pages of processes, and how they are mapped: the answer of ``memlens huge``.

What the kernel's thpmaps counts is counted by its rules.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.cgroups import find_cgroup, read_cgroup_pids
from memlens.kernel.zoneinfo import read_pmd_order
from memlens.pages.folios import HugeFigures
from memlens.physical.huge import HugeReader, ReadProcess
from memlens.physical.records import (
    HugeCounter,
    HugeMapping,
    HugeProcess,
    HugeReport,
    HugeTotal,
)
from memlens.record import Table
from memlens.report import Missed
from memlens.scan.machine import Machine
from memlens.units import format_size, signed

_NO_SCAN = (
    "zero pages of mappings without other memory are not counted: that needs PAGEMAP_SCAN"
)
_HIDDEN = (
    "what PTEs map of huge pages, contiguous blocks and pages merged by KSM are not known; "
    "what smaps and PAGEMAP_SCAN say is shown"
)


def map_huge(
    pids: Sequence[int] = (),
    *,
    cgroup: str | None = None,
    block_orders: Sequence[int] = (),
    is_strict: bool = True,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> HugeReport:
    """
    Tell how huge pages are mapped in processes.

    :param cgroup: the processes of this one and those below it, too: its directory, or its
        path as /proc/PID/cgroup gives it.
    :param block_orders: also count aligned contiguous blocks of these sizes, as powers of
        two of pages, at most the PMD's.
    :param is_strict: whether a process of ``pids`` that cannot be read is an error; else it is
        missed.
    :raises MemlensError: as the reads give it, or if there is no such cgroup.
    :raises ValueError: for an order that cannot be.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    pmd_order = read_pmd_order(machine)
    for order in block_orders:
        if not 1 <= order <= pmd_order:
            raise ValueError(f"a block has 2 to {1 << pmd_order} pages")
    members = [] if cgroup is None else list_cgroup_pids(cgroup, machine)
    must_read = set(pids) if is_strict else set()
    chosen = list(dict.fromkeys((*pids, *members)))
    processes: list[ReadProcess] = []
    missed: list[Missed] = []
    left: list[int] = []
    origin = machine.origin()
    with HugeReader(machine, tuple(block_orders), pmd_order) as reader:
        for number, pid in enumerate(chosen):
            machine.tell(number, len(chosen))
            if machine.is_over():
                left = chosen[number:]
                break
            try:
                processes.append(reader.read(pid))
                if reader.is_stopped:
                    left = chosen[number:]
                    break
            except MemlensError as error:
                if pid in must_read:
                    raise
                # A kernel thread has no memory of its own: nothing is missed.
                if not isinstance(error, Unsupported):
                    missed.append(Missed(f"PID {pid}", str(error)))
        missed += [Missed(f"PID {pid}", "stopped early") for pid in left]
        found = _Tables(reader, processes)
        return HugeReport.at(
            origin,
            tables=found.tables(),
            sections={"total": found.total_row},
            missed=missed,
            notes=found.notes(),
            is_complete=not left,
            cost=machine.cost(),
        )


def list_cgroup_pids(path: str, machine: Machine) -> list[int]:
    """
    Return the processes of a cgroup and of those below it.

    :param path: its directory, or its path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is none.
    """
    return read_cgroup_pids(find_cgroup(path, machine))


class _Tables:
    """What was read of processes, as records have it."""

    def __init__(self, reader: HugeReader, processes: Sequence[ReadProcess]) -> None:
        self.reader = reader
        self.processes = processes
        self.is_hidden = reader.flags is None
        self.total = reader.new_figures()
        for process in processes:
            self.total.add(process.figures)
        self.ksm_frames = reader.count_ksm_frames()

    @property
    def total_row(self) -> HugeTotal:
        saved = self.total.ksm_pages - self.ksm_frames
        return HugeTotal(
            processes=len(self.processes),
            ksm_frames=None if self.is_hidden else self.ksm_frames,
            ksm_saved_pages=None if self.is_hidden else saved,
            **self._pages(self.total),
        )

    def tables(self) -> dict[str, Table[Any]]:
        """Return them by name."""
        mappings, counters = [], self._counters(self.total, None, None, has_empty=True)
        for process in self.processes:
            counters += self._counters(process.figures, process.pid, None)
            for where, found in process.mappings:
                start = signed(where.start)
                mappings.append(
                    HugeMapping(
                        pid=process.pid,
                        start=start,
                        stop=signed(where.stop),
                        permissions=where.permissions,
                        path=where.path,
                        **self._pages(found),
                    )
                )
                counters += self._counters(found, process.pid, start)
        rows = [
            HugeProcess(
                pid=process.pid,
                ksm_profit_bytes=process.ksm_profit_bytes,
                name=process.name,
                **self._pages(process.figures),
            )
            for process in self.processes
        ]
        return {
            "processes": Table.of(HugeProcess, rows),
            "mappings": Table.of(HugeMapping, mappings),
            "counters": Table.of(HugeCounter, counters),
        }

    def notes(self) -> Iterator[str]:
        """Yield what a reader of the numbers has to know."""
        total, reader = self.total, self.reader
        if total.ksm_pages:
            saved = (total.ksm_pages - self.ksm_frames) * reader.page_size_bytes
            yield (
                f"KSM keeps {total.ksm_pages} pages of these processes in {self.ksm_frames} "
                f"frames, which saves {format_size(saved)} here"
            )
        if total.huge_zero_pages:
            yield (
                "the huge zero page costs no memory; beside other memory in a mapping it also "
                "counts as file-thp-pte-aligned, as thpmaps has it"
            )
        if total.moved_pages:
            yield f"{total.moved_pages} pages changed at every look and are left out"
        if len(self.processes) > 1:
            yield "a page that several processes map counts for each"
        if not reader.use_scan:
            yield _NO_SCAN
        if self.is_hidden:
            yield f"{_HIDDEN}: {reader.refusal}"

    def _pages(self, found: HugeFigures) -> dict[str, Any]:
        """Return the figures that all records have."""
        return {
            "thp_pages": None if self.is_hidden else found.thp_pages,
            "hugetlb_pages": sum(found.hugetlb_pages.values()),
            "anonymous_pages": found.anon_pages,
            "file_pages": found.file_pages,
            "ksm_pages": None if self.is_hidden else found.ksm_pages,
            "zero_pages": found.zero_pages,
            "huge_zero_pages": found.huge_zero_pages,
            "moved_pages": found.moved_pages,
        }

    def _counters(
        self, found: HugeFigures, pid: int | None, start: int | None, has_empty: bool = False
    ) -> list[HugeCounter]:
        reader = self.reader
        rows = found.counters(
            reader.page_size_bytes >> 10, reader.pmd_order, is_hidden=self.is_hidden
        )
        return [HugeCounter(pid, start, *row) for row in rows if row.pages or has_empty]
