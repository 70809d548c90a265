"""The root directories, mounts and namespaces that processes and their threads have."""

import os
from contextlib import suppress
from dataclasses import dataclass, field

from memlens.kernel.entrance import (
    NAMESPACE_FLAGS,
    ROOT_FLAGS,
    Entrance,
    list_other_threads,
    namespace_inode,
)
from memlens.kernel.mounts import Mount, parse_mounts
from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import statx_cached

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

    :param proc: root of the /proc to read.
    :param views: by mount namespace, and mount, device and inode of the root directory: the
        name of it does not tell those of detached mounts, which all are called ``/``.
    :param ipc: the way into each IPC namespace, by its number.
    """

    proc: str
    views: dict[tuple[int, int, int, int], View] = field(default_factory=dict)
    ipc: dict[int, Entrance] = field(default_factory=dict)
    _held: list[Entrance] = field(default_factory=list)

    def add(self, pid: int) -> None:
        """Take in a process, and its threads: each may have entered others."""
        path = f"{self.proc}/{pid}"
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
