"""
Which processes map which files: /proc/PID/maps of all of them, read once.

Documentation/filesystems/proc.rst.  Lines stay text until their file is asked about; this
module imports no numpy.
"""

import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.errors import Unsupported
from memlens.kernel.procfs import read_file

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

    :param proc: root of the /proc to read.

    ``denied`` counts processes that this user may not look at.
    """

    proc: str = "/proc"
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
            names = os.listdir(self.proc)
        except OSError as error:
            message = f"{self.proc} is not a proc file system"
            raise Unsupported(message, path=self.proc) from error
        for name in names:
            if not name.isdecimal():
                continue
            try:
                raw = read_file(f"{self.proc}/{name}/maps")
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
