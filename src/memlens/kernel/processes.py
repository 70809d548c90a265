"""
/proc/PID/maps of every process: who maps an object.

Documentation/filesystems/proc.rst.  Other processes come and go meanwhile, and an
ordinary user may read few of them: what could not be read is counted.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import PF_KTHREAD, ProcessDir, parse_stat
from memlens.kernel.procfs import Host, read_file


@dataclass(frozen=True, slots=True)
class Mapper:
    """
    One mapping of an object by one process.

    :param pid: the process.
    :param name: its comm, raw.
    :param mapping: the line of its maps.
    :param word: the pagemap word of the page asked about, None if it may not be read.
    """

    pid: int
    name: str
    mapping: Mapping
    word: int | None


def list_pids(host: Host) -> list[int]:
    """Return the processes that this /proc shows, in ascending order."""
    return sorted(int(name) for name in os.listdir(host.root) if name.isdecimal())


def find_mappers(
    device: str, inode: int, address_in: Callable[[Mapping], int | None], host: Host
) -> tuple[list[Mapper], int]:
    """
    Return the mappings of an object that cover a page of it, and how many were missed.

    :param device: as maps prints it.
    :param inode: of the object.
    :param address_in: gives the address of the page in a mapping of the object, None if
        it is not in there.
    :return: the mappings, and the number of processes that could not be read.
    """
    found: list[Mapper] = []
    missed = 0
    for pid in list_pids(host):
        try:
            with ProcessDir(pid, host) as process:
                rows = _mappings_of(process, device, inode)
                for mapping in rows:
                    address = address_in(mapping)
                    if address is not None:
                        word = _word_at(process, address)
                        found.append(Mapper(pid, process.stat.name, mapping, word))
        except AccessDenied:
            missed += 1
        except MemlensError:
            # Ended meanwhile, a zombie or a kernel thread: it maps nothing.
            continue
    return found, missed


def _mappings_of(process: ProcessDir, device: str, inode: int) -> list[Mapping]:
    raw = process.read("maps")
    # Most processes do not name it at all, and parsing is what costs.
    wanted = f" {device} {inode}".encode()
    lines = b"\n".join(line for line in raw.split(b"\n") if wanted in line)
    rows = parse_maps(lines, f"{process.path}/maps")
    return [row for row in rows if row.device == device and row.inode == inode]


def _word_at(process: ProcessDir, address: int) -> int | None:
    try:
        path = f"{process.path}/pagemap"
        pagemap = Pagemap(process.open("pagemap"), process.host, path)
    except MemlensError:
        return None
    try:
        words = pagemap.read_words(address // pagemap.page_size_bytes, 1)
        return int(words[0]) if len(words) else None
    except MemlensError:
        return None
    finally:
        pagemap.close()


# Which processes of the machine this reader can look at.
#
# /proc/PID/stat, /proc/self/status; pid_namespaces(7), capabilities(7), proc(5) on hidepid.


_KTHREADD = 2


def has_all_processes(host: Host) -> bool:
    """
    Return whether a /proc shows every process of the machine.

    The parent of kernel threads is seen through none but the first PID namespace, and not
    through a /proc that hides processes of others.
    """
    try:
        stat = parse_stat(read_file(f"{host.root}/{_KTHREADD}/stat"))
    except (OSError, MemlensError, ValueError, IndexError):
        return False
    return bool(stat.flags & PF_KTHREAD)


# Which process has which parent: /proc/PID/stat of all processes.
#
# Documentation/filesystems/proc.rst.  A child whose parent has ended belongs to PID 1 or to
# the nearest subreaper.


def read_parents(host: Host) -> dict[int, int]:
    """
    Return the parent of every process.

    :raises Unsupported: if ``proc`` is none.
    """
    try:
        names = os.listdir(host.root)
    except OSError as error:
        raise Unsupported(f"{host.root} is not a proc file system", path=host.root) from error
    parents = {}
    for name in names:
        if name.isdecimal():
            try:
                parents[int(name)] = parse_parent(read_file(f"{host.root}/{name}/stat"))
            except (OSError, ValueError, IndexError):
                continue
    return parents


def parse_parent(raw: bytes) -> int:
    """
    Return the PID of the parent from /proc/PID/stat.

    >>> parse_parent(b"7 (a) b) S 3 7 7 0")
    3
    """
    return int(raw.rpartition(b")")[2].split()[1])


def add_descendants(pids: Iterable[int], parents: dict[int, int]) -> list[int]:
    """
    Return processes, each followed by those that descend from it.

    >>> add_descendants([1], {1: 0, 5: 1, 6: 5, 7: 1, 8: 2})
    [1, 5, 6, 7]
    """
    children: dict[int, list[int]] = {}
    for pid, parent in sorted(parents.items()):
        children.setdefault(parent, []).append(pid)
    found: dict[int, None] = {}
    pending = list(reversed(list(pids)))
    while pending:
        pid = pending.pop()
        if pid not in found:
            found[pid] = None
            pending.extend(reversed(children.get(pid, [])))
    return list(found)


# Which processes map which files: /proc/PID/maps of all of them, read once.
#
# Documentation/filesystems/proc.rst.  Lines stay text until their file is asked about; this
# module imports no numpy.


_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (?:...). ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([0-9]+) ", re.M
)
_Key = tuple[bytes, bytes]


class FileMapping(NamedTuple):
    """A mapping of a file; all but ``pid`` in bytes."""

    pid: int
    start: int
    stop: int
    offset: int


@dataclass(slots=True)
class FileMappers:
    """
    An index of mappings by file.

    :param host: whose processes they are.

    ``denied`` counts processes that this user may not look at.
    """

    host: Host
    denied: int = 0
    pids: int = 0
    _raw: dict[int, bytes] = field(default_factory=dict)
    _keys: set[_Key] = field(default_factory=set)
    _by_file: dict[_Key, list[FileMapping]] = field(default_factory=dict)
    _devices: dict[int, bytes] = field(default_factory=dict)
    _mounts: dict[int, bytes] | None = None

    def read(self) -> None:
        """
        Read the mappings of every process.

        :raises Unsupported: if ``proc`` is none.
        """
        try:
            names = os.listdir(self.host.root)
        except OSError as error:
            message = f"{self.host.root} is not a proc file system"
            raise Unsupported(message, path=self.host.root) from error
        for name in names:
            if not name.isdecimal():
                continue
            try:
                raw = read_file(f"{self.host.root}/{name}/maps")
            except PermissionError:
                self.denied += 1
                continue
            except OSError:
                continue
            if raw:
                self._raw[int(name)] = raw
                # Device and inode alone, for most files are mapped by nobody.
                for line in raw.split(b"\n"):
                    fields = line.split(b" ", 5)
                    if len(fields) == 6:
                        self._keys.add((fields[3], fields[4]))
        self.pids = len(self._raw)

    def find(self, status: os.stat_result, fd: int, kind: str) -> list[FileMapping]:
        """
        Return the mappings of a file.

        :param status: of the file.
        :param fd: the file, open; looked at where maps has another device than stat.
        :param kind: of its file system, as ``CacheReader.kind`` has it.
        """
        if kind in ("btrfs", "overlay"):
            key = self._key_of_fd(fd)
        else:
            key = (self._device(status.st_dev), b"%d" % status.st_ino)
        if key not in self._keys or not status.st_ino:
            return []
        if not self._by_file:
            self._parse()
        return self._by_file.get(key, [])

    def _parse(self) -> None:
        for pid, raw in self._raw.items():
            for start, stop, offset, device, inode in _LINE.findall(raw):
                if inode != b"0":
                    row = FileMapping(pid, int(start, 16), int(stop, 16), int(offset, 16))
                    self._by_file.setdefault((device, inode), []).append(row)
        self._raw.clear()

    def _device(self, number: int) -> bytes:
        known = self._devices.get(number)
        if known is None:
            known = b"%02x:%02x" % (os.major(number), os.minor(number))
            self._devices[number] = known
        return known

    def _key_of_fd(self, fd: int) -> _Key:
        """Return device and inode as maps has them, from fdinfo and the table of mounts."""
        try:
            raw = read_file(f"/proc/self/fdinfo/{fd}")
            if self._mounts is None:
                self._mounts = _parse_devices(read_file("/proc/self/mountinfo"))
        except OSError:
            return b"", b""
        lines = (line.partition(b":") for line in raw.split(b"\n"))
        fields = {name: value.strip() for name, _, value in lines}
        device = self._mounts.get(int(fields.get(b"mnt_id", b"-1")), b"")
        return device, fields.get(b"ino", b"")


def _parse_devices(raw: bytes) -> dict[int, bytes]:
    found = {}
    for line in raw.split(b"\n"):
        fields = line.split(b" ", 3)
        if len(fields) == 4:
            major, _, minor = fields[2].partition(b":")
            found[int(fields[0])] = b"%02x:%02x" % (int(major), int(minor))
    return found
