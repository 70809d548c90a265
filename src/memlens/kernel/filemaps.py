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

# Lines with an inode; anonymous mappings have 0.
_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (...). ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([1-9][0-9]*) ", re.M
)


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
    _by_file: dict[tuple[bytes, bytes], list[tuple[int, tuple[bytes, ...]]]] = field(
        default_factory=dict
    )
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
        index = self._by_file
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
            pid = int(name)
            self.pids += 1
            for row in _LINE.findall(raw):
                index.setdefault((row[4], row[5]), []).append((pid, row))

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
        rows = self._by_file.get(key, ())
        return [
            FileMapping(pid, int(row[0], 16), int(row[1], 16), int(row[3], 16))
            for pid, row in rows
        ]

    def _device(self, number: int) -> bytes:
        known = self._devices.get(number)
        if known is None:
            known = b"%02x:%02x" % (os.major(number), os.minor(number))
            self._devices[number] = known
        return known

    def _key_of_fd(self, fd: int) -> tuple[bytes, bytes]:
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
