"""
Files that processes map or have open.

A file that nobody holds can be found only by walking the directory that it is in.
"""

import os
import stat
from collections.abc import Iterable, Iterator

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.maps import Mapping
from memlens.kernel.mounts import KERNEL_MAGICS, may_hang
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import list_pids
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.objects.backing import Backing
from memlens.objects.leases import LEASED, Leases
from memlens.objects.opener import Opener, device_number, parse_mount_table, reopen
from memlens.physical.files import FileFigures, FileScan, unknown_file

# Kinds of objects whose pages are in the page cache.
_KINDS = frozenset({"file", "shmem", "ramfs", "overlay", "hugetlb"})


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
            mappings = process.read_maps()
            yield from self._mapped(opener, mappings)
            yield from self._opened(process)

    def _mapped(self, opener: Opener, mappings: Iterable[Mapping]) -> Iterator[FileFigures]:
        for mapping in mappings:
            if not mapping.has_object or opener.facts(mapping).kind not in _KINDS:
                continue
            named = device_number(mapping.device), mapping.inode
            if not self.scan.is_new(*named):
                continue
            backing = opener.open(mapping)
            if isinstance(backing, str):
                self.refused += 1
                yield unknown_file(mapping.path, backing)
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
        else:
            yield from self._look(backing, path)

    def _look(self, backing: Backing, path: str) -> Iterator[FileFigures]:
        try:
            status = os.fstat(backing.fd)
            row = self.scan.look_at(path, backing.fd, status)
        except OSError:
            return
        finally:
            backing.close()
        yield row


def _hanging_devices(process: ProcessDir) -> frozenset[int]:
    try:
        table = parse_mount_table(process.read("mountinfo"))
    except MemlensError:
        return frozenset()
    return frozenset(
        device_number(device) for device, kind in table.types.items() if may_hang(kind)
    )
