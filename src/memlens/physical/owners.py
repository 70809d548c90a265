"""Whose the frames of a cgroup are: files and processes, here and elsewhere."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel import features
from memlens.kernel.cachewalk import CacheWalker, walker
from memlens.kernel.cgroups import parse_cgroup
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import list_pids
from memlens.objects.opener import device_number
from memlens.physical.charges import ANONYMOUS, FILE, SHMEM
from memlens.physical.files import FileFigures, FileScan
from memlens.physical.heldfiles import HeldFiles
from memlens.physical.records import ElsewherePages, FileCharge, ProcessCharge
from memlens.report import Missed
from memlens.scan.jobs import list_windows
from memlens.scan.machine import Machine
from memlens.scan.mappings import FoundPages, MappingTable
from memlens.scan.pagetable import PageTable
from memlens.units import count_of

FileKey = tuple[int, int]
_INSIDE, _OUTSIDE = np.uint8(1), np.uint8(2)


@dataclass(slots=True)
class _Owner:
    name: str
    pid: int
    cgroup: str
    key: FileKey | None = None
    mapped_pages: int = 0


class OwnerTable:
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
        self._zero = features.zero_pfn()
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
            frames = _distinct(np.concatenate(parts))
            rows.append(ElsewherePages(int(is_counted[frames].sum()), cgroup))
        used = self._used[pfns] & (_INSIDE | _OUTSIDE)
        rows = [row for row in rows if row.pages]
        rows.sort(key=lambda row: (-row.pages, row.cgroup))
        return rows, int((used == _OUTSIDE).sum())

    def foreign_frames(self) -> NDArray[np.int64]:
        """Return the frames that processes here map and the cgroup is not charged for."""
        return _distinct(np.concatenate([np.empty(0, np.int64), *self._foreign]))

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
                    found = table.attribute(pages.read(job), vfns, self._zero)
                    foreign.append(self._take(found, number, names, cgroup, is_inside))
                if is_inside:
                    self._foreign.append(_distinct(np.concatenate([_NONE, *foreign])))

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
            self._elsewhere.setdefault(cgroup, []).append(_distinct(frames))
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


class FileCharges(FileScan):
    """
    Walks the page cache of files that processes hold, or that are in directories.

    :param inodes: of the cgroups, sorted.

    ``pages`` has path and charged pages by device and inode; ``has_walk`` says whether the
    walk runs here at all.
    """

    def __init__(self, inodes: NDArray[np.uint64], machine: Machine) -> None:
        super().__init__((), machine, is_each_once=True)
        self.inodes = inodes
        self.pages: dict[FileKey, tuple[str, int]] = {}
        self.has_walk = False
        self._walker: CacheWalker | None = None

    def read(self, directories: Sequence[str]) -> None:
        """Walk all files that are held, and those of directories."""
        try:
            self._walker = walker() if self.machine.may("cachewalk") else None
        except MemlensError:
            self._walker = None
        if self._walker is None:
            return
        self.has_walk = True
        self.paths = list(directories)
        try:
            for number, _ in enumerate(HeldFiles(self).iter_all()):
                self.machine.step(number, 0)
            for number, _ in enumerate(self.rows()):
                self.machine.step(number, 0)
        finally:
            self.close()

    def look_at(self, path: str, fd: int, status: os.stat_result) -> FileFigures:
        """Note whom the pages of an open file are charged to."""
        row = super().look_at(path, fd, status)
        if self._walker is not None and row.cached_pages:
            try:
                records = self._walker.walk_fd(fd)
            except (MemlensError, OSError):
                return row
            place = np.minimum(
                np.searchsorted(self.inodes, records.cgroup_id), len(self.inodes) - 1
            )
            is_ours = (self.inodes[place] == records.cgroup_id) & ~records.is_swap
            pages = int(records.pages[is_ours].sum())
            if pages:
                self.pages[status.st_dev, status.st_ino] = (path, pages)
        return row


def _is_below(cgroup: str, path: str) -> bool:
    return cgroup == path or cgroup.startswith(f"{path.rstrip('/')}/")


def _distinct(pfns: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered = np.sort(pfns)
    if len(ordered) < 2:
        return ordered
    kept: NDArray[np.int64] = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return kept


_NONE = np.empty(0, np.int64)
