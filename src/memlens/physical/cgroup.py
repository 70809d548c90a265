"""
Pages that a memory cgroup is charged: of what kind, whose, and used by whom.

The order of reads: the charges of all frames of the machine; the page tables of all
processes; the charges again.  Frames that changed hands meanwhile are counted as moved.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.cgroups import (
    cgroup_paths_by_inode,
    find_cgroup,
    find_hierarchy,
    read_memory_stat,
)
from memlens.pages.flags import mask_of
from memlens.physical.charges import (
    ANONYMOUS,
    FILE,
    KERNEL,
    SHMEM,
    Charged,
    FrameReader,
    classify_kinds,
    count_by_owner,
    count_codes,
)
from memlens.physical.owners import FileCharges, OwnerTable
from memlens.physical.records import (
    KINDS,
    STATES,
    CgroupList,
    CgroupPages,
    CgroupRow,
    CgroupTotal,
    ElsewherePages,
    FileCharge,
    KindPages,
    ProcessCharge,
    StatLine,
)
from memlens.record import Table
from memlens.report import Missed, make_sum
from memlens.scan.machine import Machine, Stopped

_SWAPCACHE, _DIRTY = mask_of("SWAPCACHE"), mask_of("DIRTY")
_BATCHED = (
    "the kernel sums memory.stat up in batches, up to 64 pages for each CPU and cgroup late, "
    "and counts there what has no page of its own"
)
_NO_WALK = (
    "files are known by the pages that processes map; cached pages that nobody maps are told "
    "only where the page-cache walk runs (see memlens doctor)"
)


def list_cgroups(
    *,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CgroupList:
    """
    Return every memory cgroup that is charged for a frame in RAM.

    :raises AccessDenied: if this user may not read the kpage files.
    :raises Unsupported: if the kernel has no memory cgroups.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin = machine.origin()
    hierarchy = find_hierarchy(machine)
    sums: dict[int, NDArray[np.int64]] = {}
    reader = FrameReader(machine)
    is_complete = True
    try:
        for piece in reader.iter_charged(None):
            for inode, counts in count_by_owner(piece):
                sums[inode] = sums.get(inode, 0) + counts
    except Stopped:
        is_complete = False
    finally:
        reader.close()
    paths = cgroup_paths_by_inode(hierarchy)
    inodes = sorted(sums, key=lambda inode: (-int(sums[inode][1:].sum()), inode))
    counts = np.array([sums[inode][1:] for inode in inodes], np.int64).reshape(-1, len(KINDS))
    kinds = {f"{kind}_pages": column for kind, column in zip(KINDS, counts.T, strict=True)}
    return CgroupList.at(
        origin,
        tables={
            "cgroups": Table.of_columns(
                CgroupRow,
                charged_pages=counts.sum(axis=1),
                **kinds,
                inode=np.array(inodes, np.uint64),
                path=[paths.get(inode) for inode in inodes],
            )
        },
        is_complete=is_complete,
        cost=machine.cost(),
    )


