"""
Walking directories for regular files, without touching what might not answer.

scandir, /proc/self/mountinfo (Documentation/filesystems/proc.rst).  Links are not
followed.  File systems that ask a server or a daemon are not entered, nor those of the
kernel, whose files are no memory.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.kernel.mounts import PROC_MAGIC, may_hang, parse_mounts
from memlens.kernel.procfs import Host, read_file
from memlens.kernel.syscalls import fstatfs_type, status_of
from memlens.objects.backing import open_quietly, special_kind
from memlens.objects.leases import LEASED, Leases

_MAY_HANG = "may not answer: not entered"
_OF_KERNEL = "a file system of the kernel: not entered"

# By type, as mountinfo has it.
_KERNELS_OWN = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf"),
        *("configfs", "pstore", "mqueue", "devpts", "binfmt_misc", "fusectl", "efivarfs"),
        *("selinuxfs", "nsfs", "rpc_pipefs"),
    }
)


class OpenFile(NamedTuple):
    """
    A regular file that a walk came to.

    :param path: as it was reached, raw.
    :param fd: open for reading, closed by the walk when it goes on; -1 if ``reason``.
    :param status: as fstat gives it, None if ``reason``.
    :param reason: why it could not be opened.
    """

    path: str
    fd: int
    status: os.stat_result | None
    reason: str = ""


@dataclass(slots=True)
class FileWalk:
    """
    A walk over files and directories.

    :param host: lists leases and mounts.
    :param one_file_system: whether to stay on the file system of each directory named.

    ``skipped`` are directories that were not entered, with the reason; ``vanished``
    counts what went away meanwhile, ``special`` what is neither file nor directory.
    """

    host: Host
    one_file_system: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    directories: int = 0
    vanished: int = 0
    special: int = 0
    leases: Leases = field(init=False)
    _reasons: dict[str, str] | None = None
    _kernels_own: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leases = Leases(self.host)

    def iter_files(self, paths: list[str]) -> Iterator[OpenFile]:
        """
        Yield every regular file, each open until the next is asked for.

        :param paths: files and directories, as the user names them; links among them are
            followed.
        """
        for path in paths:
            try:
                status = os.stat(path)
            except (OSError, ValueError) as error:
                yield OpenFile(path, -1, None, _reason(error))
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(path, status.st_dev)
            elif self._is_of_kernel(path, status.st_dev):
                yield OpenFile(path, -1, None, _OF_KERNEL)
            elif stat.S_ISREG(status.st_mode):
                yield from _yield_open(self._open(path, path, None, status.st_ino))
            else:
                reason = f"{special_kind(status.st_mode)}: never opened"
                yield OpenFile(path, -1, None, reason)

    def _walk(self, top: str, device: int) -> Iterator[OpenFile]:
        # What a user names is entered even if it may hang; files of the kernel never.
        if self._is_of_kernel(top, device):
            self.skipped.append((top, _OF_KERNEL))
            return
        pending = [top]
        while pending:
            path = pending.pop()
            try:
                fd = open_quietly(path, None, os.O_DIRECTORY | _follow(path == top))
            except OSError as error:
                self._miss(path, error)
                continue
            try:
                if self.one_file_system and os.fstat(fd).st_dev != device:
                    self.skipped.append((path, "another file system"))
                    continue
                self.directories += 1
                yield from self._scan(fd, path, pending)
            finally:
                os.close(fd)

    def _scan(self, fd: int, path: str, pending: list[str]) -> Iterator[OpenFile]:
        prefix = path if path.endswith("/") else f"{path}/"
        real = ""
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_file(follow_symlinks=False):
                        item = self._open(prefix + name, name, fd, entry.inode())
                        yield from _yield_open(item)
                    elif entry.is_dir(follow_symlinks=False):
                        real = real or os.path.realpath(path)
                        reason = self._closed_reason(f"{real.rstrip('/')}/{name}")
                        if reason:
                            self.skipped.append((prefix + name, reason))
                        else:
                            pending.append(prefix + name)
                    elif not entry.is_symlink():
                        self.special += 1
        except OSError as error:
            self._miss(path, error)

    def _open(self, path: str, name: str, dir_fd: int | None, inode: int) -> OpenFile | None:
        """Return a file, open; None if it went away or is none any more."""
        flags = 0 if dir_fd is None else os.O_NOFOLLOW
        try:
            if self.leases.has_named(name, dir_fd, inode):
                return OpenFile(path, -1, None, LEASED)
            fd = open_quietly(name, dir_fd, flags)
        except OSError as error:
            if dir_fd is not None and error.errno in (errno.ENOENT, errno.ELOOP, errno.ESTALE):
                self.vanished += 1
                return None
            return OpenFile(path, -1, None, _reason(error))
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        # It may have been replaced since the directory was read; O_NONBLOCK opens a pipe
        # without waiting.
        if stat.S_ISREG(status.st_mode):
            return OpenFile(path, fd, status)
        os.close(fd)
        self.special += 1
        return None

    def _is_of_kernel(self, path: str, device: int) -> bool:
        """Return whether what a path is on is one of the kernel's own file systems."""
        if device not in self._kernels_own:
            place = os.path.realpath(path)
            while place not in self._mounts() and place != "/":
                place = os.path.dirname(place)
            self._kernels_own[device] = self._mounts().get(place) == _OF_KERNEL
        return self._kernels_own[device]

    def _closed_reason(self, real: str) -> str:
        return self._mounts().get(real, "")

    def _mounts(self) -> dict[str, str]:
        if self._reasons is None:
            self._reasons = read_mount_reasons(self.host)
        return self._reasons

    def _miss(self, path: str, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR):
            self.vanished += 1
        else:
            self.skipped.append((path, _reason(error)))


