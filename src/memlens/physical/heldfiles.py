"""
Files that processes map or have open, and which files hold the page cache.

A file that nobody holds can be found only by walking the directory that it is in.  What
neither way finds is printed as what it is: pages of files that were not looked at.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.maps import Mapping
from memlens.kernel.mounts import KERNEL_MAGICS, may_hang
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import list_pids
from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.objects.backing import Backing
from memlens.objects.leases import LEASED, Leases
from memlens.objects.opener import Opener, device_number, parse_mount_table, reopen
from memlens.physical.files import FileScan, unknown_file
from memlens.physical.records import FileCache
from memlens.units import count_of

# Kinds of objects whose pages are in the page cache.
_KINDS = frozenset({"file", "shmem", "ramfs", "overlay", "hugetlb"})


@dataclass(frozen=True, slots=True)
class PageCache:
    """
    The page cache of the machine beside what was found of it, in pages.

    :param cached_pages: ``Cached`` of /proc/meminfo: pages of files and shared memory.
    :param shmem_pages: ``Shmem``, which is part of it.
    :param buffer_pages: ``Buffers``: pages of block devices, not part of it.
    :param found_pages: cached pages of the files that were looked at.
    """

    cached_pages: int
    shmem_pages: int
    buffer_pages: int
    found_pages: int

    @property
    def remainder_pages(self) -> int:
        """Return what belongs to none of the files; below 0 if it shrank meanwhile."""
        return self.cached_pages - self.found_pages


class HeldFiles:
    """
    Goes through the files that processes hold.

    :param scan: looks at them, and knows which were seen.

    ``denied`` counts processes that could not be read.
    """

    def __init__(self, scan: FileScan) -> None:
        self.scan = scan
        self.denied = 0
        self.refused = 0
        self._leases = Leases(self.scan.machine)

    def iter_all(self) -> Iterator[FileCache]:
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

    def iter_process(self, pid: int) -> Iterator[FileCache]:
        """
        Yield the files that one process maps or has open, each once.

        :raises MemlensError: if it does not exist or may not be read.
        """
        self.scan.read_mappers()
        with ProcessDir(pid, self.scan.machine) as process:
            opener = Opener(process)
            opener.leases = self._leases
            mappings = process.read_maps()
            yield from self._mapped(opener, mappings)
            yield from self._opened(process)

    def notes(self) -> list[str]:
        """Return what was missed, one line each."""
        lines = []
        if self.denied:
            denied = count_of(self.denied, "process", "processes")
            lines.append(f"the files of {denied} may not be seen by this user")
        if self.refused:
            lines.append(f"{self.refused} files that processes hold could not be opened")
        return lines

    def _mapped(self, opener: Opener, mappings: Iterable[Mapping]) -> Iterator[FileCache]:
        for mapping in mappings:
            if not mapping.has_object or opener.facts(mapping).kind not in _KINDS:
                continue
            named = device_number(mapping.device), mapping.inode
            if not self.scan.is_new(*named):
                continue
            backing = opener.open(mapping)
            if isinstance(backing, str):
                self.refused += 1
                yield self.scan.count(unknown_file(mapping.path, backing))
            elif self._is_known(backing, named):
                backing.close()
            else:
                yield from self._look(backing, mapping.path)

    def _is_known(self, backing: Backing, named: tuple[int, int]) -> bool:
        """
        Return whether a file was seen under the device and inode that stat(2) gives.

        On btrfs and on overlays of several file systems maps has others.
        """
        status = os.fstat(backing.fd)
        own = status.st_dev, status.st_ino
        return own != named and not self.scan.is_new(*own)

    def _opened(self, process: ProcessDir) -> Iterator[FileCache]:
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
    ) -> Iterator[FileCache]:
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
                yield self.scan.count(unknown_file(path, LEASED))
                return
            backing = reopen(handle, "file", self.scan.machine, path)
        except OSError:
            return
        finally:
            os.close(handle)
        if isinstance(backing, str):
            self.refused += 1
            yield self.scan.count(unknown_file(path, backing, status.size_bytes))
        else:
            yield from self._look(backing, path)

    def _look(self, backing: Backing, path: str) -> Iterator[FileCache]:
        try:
            status = os.fstat(backing.fd)
            row = self.scan.look_at(path, backing.fd, status)
        except OSError:
            return
        finally:
            backing.close()
        yield self.scan.count(row)


def read_page_cache(scan: FileScan) -> PageCache:
    """Return the figures of the machine beside the totals of a scan."""
    try:
        sizes = parse_meminfo(read_file(f"{scan.machine.root}/meminfo"))
    except OSError:
        sizes = {}
    size = scan.page_size_bytes
    return PageCache(
        cached_pages=sizes.get("Cached", 0) // size,
        shmem_pages=sizes.get("Shmem", 0) // size,
        buffer_pages=sizes.get("Buffers", 0) // size,
        found_pages=scan.totals.sums["cached_pages"],
    )


def _hanging_devices(process: ProcessDir) -> frozenset[int]:
    try:
        table = parse_mount_table(process.read("mountinfo"))
    except MemlensError:
        return frozenset()
    return frozenset(
        device_number(device) for device, kind in table.types.items() if may_hang(kind)
    )
