"""
Pages that a memory cgroup is charged: of what kind, whose, and used by whom.

The order of reads: the charges of all frames of the machine; the page tables of all
processes; the charges again.  Frames that changed hands meanwhile are counted as moved.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.cgroups import (
    cgroup_paths_by_inode,
    find_cgroup,
    find_hierarchy,
    parse_cgroup,
    read_memory_stat,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import list_pids
from memlens.objects.opener import device_number
from memlens.pages.arrays import count_distinct, distinct
from memlens.pages.flags import mask_of
from memlens.physical.files import FileCharges, FileKey
from memlens.physical.frames import (
    ANONYMOUS,
    FILE,
    KERNEL,
    SHMEM,
    Charged,
    ChargeReader,
    classify_kinds,
    count_by_owner,
    count_kinds,
)
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
from memlens.scan.jobs import list_windows
from memlens.scan.machine import Machine, Stopped
from memlens.scan.mappings import FoundPages, MappingTable
from memlens.scan.pagetable import PageTable
from memlens.units import count_of

_SWAPCACHE, _DIRTY = mask_of("SWAPCACHE"), mask_of("DIRTY")
_INSIDE, _OUTSIDE = np.uint8(1), np.uint8(2)
_NONE = np.empty(0, np.int64)
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
    is_complete = True
    with ChargeReader(machine) as reader:
        try:
            for piece in reader.iter_charged():
                for inode, found in zip(*count_by_owner(piece), strict=True):
                    sums[int(inode)] = sums.get(int(inode), 0) + found
        except Stopped:
            is_complete = False
    paths = cgroup_paths_by_inode(hierarchy)
    inodes = sorted(sums, key=lambda inode: (-int(sums[inode].sum()), inode))
    counts = np.array([sums[inode] for inode in inodes], np.int64).reshape(-1, len(KINDS))
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
    directory = find_cgroup(path, machine)
    with ChargeReader(machine) as reader:
        return _Run(directory, machine, reader).read(directories)


@dataclass(slots=True)
class _Owner:
    name: str
    pid: int
    cgroup: str
    key: FileKey | None = None
    mapped_pages: int = 0


class _OwnerTable:
    """
    Gives every charged frame that a page table maps an owner.

    :param pfns: charged frames, sorted.
    :param kinds: of each, as ``classify_kinds`` gives it.
    :param path: of the cgroup.
    :param machine: whose processes are looked at.
    :raises AccessDenied: if frames are hidden from this reader.

    Takes six bytes for every frame of a part of memory where any is used.
    """

    def __init__(
        self, pfns: NDArray[np.int64], kinds: NDArray[np.uint8], path: str, machine: Machine
    ) -> None:
        machine.require_frames()
        self.machine = machine
        self.path = path
        self.missed: list[Missed] = []
        length = int(pfns[-1]) + 1 if len(pfns) else 1
        self._kind = np.zeros(length, np.uint8)
        self._kind[pfns] = kinds
        self._owner = np.zeros(length, np.uint32)
        self._used = np.zeros(length, np.uint8)
        self._owners: list[_Owner] = [_Owner("", 0, "")]
        self._files: dict[FileKey, int] = {}
        self._elsewhere: dict[str, list[NDArray[np.int64]]] = {}
        self._foreign: list[NDArray[np.int64]] = []

    def read_processes(self) -> None:
        """Read the page table of every process."""
        pids = list_pids(self.machine)
        denied = 0
        for done, pid in enumerate(pids):
            self.machine.step(done, len(pids))
            try:
                self._read(pid)
            except AccessDenied:
                denied += 1
            except (MemlensError, EOFError):
                continue
        if denied:
            self.missed.append(
                Missed(count_of(denied, "process", "processes"), "may not be read by this user")
            )

    def rows(
        self, pfns: NDArray[np.int64], walked: dict[FileKey, tuple[str, int]]
    ) -> tuple[list[FileCharge], list[ProcessCharge]]:
        """
        Return the rows of files and of processes, most pages first.

        :param pfns: the frames that count.
        :param walked: path and charged pages of each file whose page cache was walked.
        """
        counts = np.bincount(self._owner[pfns], minlength=len(self._owners)).tolist()
        files: dict[FileKey, FileCharge] = {}
        processes = []
        for owner, pages in zip(self._owners[1:], counts[1:], strict=True):
            mapped = owner.mapped_pages
            if not pages:
                continue
            if owner.key is None:
                row = ProcessCharge(pages, mapped, owner.pid, owner.name, owner.cgroup)
                processes.append(row)
            else:
                files[owner.key] = FileCharge(pages, mapped, owner.name)
        for key, (path, pages) in walked.items():
            known = files.get(key)
            mapped = known.pages if known else 0
            if pages or mapped:
                files[key] = FileCharge(max(pages, mapped), mapped, path)
        return (
            sorted(files.values(), key=lambda row: (-row.pages, row.path)),
            sorted(processes, key=lambda row: (-row.pages, row.name)),
        )

    def used_elsewhere(self, pfns: NDArray[np.int64]) -> tuple[list[ElsewherePages], int]:
        """Return by cgroup who else maps charged frames, and how many nobody here does."""
        is_counted = np.zeros(len(self._kind), bool)
        is_counted[pfns] = True
        rows = []
        for cgroup, parts in self._elsewhere.items():
            frames = distinct(np.concatenate(parts))
            rows.append(ElsewherePages(int(is_counted[frames].sum()), cgroup))
        used = self._used[pfns] & (_INSIDE | _OUTSIDE)
        rows = [row for row in rows if row.pages]
        rows.sort(key=lambda row: (-row.pages, row.cgroup))
        return rows, int((used == _OUTSIDE).sum())

    def foreign_frames(self) -> NDArray[np.int64]:
        """Return the frames that processes here map and the cgroup is not charged for."""
        return distinct(np.concatenate([np.empty(0, np.int64), *self._foreign]))

    def _read(self, pid: int) -> None:
        with ProcessDir(pid, self.machine) as process:
            cgroup = parse_cgroup(process.read("cgroup"))
            is_inside = _is_below(cgroup, self.path)
            with PageTable.open(process, self.machine) as pages:
                table = MappingTable(process, self.machine)
                owner = _Owner(process.title(pages.pagemap), pid, cgroup)
                self._owners.append(owner)
                number = len(self._owners) - 1
                names = self._file_numbers(table)
                foreign: list[NDArray[np.int64]] = []
                for job in list_windows(process, self.machine):
                    vfns = np.concatenate([np.arange(a, b) for a, b in job])
                    found = table.attribute(pages.read(job), vfns, pages.zero_pfn)
                    foreign.append(self._take(found, number, names, cgroup, is_inside))
                if is_inside:
                    self._foreign.append(distinct(np.concatenate([_NONE, *foreign])))

    def _take(
        self,
        found: FoundPages,
        number: int,
        names: NDArray[np.uint32],
        cgroup: str,
        is_inside: bool,
    ) -> NDArray[np.int64]:
        """Give frames their owners, and return those that are not charged here."""
        is_known = (found.pfn > 0) & (found.pfn < len(self._kind))
        pfns = np.where(is_known, found.pfn, 0)
        is_charged = is_known & (self._kind[pfns] != 0)
        frames, place = pfns[is_charged], found.place[is_charged]
        kinds = self._kind[frames]
        self._owners[number].mapped_pages += len(frames)
        free = self._owner[frames] == 0
        is_own = free & (kinds == ANONYMOUS)
        self._owner[frames[is_own]] = number
        is_file = free & ((kinds == FILE) | (kinds == SHMEM)) & (names[place] != 0)
        self._owner[frames[is_file]] = names[place[is_file]]
        self._used[frames] |= _INSIDE if is_inside else _OUTSIDE
        if not is_inside and len(frames):
            self._elsewhere.setdefault(cgroup, []).append(distinct(frames))
        rest: NDArray[np.int64] = found.pfn[~is_charged & (found.pfn > 0)]
        return rest if is_inside else _NONE

    def _file_numbers(self, table: MappingTable) -> NDArray[np.uint32]:
        """Return for each mapping the number of the file that it maps, 0 for none."""
        numbers = []
        for mapping in table.mappings:
            number = 0
            if mapping.has_object:
                key = (device_number(mapping.device), mapping.inode)
                number = self._files.get(key, 0)
                if not number:
                    self._owners.append(_Owner(mapping.path, 0, "", key))
                    number = self._files[key] = len(self._owners) - 1
            numbers.append(number)
        return np.array(numbers or [0], np.uint32)


class _Run:
    def __init__(self, directory: str, machine: Machine, reader: ChargeReader) -> None:
        self.machine = machine
        self.reader = reader
        self.origin = machine.origin()
        self.hierarchy = find_hierarchy(machine)
        self.directory = directory
        self.path = self.hierarchy.path_of(directory)
        self.paths = cgroup_paths_by_inode(self.hierarchy)
        own = [inode for inode, name in self.paths.items() if _is_below(name, self.path)]
        self.inodes = np.sort(np.array(own, np.uint64))
        self.stat: dict[str, int] = {}

    def read(self, directories: Sequence[str]) -> CgroupPages:
        is_complete = True
        pieces: list[Charged] = []
        charged = Charged.join(pieces)
        owners: _OwnerTable | None = None
        files: FileCharges | None = None
        try:
            pieces.extend(self.reader.iter_charged(self.inodes))
            # Now, for what this scan itself needs will be charged to somebody.
            self.stat = read_memory_stat(self.directory)
            charged = Charged.join(pieces)
            kinds = classify_kinds(charged.flags)
            owners = _OwnerTable(charged.pfn, kinds, self.path, self.machine)
            owners.read_processes()
            files = FileCharges(self.inodes, self.machine)
            files.read(directories)
        except Stopped:
            is_complete = False
            charged = Charged.join(pieces)
        return self._result(charged, owners, files, is_complete)

    def _result(
        self,
        charged: Charged,
        owners: _OwnerTable | None,
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
            missed=owners.missed if owners else (),
            notes=self._notes(files),
            cost=self.machine.cost(),
        )

    def _charged_elsewhere(self, owners: _OwnerTable) -> Sequence[ElsewherePages]:
        """Return who is charged for what processes of this cgroup map."""
        inodes, counts = count_distinct(self.reader.owners(owners.foreign_frames()))
        own = set(self.inodes.tolist())
        rows = [
            ElsewherePages(pages, self._name(inode))
            for inode, pages in zip(inodes.tolist(), counts.tolist(), strict=True)
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
        pages = count_kinds(kinds[states[state]]).tolist()
        dirty = count_kinds(kinds[states[state] & is_dirty]).tolist()
        for kind, found, newer in zip(KINDS, pages, dirty, strict=True):
            if found:
                yield KindPages(kind, state, found, newer)


def _is_below(cgroup: str, path: str) -> bool:
    return cgroup == path or cgroup.startswith(f"{path.rstrip('/')}/")
