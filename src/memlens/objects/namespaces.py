"""
Ways into what processes share: their root directories and namespaces.

/proc/PID/root and /proc/PID/ns, and those of threads below /proc/PID/task (namespaces(7)).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from memlens.kernel.mounts import Mount, parse_mounts
from memlens.kernel.procfs import Host, read_file
from memlens.kernel.syscalls import FileStatus, status_of, statx_cached

ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
NAMESPACE_FLAGS = os.O_RDONLY | os.O_CLOEXEC


@dataclass(slots=True)
class Entrance:
    """
    A root directory or a namespace, reached through any process that has it.

    :param status: what tells it from others.
    :param flags: how it is opened.
    :param paths: its names in /proc, one for each process or thread that has it.
    """

    status: FileStatus
    flags: int
    paths: list[str] = field(default_factory=list)
    _fd: int = -1

    def hold(self) -> None:
        """
        Keep it open, so that it is reached also when those that have it now have ended.

        :raises OSError: if none of them leads to it any more.
        """
        if self._fd < 0:
            self._fd = self._open()

    def close(self) -> None:
        """Keep it open no longer; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def opened(self) -> Iterator[int]:
        """
        Yield a descriptor of it, which is not for the caller to close.

        :raises OSError: if nobody leads to it any more.
        """
        if self._fd >= 0:
            yield self._fd
            return
        fd = self._open()
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self) -> int:
        failure: OSError = FileNotFoundError(2, "no process is in it any more")
        for path in self.paths:
            try:
                fd = os.open(path, self.flags)
            except OSError as error:
                failure = failure if isinstance(error, FileNotFoundError) else error
                continue
            # The process may be another one by now, or have gone elsewhere.
            if is_same_place(status_of(fd), self.status):
                return fd
            os.close(fd)
        raise failure


def is_same_place(one: FileStatus, other: FileStatus) -> bool:
    """Return whether two are the same file, reached through the same mount."""
    return (one.device, one.inode, one.mount_id) == (other.device, other.inode, other.mount_id)


def namespace_inode(process_fd: int, name: str, below: str = "") -> int:
    """
    Return the number of a namespace of a process: ``mnt``, ``ipc``, ``pid``.

    :param below: ``task/TID/`` for that of a thread.
    :raises OSError: if it may not be read.
    """
    return os.stat(f"{below}ns/{name}", dir_fd=process_fd).st_ino


def ipc_number(text: str) -> int:
    """
    Return the number of the IPC namespace that a link of fd or a mount's root names, or 0.

    >>> ipc_number("ipc:[4026531839]"), ipc_number("mnt:[4026531841]")
    (4026531839, 0)
    """
    if not text.startswith("ipc:["):
        return 0
    digits = text[5:].removesuffix("]")
    return int(digits) if digits.isdecimal() else 0


def list_other_threads(process_fd: int, pid: int) -> list[int]:
    """
    Return the threads of a process but the first, [] where they may not be seen.

    :param process_fd: its directory in /proc.
    :param pid: its PID there.
    """
    try:
        # Two links, and one for each thread (proc_task_getattr, fs/proc/base.c).
        if os.stat("task", dir_fd=process_fd).st_nlink <= 3:
            return []
        fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process_fd)
    except OSError:
        return []
    try:
        return [int(name) for name in os.listdir(fd) if name != str(pid)]
    except OSError:
        return []
    finally:
        os.close(fd)


# Descriptors are few on some machines: the rest is reached through processes that still live.
_HELD = 128


@dataclass(frozen=True, slots=True)
class View:
    """
    What processes of one mount namespace with one root directory see.

    :param namespace: number of the mount namespace.
    :param root: the way to the root directory.
    :param mounts: those below it, in the order of mountinfo.
    """

    namespace: int
    root: Entrance
    mounts: list[Mount]


@dataclass(slots=True)
class Surroundings:
    """
    Collects what processes are surrounded by, each once.

    :param host: whose processes they are.
    :param views: by mount namespace, and mount, device and inode of the root directory: the
        name of it does not tell those of detached mounts, which all are called ``/``.
    :param ipc: the way into each IPC namespace, by its number.
    """

    host: Host
    views: dict[tuple[int, int, int, int], View] = field(default_factory=dict)
    ipc: dict[int, Entrance] = field(default_factory=dict)
    _held: list[Entrance] = field(default_factory=list)

    def add(self, pid: int) -> None:
        """Take in a process, and its threads: each may have entered others."""
        path = f"{self.host.root}/{pid}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if self._add(fd, path):
                for thread in list_other_threads(fd, pid):
                    self._add(fd, path, f"task/{thread}/")
        finally:
            os.close(fd)

    def close(self) -> None:
        """Hold nothing open any more; twice is fine."""
        for entrance in self._held:
            entrance.close()
        self._held.clear()

    def _add(self, fd: int, path: str, below: str = "") -> bool:
        """Take in one thread, and return whether others of its process are to be asked."""
        try:
            self._add_ipc(fd, path, below)
            self._add_view(fd, path, below)
        except PermissionError:
            return False
        except OSError:
            # It ended: that of a process may have others left.
            pass
        return True

    def _add_ipc(self, fd: int, path: str, below: str) -> None:
        number, name = namespace_inode(fd, "ipc", below), f"{below}ns/ipc"
        entrance = self.ipc.get(number)
        if entrance is None:
            entrance = self.ipc[number] = Entrance(statx_cached(name, fd), NAMESPACE_FLAGS)
            self._take(entrance, f"{path}/{name}")
        else:
            entrance.paths.append(f"{path}/{name}")

    def _add_view(self, fd: int, path: str, below: str) -> None:
        name = f"{below}root"
        # A root on a file system that hangs is told all the same.
        status = statx_cached(name, fd)
        namespace = namespace_inode(fd, "mnt", below)
        key = (namespace, status.mount_id, status.device, status.inode)
        view = self.views.get(key)
        if view is None:
            mounts = parse_mounts(read_file(f"{below}mountinfo", fd))
            view = self.views[key] = View(namespace, Entrance(status, ROOT_FLAGS), mounts)
            self._take(view.root, f"{path}/{name}")
        else:
            view.root.paths.append(f"{path}/{name}")

    def _take(self, entrance: Entrance, path: str) -> None:
        """Keep the first ones open: their processes may end before they are looked at."""
        entrance.paths.append(path)
        if len(self._held) < _HELD:
            self._held.append(entrance)
            # It may end just now, or descriptors be scarce: others may lead there later.
            with suppress(OSError):
                entrance.hold()
