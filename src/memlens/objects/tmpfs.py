"""
The files of mounted tmpfs, in any mount namespace.

openat(2) and statx(2) relative to descriptors: neither a path longer than PATH_MAX nor the
end of a process stands in the way, and no other mount is asked.
"""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.kernel.mounts import TMPFS_MAGIC, UNNAMED, Mount, may_hang
from memlens.kernel.procfs import Host, decode_bytes, encode_text
from memlens.kernel.syscalls import (
    AT_SYMLINK_NOFOLLOW,
    FileStatus,
    fstatfs_type,
    status_of,
    statx_cached,
)
from memlens.objects.namespaces import Entrance, Surroundings, View, is_same_place
from memlens.report import Missed
from memlens.units import count_of

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


# Every file of every tmpfs, through whichever mounts and namespaces show it.

# Directories of one reason that are named.
_NAMED = 3
WHOLE = "/"

# Stands for the directory of its file system that a root directory is.
_UNKNOWN = "?"


class Place(NamedTuple):
    """Where a tmpfs is mounted: the root directory that its mount point begins at."""

    root: Entrance
    mount_point: str

    def statvfs(self) -> os.statvfs_result:
        """
        Return the figures of the file system there.

        :raises OSError: if it is not reached any more.
        """
        with self.root.opened() as root:
            fd = open_below(root, encode_text(self.mount_point), os.O_PATH | os.O_CLOEXEC)
        try:
            return os.statvfs(fd)
        finally:
            os.close(fd)


class _Way(NamedTuple):
    """A mount of a tmpfs in a view, by which its files may be reached."""

    view: View
    mount: Mount
    covered: frozenset[str]


@dataclass(slots=True)
class Coverage:
    """
    What of one file system was gone through: directories are paths from its own root.

    >>> seen = Coverage()
    >>> seen.starts("/", ["/shm"]), seen.add("/", ["/shm"])
    (['/'], None)
    >>> seen.starts("/", ["/shm", "/pts"]), seen.starts("/", ["/pts"])
    ([], ['/shm'])

    :param hidden: directories not gone through; what lies below one of them is not, either.
    """

    hidden: set[str] = field(default_factory=lambda: {WHOLE})
    _parts: set[tuple[str, frozenset[str]]] = field(default_factory=set)

    def starts(self, root: str, covered: Collection[str]) -> list[str]:
        """
        Return the directories at which to begin, so that a mount shows what is new.

        :param root: what of the file system is mounted.
        :param covered: directories of it that others are mounted over there.
        """
        found = [
            place
            for place in sorted(self.hidden)
            if _is_in(place, root) and not any(_is_in(place, point) for point in covered)
        ]
        is_part = any(is_below(root, place) for place in self.hidden)
        if is_part and (root, frozenset(covered)) not in self._parts:
            found.append(root)
        return found

    def add(self, start: str, covered: Collection[str]) -> None:
        """
        Note that a directory was gone through.

        :param start: one of ``starts``.
        :param covered: as it was given there.
        """
        if start not in self.hidden:
            self._parts.add((start, frozenset(covered)))
            return
        below = {point for point in covered if is_below(point, start)}
        self.hidden.remove(start)
        self.hidden |= {p for p in below if not any(is_below(p, other) for other in below)}

    def is_seen(self, root: str) -> bool:
        """Return whether a directory was gone through, but for what was covered below it."""
        return not any(_is_in(root, place) for place in self.hidden) or any(
            part == root for part, _ in self._parts
        )


