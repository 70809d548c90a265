"""
/proc/locks: which files are under a lease that opening them would break.

Documentation/filesystems/proc.rst, fcntl(2) under F_SETLEASE.
"""

import os
import threading
import time

from memlens.kernel.mounts import BTRFS_MAGIC, OVERLAYFS_MAGIC
from memlens.kernel.procfs import Host, read_file
from memlens.kernel.syscalls import fstatfs_type

# Reading /proc/locks takes the file locks of the whole machine for a moment and waits some
# milliseconds for it (percpu_down_write in locks_start, fs/locks.c): not for every object.
_AGE_S = 0.5
LEASED = "under a write lease, which opening would break"


class Leases:
    """
    The leases of the machine, read again when they are older than half a second.

    Each /proc leaves out the leases of processes outside its PID namespace, so that our
    own is read besides.

    :param host: whose leases they are.
    """

    def __init__(self, host: Host) -> None:
        self._proc = host.root
        self._inodes: frozenset[tuple[int, int]] = frozenset()
        self._numbers: frozenset[int] = frozenset()
        self._until = 0.0
        self._reader: threading.Thread | None = None

    def prefetch(self) -> None:
        """Begin to read, for the first question will come soon."""
        self._reader = threading.Thread(target=self._read, name="memlens-leases")
        self._reader.start()

    def has(self, status: os.stat_result) -> bool:
        """Return whether an open for reading would break a lease of this file."""
        return self.has_inode(status.st_dev, status.st_ino)

    def has_inode(self, device: int, inode: int) -> bool:
        """
        Return the same of an inode as the kernel's own files name it.

        On btrfs and on an overlay of several file systems stat(2) gives another device.
        """
        self._refresh()
        return (device, inode) in self._inodes

    def has_named(self, name: str, dir_fd: int | None, inode: int) -> bool:
        """
        Return the same of a file by its name, without opening it.

        :param dir_fd: the directory it is in, None if the user named it.
        :param inode: its number as the directory has it: leases are rare, and most files
            need no look of their own.
        :raises OSError: if it is there no more.
        """
        self._refresh()
        if inode not in self._numbers:
            return False
        # A link is followed only where the user named it.
        follow = 0 if dir_fd is None else os.O_NOFOLLOW
        handle = os.open(name, os.O_PATH | os.O_CLOEXEC | follow, dir_fd=dir_fd)
        try:
            # Where stat(2) gives another device the number alone must do.
            is_mapped = fstatfs_type(handle) in (BTRFS_MAGIC, OVERLAYFS_MAGIC)
            return is_mapped or self.has(os.fstat(handle))
        finally:
            os.close(handle)

    def close(self) -> None:
        """Wait for a read that is under way."""
        if self._reader is not None:
            self._reader.join()
            self._reader = None

    def _refresh(self) -> None:
        self.close()
        if time.monotonic() > self._until:
            self._read()

    def _read(self) -> None:
        found: frozenset[tuple[int, int]] = frozenset()
        for path in dict.fromkeys((f"{self._proc}/locks", "/proc/locks")):
            try:
                found |= parse_leases(read_file(path))
            except OSError:
                continue
        self._inodes = found
        self._numbers = frozenset(number for _, number in found)
        self._until = time.monotonic() + _AGE_S


def parse_leases(raw: bytes) -> frozenset[tuple[int, int]]:
    """
    Return (device, inode) of the files that may not be opened for reading.

    >>> line = b"1: LEASE  ACTIVE    WRITE 77 fe:00:131 0 EOF"
    >>> parse_leases(line) == {(os.makedev(0xfe, 0), 131)}
    True

    A lease for reading is not disturbed by another reader.
    """
    found = set()
    for line in raw.decode().split("\n"):
        fields = line.split()
        if len(fields) > 5 and fields[1] in ("LEASE", "DELEG") and fields[3] != "READ":
            major, minor, inode = fields[5].split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return frozenset(found)