def read_mount_reasons(host: Host) -> dict[str, str]:
    """Return all mount points with the reason why a walk does not enter them, or ""."""
    try:
        raw = read_file(f"{host.root}/self/mountinfo")
    except OSError:
        return {}
    return parse_mount_reasons(raw)


def parse_mount_reasons(raw: bytes) -> dict[str, str]:
    """
    Return the mount points of mountinfo with the reason not to enter them, "" for none.

    >>> parse_mount_reasons(b"24 1 0:21 / /net rw - nfs4 srv:/ rw")
    {'/net': 'nfs4 may not answer: not entered'}

    Of mounts on one another the last counts.
    """
    return {mount.mount_point: _reason_to_stay_out(mount.kind) for mount in parse_mounts(raw)}


def _reason_to_stay_out(kind: str) -> str:
    if kind in _KERNELS_OWN:
        return _OF_KERNEL
    return f"{kind} {_MAY_HANG}" if may_hang(kind) else ""


def _yield_open(item: OpenFile | None) -> Iterator[OpenFile]:
    """Yield a file, if there is one, and close it."""
    if item is not None:
        try:
            yield item
        finally:
            if item.fd >= 0:
                os.close(item.fd)


def _follow(is_top: bool) -> int:
    return 0 if is_top else os.O_NOFOLLOW


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return "not a file name"
    return os.strerror(error.errno) if error.errno else str(error)


# Finding a file by its path without asking a file system that may never answer.
#
# openat(2) with O_PATH opens nothing; before a name is looked up in a directory, its file
# system is known from statx(2), which asks nobody outside of the kernel.


# As the kernel has it (MAXSYMLINKS, include/linux/namei.h).
_LINKS_AT_MOST = 40
_HOLD = os.O_PATH | os.O_CLOEXEC


def hold_quietly(path: bytes, check: Callable[[int], None]) -> int:
    """
    Return an O_PATH descriptor of what a path leads to; links are followed.

    :param check: called with a descriptor of everything on the way, before it is asked
        anything, and of what is returned; raises if it must not be asked.
    :raises OSError: as openat(2) gives it.
    """
    # Of an empty path the kernel says that there is none.
    current = os.open(path and _beginning(path), _HOLD)
    try:
        names, links = _names(path), 0
        while True:
            check(current)
            if not names:
                return current
            found, target = _step(current, names.pop(0))
            if target:
                links += 1
                if links > _LINKS_AT_MOST:
                    os.close(found)
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                names = _names(target) + names
            os.close(current)
            current = found
    except BaseException:
        os.close(current)
        raise


def _beginning(path: bytes) -> bytes:
    return b"/" if path.startswith(b"/") else b"."


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _step(directory: int, name: bytes) -> tuple[int, bytes]:
    """Return what a name leads to; of a link, where its text begins, and the text."""
    found = os.open(name, _HOLD | os.O_NOFOLLOW, dir_fd=directory)
    if not stat.S_ISLNK(status_of(found).mode):
        return found, b""
    try:
        if fstatfs_type(directory) == PROC_MAGIC:
            # Those of fd, root and the like lead to a file whatever their text is.
            return os.open(name, _HOLD, dir_fd=directory), b""
        target = os.readlink(name, dir_fd=directory)
    finally:
        os.close(found)
    if target.startswith(b"/"):
        return os.open(b"/", _HOLD), target
    return os.dup(directory), target