def read_cgroup(
    path: str,
    *,
    directories: Sequence[str] = (),
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CgroupPages:
    """
    Return what a cgroup, with those below it, is charged.

    :param path: its directory, or its path as /proc/PID/cgroup gives it.
    :param directories: where to look for files that no process holds.
    :raises MemlensError: if there is no such cgroup.
    :raises AccessDenied: if this user may not read the kpage files or page frames.
    :raises Unsupported: if the kernel has no memory cgroups.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    run = _Run(find_cgroup(path, machine), machine)
    try:
        return run.read(directories)
    finally:
        run.close()


@dataclass(slots=True)
class _Frames:
    """Charged frames of all pieces, ``(n,)`` each."""

    pieces: list[Charged] = field(default_factory=list)

    def join(self) -> Charged:
        if not self.pieces:
            none = np.empty(0, np.uint64)
            return Charged(np.empty(0, np.int64), none, none)
        return Charged(
            np.concatenate([piece.pfn for piece in self.pieces]),
            np.concatenate([piece.inode for piece in self.pieces]),
            np.concatenate([piece.flags for piece in self.pieces]),
        )


class _Run:
    def __init__(self, directory: str, machine: Machine) -> None:
        self.machine = machine
        self.origin = machine.origin()
        self.hierarchy = find_hierarchy(machine)
        self.directory = directory
        self.path = self.hierarchy.path_of(directory)
        every = cgroup_paths_by_inode(self.hierarchy)
        prefix = f"{self.path.rstrip('/')}/"
        own = [n for n, name in every.items() if name == self.path or name.startswith(prefix)]
        self.paths = every
        self.inodes = np.sort(np.array(own, np.uint64))
        self.missed: list[Missed] = []
        self.stat: dict[str, int] = {}
        self.reader = FrameReader(machine)

    def close(self) -> None:
        self.reader.close()

    def read(self, directories: Sequence[str]) -> CgroupPages:
        is_complete = True
        frames = _Frames()
        owners: OwnerTable | None = None
        files: FileCharges | None = None
        charged = frames.join()
        try:
            for piece in self.reader.iter_charged(self.inodes):
                frames.pieces.append(piece)
            # Now, for what this scan itself needs will be charged to somebody.
            self.stat = read_memory_stat(self.directory)
            charged = frames.join()
            kinds = classify_kinds(charged.flags)
            owners = OwnerTable(charged.pfn, kinds, self.path, self.machine)
            owners.read_processes()
            self.missed += owners.missed
            files = FileCharges(self.inodes, self.machine)
            files.read(directories)
        except Stopped:
            is_complete = False
            charged = frames.join()
        return self._result(charged, owners, files, is_complete)

    def _result(
        self,
        charged: Charged,
        owners: OwnerTable | None,
        files: FileCharges | None,
        is_complete: bool,
    ) -> CgroupPages:
        is_same = self.reader.owners(charged.pfn) == charged.inode
        pfns, flags = charged.pfn[is_same], charged.flags[is_same]
        kinds = classify_kinds(flags)
        file_rows: Sequence[FileCharge] = ()
        process_rows: Sequence[ProcessCharge] = ()
        used: Sequence[ElsewherePages] = ()
        others: Sequence[ElsewherePages] = ()
        only_elsewhere = 0
        if owners is not None:
            file_rows, process_rows = owners.rows(pfns, files.pages if files else {})
            used, only_elsewhere = owners.used_elsewhere(pfns)
            others = self._charged_elsewhere(owners)
        is_mapped = self.reader.are_mapped(pfns, flags)
        owned = sum(row.pages for row in file_rows) + sum(row.pages for row in process_rows)
        total = CgroupTotal(
            path=self.path,
            version=self.hierarchy.version,
            cgroups=len(self.inodes),
            charged_pages=len(pfns),
            unowned_pages=len(pfns) - int((kinds == KERNEL).sum()) - owned,
            only_elsewhere_pages=only_elsewhere,
            moved_pages=int((~is_same).sum()),
        )
        return CgroupPages.at(
            self.origin,
            tables={
                "files": Table.of(FileCharge, file_rows),
                "processes": Table.of(ProcessCharge, process_rows),
                "kinds": Table.of(KindPages, _kind_rows(kinds, flags, is_mapped)),
                "used_elsewhere": Table.of(ElsewherePages, used),
                "charged_elsewhere": Table.of(ElsewherePages, others),
                "stat": Table.of(StatLine, self._stat(kinds, flags, is_mapped)),
            },
            sections={"total": total},
            sums={
                "charged": make_sum(
                    total.charged_pages, total.charged_pages - total.unowned_pages
                )
            },
            is_complete=is_complete,
            missed=self.missed,
            notes=self._notes(files),
            cost=self.machine.cost(),
        )

    def _charged_elsewhere(self, owners: OwnerTable) -> Sequence[ElsewherePages]:
        """Return who is charged for what processes of this cgroup map."""
        pfns = owners.foreign_frames()
        inodes = np.sort(self.reader.owners(pfns))
        if not len(inodes):
            return ()
        edges = np.append(0, np.flatnonzero(inodes[1:] != inodes[:-1]) + 1)
        counts = np.diff(np.append(edges, len(inodes)))
        own = set(self.inodes.tolist())
        rows: list[ElsewherePages] = [
            ElsewherePages(pages, self._name(inode))
            for inode, pages in zip(inodes[edges].tolist(), counts.tolist(), strict=True)
            if inode not in own
        ]
        return sorted(rows, key=lambda row: -row.pages)

    def _name(self, inode: int) -> str:
        return self.paths.get(inode, f"@{inode}") if inode else "(none)"

    def _stat(
        self,
        kinds: NDArray[np.uint8],
        flags: NDArray[np.uint64],
        is_mapped: NDArray[np.bool_],
    ) -> Iterator[StatLine]:
        """Yield the figures that can be compared, by the names of this version."""
        is_cached = (flags & _SWAPCACHE) != 0
        is_anonymous = kinds == ANONYMOUS
        is_cache = (kinds == FILE) | (kinds == SHMEM)
        found = {
            "anon": int((is_anonymous & is_mapped).sum()),
            # The kernel counts what has a swap slot as a page of a cache, too.
            "file": int((is_cache | (is_anonymous & is_cached)).sum()),
            "shmem": int((kinds == SHMEM).sum()),
            "file_mapped": int((is_cache & is_mapped).sum()),
        }
        names = {"anon": "rss", "file": "cache", "file_mapped": "mapped_file"}
        stat = self.stat
        size = self.machine.page_size_bytes
        for name, pages in found.items():
            key = f"total_{names.get(name, name)}" if self.hierarchy.version == 1 else name
            if key in stat:
                says = stat[key] // size
                yield StatLine(key, says, pages, says - pages)

    def _notes(self, files: FileCharges | None) -> Iterator[str]:
        if files is not None and not files.has_walk:
            yield _NO_WALK
        yield _BATCHED


def _kind_rows(
    kinds: NDArray[np.uint8], flags: NDArray[np.uint64], is_mapped: NDArray[np.bool_]
) -> Iterator[KindPages]:
    is_present = is_mapped | (kinds == KERNEL)
    has_slot = (flags & _SWAPCACHE) != 0
    is_rest = ~is_present & ~has_slot
    states = {
        "present": is_present,
        "cached": is_rest & (kinds != ANONYMOUS),
        "swap_cached": ~is_present & has_slot,
        "unmapped": is_rest & (kinds == ANONYMOUS),
    }
    is_dirty = (flags & _DIRTY) != 0
    for state in STATES:
        pages = count_codes(kinds[states[state]])
        dirty = count_codes(kinds[states[state] & is_dirty])
        for code, kind in enumerate(KINDS, 1):
            if pages[code]:
                yield KindPages(kind, state, int(pages[code]), int(dirty[code]))
