"""
The files of mounted tmpfs, in any mount namespace.

openat(2) and statx(2) relative to descriptors: neither a path longer than PATH_MAX nor the
end of a process stands in the way, and no other mount is asked.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.kernel.mounts import Mount, may_hang
from memlens.kernel.procfs import Host, decode_bytes, encode_text
from memlens.kernel.syscalls import AT_SYMLINK_NOFOLLOW, FileStatus, status_of, statx_cached
from memlens.objects.namespaces import Entrance

SHMEM_TYPES = frozenset({"tmpfs", "devtmpfs"})

# Bytes of a path that one call takes, with the zero at its end (include/uapi/linux/limits.h).
_PATH_MAX = 4096
_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TmpfsFile(NamedTuple):
    """
    A regular file of a tmpfs, or a symbolic link that owns memory.

    :param path: as the mount namespace names it, raw.
    :param root: root directory that the path begins at.
    :param device: as ``st_dev``.
    :param blocks: 512-byte units that it owns in RAM and on swap.
    """

    path: str
    root: Entrance
    device: int
    inode: int
    size_bytes: int
    blocks: int
    uid: int
    changed_s: float
    is_link: bool = False

    def hold(self) -> int:
        """
        Return an O_PATH descriptor of what has its name now.

        :raises OSError: as openat(2) gives it.
        """
        with self.root.opened() as root:
            return open_below(root, encode_text(self.path), _HOLD)


@dataclass(slots=True)
class TmpfsWalk:
    """
    Goes through the files of a mounted tmpfs.

    :param root: root directory that the mount point begins at.
    :param mount: the mount.
    :param host: asked often whether to stop; what it raises ends the walk.
    :param unread: directories that could not be read, and why.
    """

    root: Entrance
    mount: Mount
    host: Host
    unread: list[tuple[str, str]] = field(default_factory=list)
    _top: FileStatus | None = None

    def list_files(self, starts: Iterable[str]) -> Iterator[TmpfsFile]:
        """
        Yield its regular files, and the symbolic links that own a page.

        The target of a link is in a page if it is longer than 128 bytes (mm/shmem.c).  Other
        mounts are not entered.

        :param starts: files and directories to begin at, relative to the mount point, "" for
            itself.  If that is a file, mounted over another, it is listed in any case.
        :raises OSError: if the mount cannot be reached.
        """
        with self.root.opened() as root:
            top = open_below(root, encode_text(self.mount.mount_point), _HOLD)
            try:
                status = self._top = status_of(top)
                self._check_mount(status)
                if not stat.S_ISDIR(status.mode):
                    yield from self._file(b"", status)
                    return
                for start in starts:
                    yield from self._begin(top, encode_text(start))
            finally:
                os.close(top)

    def _check_mount(self, status: FileStatus) -> None:
        is_mount = status.mount_id in (0, self.mount.mount_id)
        if status.device != self.mount.device or not is_mount:
            raise OSError(errno.EBUSY, "covered by another mount")

    def _begin(self, top: int, start: bytes) -> Iterator[TmpfsFile]:
        try:
            held = open_below(top, start, _HOLD)
        except FileNotFoundError:
            return
        except OSError as error:
            self._miss(start, error)
            return
        try:
            status = status_of(held)
        finally:
            os.close(held)
        if stat.S_ISDIR(status.mode):
            yield from self._walk(top, start)
        elif self._is_here(status):
            yield from self._file(start, status)

    def _walk(self, top: int, start: bytes) -> Iterator[TmpfsFile]:
        stack = [start]
        while stack:
            below = stack.pop()
            self.host.check_stop()
            try:
                directory = _open_directory(top, below)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._miss(below, error)
                continue
            try:
                if self._is_here(status_of(directory)):
                    yield from self._list(directory, below, stack)
            finally:
                os.close(directory)

    def _list(self, directory: int, below: bytes, stack: list[bytes]) -> Iterator[TmpfsFile]:
        is_refused = False
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                is_owner = entry.is_file(follow_symlinks=False) or entry.is_symlink()
                if not (is_directory or is_owner):
                    continue
                path = os.path.join(below, os.fsencode(entry.name))
                try:
                    status = statx_cached(entry.name, directory, AT_SYMLINK_NOFOLLOW)
                except OSError as error:
                    # One that may be read but not searched.
                    if isinstance(error, PermissionError) and not is_refused:
                        is_refused = True
                        self._miss(below, error)
                    continue
                if not self._is_here(status):
                    continue
                if is_directory:
                    stack.append(path)
                else:
                    yield from self._file(path, status)

    def _is_here(self, status: FileStatus) -> bool:
        """Return whether a file is of this mount, and not of one that covers it."""
        top = self._top
        return top is not None and (status.device, status.mount_id) == (
            top.device,
            top.mount_id,
        )

    def _miss(self, below: bytes, error: OSError) -> None:
        self.unread.append((self._path(below), error.strerror or str(error)))

    def _path(self, below: bytes) -> str:
        point = self.mount.mount_point
        return os.path.join(point, decode_bytes(below)) if below else point

    def _file(self, below: bytes, status: FileStatus) -> Iterator[TmpfsFile]:
        is_link = stat.S_ISLNK(status.mode) and status.blocks > 0
        if is_link or stat.S_ISREG(status.mode):
            yield TmpfsFile(
                path=self._path(below),
                root=self.root,
                device=status.device,
                inode=status.inode,
                size_bytes=status.size_bytes,
                blocks=status.blocks,
                uid=status.uid,
                changed_s=status.changed_s,
                is_link=is_link,
            )


def check_reachable(mount: Mount, mounts: Iterable[Mount]) -> None:
    """
    Raise OSError if the way to a mount leads through one that could hang.

    :param mounts: all mounts of its namespace.
    """
    hanging = [m.mount_point for m in mounts if may_hang(m.kind)]
    if any(is_below(mount.mount_point, point) for point in hanging):
        raise OSError(errno.EIO, "below a mount that could hang")


def is_below(path: str, point: str) -> bool:
    """
    Return whether a path is below another, and not that itself.

    >>> [is_below(path, "/a") for path in ("/a/b", "/a", "/ab")]
    [True, False, False]
    """
    return path != point and path.startswith(point.rstrip("/") + "/")


def open_below(directory: int, path: bytes, flags: int) -> int:
    """
    Open a path of any length.

    :param directory: descriptor that the path begins at, also if it has a slash in front.
    :raises OSError: as openat(2) gives it.
    """
    rest = path.strip(b"/") or b"."
    current = directory
    try:
        while len(rest) >= _PATH_MAX:
            cut = rest.rindex(b"/", 0, _PATH_MAX)
            held = os.open(rest[:cut], _HOLD | os.O_DIRECTORY, dir_fd=current)
            if current != directory:
                os.close(current)
            current, rest = held, rest[cut + 1 :]
        return os.open(rest, flags, dir_fd=current)
    finally:
        if current != directory:
            os.close(current)


def _open_directory(top: int, below: bytes) -> int:
    try:
        return open_below(top, below, _LIST | os.O_NOATIME)
    except PermissionError as error:
        # Reading directories of others without a trace is for the privileged.
        if error.errno != errno.EPERM:
            raise
        return open_below(top, below, _LIST)