@dataclass(slots=True)
class TmpfsListing:
    """
    Lists files; each may come more than once.

    :param around: whose mounts show them.
    :param is_shmem: whether a device is a tmpfs; it is given what finds out from an object.
    :param own: number of our mount namespace.
    :param missed: what could not be listed.
    :param places: where each tmpfs was reached, by device.
    :param unread: devices with directories that could not be read.
    :param covered: devices of which a file without a name is mounted out of reach.
    """

    around: Surroundings
    is_shmem: Callable[[int, Callable[[], bool]], bool]
    own: int
    missed: list[Missed] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    covered: set[int] = field(default_factory=set)
    _own_root: FileStatus | None = None
    _seen: dict[int, Coverage] = field(default_factory=dict)
    _failed: dict[tuple[int, str], Missed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._own_root = statx_cached("/", 0)
        except OSError:
            pass

    def list_files(self) -> Iterator[tuple[TmpfsFile, bool]]:
        """
        Yield files, and whether our own mount namespace does not show them.

        :raises Stopped: if the scan is to end.
        """
        for way in sorted(self._ways(), key=self._order):
            self.around.host.check_stop()
            for file in self._list(way):
                self.around.host.check_stop()
                yield file, self._is_elsewhere(way)
        for (device, root), missed in self._failed.items():
            if not self._seen[device].is_seen(root):
                self.missed.append(missed)

    def _order(self, way: _Way) -> tuple[bool, bool, bool, bool, int]:
        """Return what puts mounts of a whole file system first, and those that we see."""
        root, view = way.mount.root, way.view
        is_jail = self._own_root is None or not is_same_place(view.root.status, self._own_root)
        is_part = root != WHOLE
        return root == _UNKNOWN, is_part, self._is_elsewhere(way), is_jail, view.namespace

    def _is_elsewhere(self, way: _Way) -> bool:
        """Return whether our mount namespace does not show it: of detached mounts none does."""
        return way.view.namespace != self.own or way.mount.root == _UNKNOWN

    def _ways(self) -> Iterator[_Way]:
        for view in self.around.views.values():
            points = [mount.mount_point for mount in view.mounts]
            for mount in view.mounts:
                if mount.kind in SHMEM_TYPES:
                    yield _Way(view, mount, _covered(mount, points))
            if WHOLE not in points and self._is_tmpfs(view):
                yield _Way(view, _root_mount(view), frozenset())

    def _is_tmpfs(self, view: View) -> bool:
        """Return whether the root directory, whose mount it does not see, is on a tmpfs."""

        def look() -> bool:
            with view.root.opened() as root:
                return fstatfs_type(root) == TMPFS_MAGIC

        return self.is_shmem(view.root.status.device, look)

    def _list(self, way: _Way) -> Iterator[TmpfsFile]:
        mount = way.mount
        seen = self._seen.setdefault(mount.device, Coverage())
        starts = self._starts(way, seen)
        if not starts and mount.root == WHOLE:
            return
        walk = TmpfsWalk(way.view.root, mount, self.around.host)
        try:
            check_reachable(mount, way.view.mounts)
            # Also with nothing to begin at: a file may be mounted that has no name any more.
            yield from walk.list_files([_relative(mount, start) for start in starts])
        except OSError as error:
            reason = error.strerror or str(error)
            missed = Missed(f"tmpfs on {mount.mount_point}", reason)
            self._failed.setdefault((mount.device, mount.root), missed)
            if mount.root.endswith(UNNAMED):
                self.covered.add(mount.device)
            return
        self._note_unread(walk)
        self.places.setdefault(mount.device, Place(way.view.root, mount.mount_point))
        for start in starts:
            seen.add(start, way.covered)

    def _starts(self, way: _Way, seen: Coverage) -> list[str]:
        if way.mount.root == _UNKNOWN:
            # It may be a part that nothing else shows.
            return [_UNKNOWN] if seen.hidden else []
        return seen.starts(way.mount.root, way.covered)

    def _note_unread(self, walk: TmpfsWalk) -> None:
        by_reason: dict[str, list[str]] = {}
        for path, reason in walk.unread:
            by_reason.setdefault(reason, []).append(path)
        for reason, paths in by_reason.items():
            self.unread.add(walk.mount.device)
            named = ", ".join(paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
            count = count_of(len(paths), "directory", "directories")
            self.missed.append(Missed(f"{count} of a tmpfs ({named})", reason))


def _covered(mount: Mount, points: list[str]) -> frozenset[str]:
    """Return what of a mount's file system others are mounted over."""
    prefix = mount.mount_point.rstrip("/") + "/"
    return frozenset(
        os.path.join(mount.root, point[len(prefix) :])
        for point in points
        if point.startswith(prefix) and point != mount.mount_point
    )


def _relative(mount: Mount, start: str) -> str:
    """Return a directory of the file system as a path from where it is mounted."""
    return start[len(mount.root) :].strip("/")


def _root_mount(view: View) -> Mount:
    status = view.root.status
    return Mount(
        mount_id=status.mount_id,
        device=status.device,
        root=_UNKNOWN,
        mount_point="/",
        kind="tmpfs",
        options="",
    )


def _is_in(path: str, place: str) -> bool:
    return path == place or is_below(path, place)
