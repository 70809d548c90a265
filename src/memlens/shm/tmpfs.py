"""Every file of every tmpfs, through whichever mounts and namespaces show it."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.kernel.mounts import TMPFS_MAGIC, UNNAMED, Mount
from memlens.kernel.procfs import encode_text
from memlens.kernel.syscalls import FileStatus, fstatfs_type, statx_cached
from memlens.objects.namespaces import Entrance, View, is_same_place
from memlens.objects.tmpfs import (
    SHMEM_TYPES,
    TmpfsFile,
    TmpfsWalk,
    check_reachable,
    is_below,
    open_below,
)
from memlens.report import Missed
from memlens.scan.sweep import Sweep
from memlens.units import count_of

_NAMED = 3

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

    :param sweep: a sweep that has run.
    :param own: number of our mount namespace.
    :param missed: what could not be listed.
    :param places: where each tmpfs was reached, by device.
    :param unread: devices with directories that could not be read.
    :param covered: devices of which a file without a name is mounted out of reach.
    """

    sweep: Sweep
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
            self.sweep.machine.check_stop()
            for file in self._list(way):
                self.sweep.machine.check_stop()
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
        for view in self.sweep.around.views.values():
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

        return self.sweep.devices.is_shmem(view.root.status.device, look)

    def _list(self, way: _Way) -> Iterator[TmpfsFile]:
        mount = way.mount
        seen = self._seen.setdefault(mount.device, Coverage())
        starts = self._starts(way, seen)
        if not starts and mount.root == WHOLE:
            return
        walk = TmpfsWalk(way.view.root, mount, self.sweep.machine)
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


WHOLE = "/"


def _is_in(path: str, place: str) -> bool:
    return path == place or is_below(path, place)
