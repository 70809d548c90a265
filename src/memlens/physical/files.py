"""
What of each file is in the page cache, and how much of that processes map.

Files are told one after the other and not kept: a tree may hold millions.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.cachewalk import CacheWalker, walker
from memlens.kernel.mounts import KERNEL_MAGICS, may_hang
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import FileMappers, list_pids
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.objects.backing import UNKNOWN, CacheReader, Figures, is_quiet, open_quietly
from memlens.objects.filewalk import FileWalk, OpenFile
from memlens.objects.leases import LEASED, Leases
from memlens.objects.opener import Opener, device_number, parse_mount_table, reopen
from memlens.pages.arrays import is_in
from memlens.scan.machine import Machine
from memlens.scan.mappings import MappedPages
from memlens.units import count_of, signed

FileKey = tuple[int, int]
# Kinds of objects whose pages are in the page cache.
_KINDS = frozenset({"file", "shmem", "ramfs", "overlay", "hugetlb"})


class FileFigures(NamedTuple):
    """
    What is known of a file: a row of ``FileCache`` as it comes.

    A tree may hold a million, and a tuple costs a fraction of a record.
    """

    path: str
    kind: str
    reason: str
    size_bytes: int | None
    cached_pages: int | None = None
    dirty_pages: int | None = None
    writeback_pages: int | None = None
    evicted_pages: int | None = None
    recently_evicted_pages: int | None = None
    mapped_pages: int | None = None
    device: int | None = None
    inode: int | None = None


class FileScan:
    """
    Looks at files and directories.

    :param paths: as the user names them.
    :param machine: that is asked.
    :param one_file_system: whether to stay on the file system of each directory named.
    :param is_each_once: whether files may come that are not below ``paths``, so that every
        one has to be remembered.

    Iterate ``rows``; ``other_names``, names of files that were told already, ``walk`` and
    ``notes`` are complete when that has ended.
    """

    def __init__(
        self,
        paths: Iterable[str],
        machine: Machine,
        *,
        one_file_system: bool = False,
        is_each_once: bool = False,
    ) -> None:
        self.machine = machine
        self.page_size_bytes = machine.page_size_bytes
        self.paths = list(dict.fromkeys(paths))
        self.walk = FileWalk(machine, one_file_system)
        self.other_names = 0
        self.reader = CacheReader(machine)
        self.mappers = FileMappers(machine)
        self._mapped: MappedPages | None = None
        # From one place only files with several names can come twice.
        self._keeps_all = is_each_once or len(self.paths) > 1
        self._has_mappers = False
        self._seen: set[tuple[int, int]] = set()

    def rows(self) -> Iterator[FileFigures]:
        """
        Yield every file once.

        :raises Unsupported: if there is no /proc.
        """
        self.walk.leases.prefetch()
        self.read_mappers()
        for item in self.walk.iter_files(self.paths):
            row = self._look(item)
            if row is not None:
                yield row

    def close(self) -> None:
        """Close what was kept open; twice is fine."""
        if self._mapped is not None:
            self._mapped.close()

    def read_mappers(self) -> None:
        """Learn who maps what, once."""
        if not self._has_mappers:
            self.mappers.read()
            self._has_mappers = True

    def is_new(self, device: int, inode: int) -> bool:
        """Return whether a file comes for the first time, and remember it."""
        before = len(self._seen)
        self._seen.add((device, inode))
        return len(self._seen) > before

    def _look(self, item: OpenFile) -> FileFigures | None:
        status = item.status
        if status is None:
            return unknown_file(item.path, item.reason)
        is_doubtful = self._keeps_all or status.st_nlink > 1
        if is_doubtful and not self.is_new(status.st_dev, status.st_ino):
            self.other_names += 1
            return None
        return self.look_at(item.path, item.fd, status)

    def look_at(self, path: str, fd: int, status: os.stat_result) -> FileFigures:
        """Return what is known of an open file."""
        size = status.st_size
        try:
            kind = self.reader.kind(fd)
            quiet = self.reader.has_cachestat or is_quiet(fd)
            figures, reason = self.reader.ask(fd, kind, 0, size, quiet)
            if kind == "hugetlb" and size and self.machine.may("cachewalk"):
                figures, reason = _walk_hugetlb(fd, figures, reason)
        except OSError as error:
            kind, reason, figures = "file", os.strerror(error.errno or 0), UNKNOWN
        mapped: int | None = 0
        mappings = self.mappers.find(status, fd, kind) if size else []
        if mappings:
            mapped = self._mapped_pages().count(mappings, -(-size // self.page_size_bytes))
        if figures.cached is not None and mapped is not None:
            # Both were true, at different moments.
            mapped = min(mapped, figures.cached)
        return FileFigures(
            path, kind, reason, size, *figures, mapped, status.st_dev, signed(status.st_ino)
        )

    def notes(self) -> list[str]:
        """Return what limits the numbers, one line each."""
        lines = []
        walk = self.walk
        if self.other_names:
            names = count_of(self.other_names, "other name", "other names")
            lines.append(f"left out: {names} of files that count already")
        if walk.vanished:
            lines.append(f"{count_of(walk.vanished, 'file', 'files')} vanished meanwhile")
        if walk.special:
            lines.append(f"devices, pipes and sockets, never opened: {walk.special}")
        denied = self.mappers.denied + (self._mapped.denied if self._mapped else 0)
        if denied:
            processes = count_of(denied, "process", "processes")
            lines.append(f"mapped: the page tables of {processes} may not be read by this user")
        if not self.reader.has_cachestat:
            lines.append(
                "without cachestat (v6.5): dirty, writeback and evicted are not known, and "
                "of shared memory a copy kept with its swap slot counts as cached"
            )
        return lines

    def cells(self, path: str, file: tuple[int, int], cells: int) -> list[tuple[int, Figures]]:
        """
        Return where in a file its cached pages are, as they are now.

        :param file: device and inode, as ``FileFigures`` has them.
        :param cells: parts of equal length, fewer if the file has fewer pages.
        :return: pages of each part, and its figures; nothing if the path leads to that file no
            more, or it cannot be asked.
        """
        try:
            fd = open_quietly(path)
        except (OSError, ValueError):
            return []
        try:
            status = os.fstat(fd)
            if (status.st_dev, signed(status.st_ino)) != file:
                return []
            return _cells_of(self.reader, fd, status, cells)
        except OSError:
            return []
        finally:
            os.close(fd)

    def _mapped_pages(self) -> MappedPages:
        if self._mapped is None:
            self._mapped = MappedPages(self.machine)
        return self._mapped


def _cells_of(
    reader: CacheReader, fd: int, status: os.stat_result, cells: int
) -> list[tuple[int, Figures]]:
    size = reader.page_size_bytes
    pages = -(-status.st_size // size)
    cells = min(cells, pages)
    kind, quiet = reader.kind(fd), is_quiet(fd)
    found = []
    for number in range(cells):
        first, stop = pages * number // cells, pages * (number + 1) // cells
        end = min(stop * size, status.st_size)
        figures, _ = reader.ask(fd, kind, first * size, end, quiet)
        if figures.cached is None:
            return []
        found.append((stop - first, figures))
    return found


def unknown_file(path: str, reason: str, size_bytes: int | None = None) -> FileFigures:
    """Return the row of a file that cannot be looked at."""
    return FileFigures(path, "", reason, size_bytes)


def _walk_hugetlb(fd: int, figures: Figures, reason: str) -> tuple[Figures, str]:
    """Ask the page-cache walk, the only one that knows, where it can be used."""
    try:
        records = walker().walk_fd(fd)
    except (MemlensError, OSError):
        return figures, reason
    return Figures(int(records.pages.sum())), ""


class HeldFiles:
    """
    Goes through the files that processes hold.

    :param scan: looks at them, and knows which were seen.

    ``denied`` counts processes that could not be read, ``refused`` files that could not be
    opened.
    """

    def __init__(self, scan: FileScan) -> None:
        self.scan = scan
        self.denied = 0
        self.refused = 0
        self._leases = Leases(self.scan.machine)

    def iter_all(self) -> Iterator[FileFigures]:
        """Yield the files of every process, each once."""
        self.scan.read_mappers()
        for pid in list_pids(self.scan.machine):
            try:
                yield from self.iter_process(pid)
            except AccessDenied:
                self.denied += 1
            except MemlensError:
                # Ended, a zombie or a kernel thread: it holds nothing.
                continue

    def iter_process(self, pid: int) -> Iterator[FileFigures]:
        """
        Yield the files that one process maps or has open, each once.

        :raises MemlensError: if it does not exist or may not be read.
        """
        self.scan.read_mappers()
        with ProcessDir(pid, self.scan.machine) as process:
            opener = Opener(process)
            opener.leases = self._leases
            yield from self._mapped(process, opener)
            yield from self._opened(process)

    def _mapped(self, process: ProcessDir, opener: Opener) -> Iterator[FileFigures]:
        for mapping in process.read_maps():
            if not mapping.has_object or opener.facts(mapping).kind not in _KINDS:
                continue
            named = device_number(mapping.device), mapping.inode
            if not self.scan.is_new(*named):
                continue
            backing = opener.open(mapping)
            if isinstance(backing, str):
                self.refused += 1
                yield unknown_file(mapping.path, backing)
                continue
            with closing(backing):
                if not self._is_known(backing.fd, named):
                    yield from self._look(backing.fd, mapping.path)

    def _is_known(self, fd: int, named: tuple[int, int]) -> bool:
        """
        Return whether a file was seen under the device and inode that stat(2) gives.

        On btrfs and on overlays of several file systems maps has others.
        """
        status = os.fstat(fd)
        own = status.st_dev, status.st_ino
        return own != named and not self.scan.is_new(*own)

    def _opened(self, process: ProcessDir) -> Iterator[FileFigures]:
        try:
            directory = process.open("fd", os.O_RDONLY | os.O_DIRECTORY)
        except AccessDenied:
            self.denied += 1
            return
        try:
            hanging = _hanging_devices(process)
            for name in os.listdir(directory):
                yield from self._descriptor(directory, name, hanging)
        except OSError:
            return
        finally:
            os.close(directory)

    def _descriptor(
        self, directory: int, name: str, hanging: frozenset[int]
    ) -> Iterator[FileFigures]:
        try:
            status = statx_cached(name, directory)
            if not stat.S_ISREG(status.mode) or status.device in hanging:
                return
            if not self.scan.is_new(status.device, status.inode):
                return
            path = os.readlink(name, dir_fd=directory)
            handle = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return
        try:
            magic = fstatfs_type(handle)
            if magic in KERNEL_MAGICS:
                return
            if self._leases.has(os.fstat(handle)):
                yield unknown_file(path, LEASED)
                return
            backing = reopen(handle, "file", self.scan.machine, path)
        except OSError:
            return
        finally:
            os.close(handle)
        if isinstance(backing, str):
            self.refused += 1
            yield unknown_file(path, backing, status.size_bytes)
            return
        with closing(backing):
            yield from self._look(backing.fd, path)

    def _look(self, fd: int, path: str) -> Iterator[FileFigures]:
        try:
            row = self.scan.look_at(path, fd, os.fstat(fd))
        except OSError:
            return
        yield row


def _hanging_devices(process: ProcessDir) -> frozenset[int]:
    try:
        table = parse_mount_table(process.read("mountinfo"))
    except MemlensError:
        return frozenset()
    return frozenset(
        device_number(device) for device, kind in table.types.items() if may_hang(kind)
    )


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
            is_ours = is_in(records.cgroup_id, self.inodes) & ~records.is_swap
            pages = int(records.pages[is_ours].sum())
            if pages:
                self.pages[status.st_dev, status.st_ino] = (path, pages)
        return row
