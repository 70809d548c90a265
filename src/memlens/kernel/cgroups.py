"""
The memory cgroup of a process, and what it is charged.

Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from memlens.errors import MemlensError
from memlens.kernel.mounts import parse_mounts
from memlens.kernel.procfs import Host, decode_bytes, raise_errno, read_file


def parse_cgroup(raw: bytes) -> str:
    r"""
    Return the path of the memory cgroup from /proc/PID/cgroup.

    >>> parse_cgroup(b"5:cpu:/a\n4:memory:/b\n0::/c\n")
    '/b'

    With the memory controller on version 1 that hierarchy counts, else version 2.
    """
    unified = "/"
    for line in decode_bytes(raw).split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return path
        if number == "0" and not controllers:
            unified = path
    return unified


class MemoryHierarchy(NamedTuple):
    """
    Where the memory controller is mounted.

    :param root: mount point, "" if it is not mounted.
    :param version: 1 or 2.
    :param top: path of the cgroup that is mounted there, as /proc/PID/cgroup has it; "" for
        the uppermost, and not so where a container shows its own alone.
    """

    root: str
    version: int
    top: str = ""

    def path_of(self, directory: str) -> str:
        """Return the path of a cgroup, as /proc/PID/cgroup has it, by its directory."""
        return f"{self.top}{directory[len(self.root) :]}" or "/"

    def directory_of(self, path: str) -> str:
        """Return the directory of a cgroup by its path; it need not be there."""
        inside = path.removeprefix(self.top) if f"{path}/".startswith(f"{self.top}/") else path
        return f"{self.root}/{inside.lstrip('/')}"


def find_hierarchy(host: Host) -> MemoryHierarchy:
    """Return where the memory controller is mounted."""
    try:
        return parse_hierarchy(read_file(f"{host.root}/self/mountinfo"))
    except OSError:
        return MemoryHierarchy("", 2)


def parse_hierarchy(raw: bytes) -> MemoryHierarchy:
    """
    Return where mountinfo says that the memory controller is mounted.

    >>> parse_hierarchy(b"30 25 0:26 /web /sys/fs/cgroup rw - cgroup2 none rw")
    MemoryHierarchy(root='/sys/fs/cgroup', version=2, top='/web')

    With the controller on version 1 that hierarchy counts, else version 2.
    """
    unified = MemoryHierarchy("", 2)
    # Of two at one place the last is seen.
    for mount in {mount.mount_point: mount for mount in parse_mounts(raw)}.values():
        top = mount.root.rstrip("/")
        if mount.kind == "cgroup" and "memory" in mount.options.split(","):
            return MemoryHierarchy(mount.mount_point, 1, top)
        if mount.kind == "cgroup2" and not unified.root:
            unified = MemoryHierarchy(mount.mount_point, 2, top)
    return unified


def walk_cgroups(directory: str) -> Iterator[tuple[str, list[str]]]:
    """
    Yield a cgroup and all below it, each with the names of those right below it.

    However deep they are: os.walk calls itself at every level before Python 3.12.
    """
    pending = [directory]
    while pending:
        at = pending.pop()
        try:
            with os.scandir(at) as entries:
                names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        yield at, names
        pending += [f"{at}/{name}" for name in reversed(names)]


def cgroup_paths_by_inode(hierarchy: MemoryHierarchy) -> dict[int, str]:
    """Return the path of every cgroup by the inode number that kpagecgroup gives."""
    found = {}
    if hierarchy.root:
        for directory, _ in walk_cgroups(hierarchy.root):
            try:
                found[os.stat(directory).st_ino] = hierarchy.path_of(directory)
            except OSError:
                continue
    return found


def charged_swap(hierarchy: MemoryHierarchy) -> dict[str, int]:
    """
    Return the swap in bytes that each cgroup is charged itself, without those below it.

    Slots whose pages are in RAM again are in it: version 1 lists them apart.

    :return: by path; cgroups of which the kernel does not say are left out.
    """
    found: dict[str, int] = {}
    for directory, names in walk_cgroups(hierarchy.root):
        if hierarchy.version == 1:
            figures = read_memory_stat(directory)
            own = figures["swap"] + figures.get("swapcached", 0) if "swap" in figures else None
        else:
            own = _read_number(f"{directory}/memory.swap.current")
            if own is not None:
                own -= sum(_swap_current(f"{directory}/{name}") for name in names)
        if own is not None:
            found[hierarchy.path_of(directory)] = max(own, 0)
    return found


def _swap_current(directory: str) -> int:
    return _read_number(f"{directory}/memory.swap.current") or 0


def _read_number(path: str) -> int | None:
    try:
        return int(read_file(path))
    except (OSError, ValueError):
        return None


# Which cgroup a path names, and which processes are in it.
#
# Documentation/admin-guide/cgroup-v2.rst; cgroup.procs reads alike in version 1.


_NEEDS = "read access to the cgroup file system"


def find_cgroup(path: str, host: Host) -> str:
    """
    Return the directory of a memory cgroup, below the mount point of the controller.

    :param path: the directory, or a path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is no such cgroup, or it is of another hierarchy: each
        numbers its cgroups anew, so that its number would be another cgroup's here.
    """
    hierarchy = find_hierarchy(host)
    if not hierarchy.root:
        raise MemlensError("no memory cgroups: the controller is not mounted", path=path)
    is_other = False
    for directory in (path, os.path.normpath(hierarchy.directory_of(path))):
        if not _is_cgroup(directory):
            continue
        try:
            if os.stat(directory).st_dev == os.stat(hierarchy.root).st_dev:
                return _below(hierarchy.root, os.path.realpath(directory))
        except OSError as error:
            raise_errno(error, "cannot look at the cgroup", directory, _NEEDS)
        is_other = True
    if is_other:
        message = f"no memory cgroup: the memory controller is mounted on {hierarchy.root}"
        raise MemlensError(message, path=path)
    raise MemlensError("no such cgroup", path=path)


def _is_cgroup(directory: str) -> bool:
    try:
        return os.path.exists(f"{directory}/cgroup.procs")
    except ValueError:
        return False


def _below(root: str, directory: str) -> str:
    """Return the name below ``root`` of a cgroup that is mounted elsewhere as well."""
    if f"{directory}/".startswith(f"{root.rstrip('/')}/"):
        return directory
    number = os.stat(directory).st_ino
    for below, _ in walk_cgroups(root):
        if os.stat(below).st_ino == number:
            return below
    raise MemlensError(f"no such cgroup below {root}", path=directory)


def find_cgroup_path(path: str, host: Host) -> str:
    """
    Return the path of a memory cgroup as /proc/PID/cgroup gives it.

    :param path: as ``find_cgroup`` takes it.
    :raises MemlensError: as ``find_cgroup`` does.
    """
    hierarchy = find_hierarchy(host)
    if not hierarchy.root:
        # Nothing shows which there are; processes say in which they are all the same.
        return os.path.normpath(f"/{path.lstrip('/')}")
    return hierarchy.path_of(find_cgroup(path, host))


def read_cgroup_inode(directory: str) -> int:
    """Return the number by which kpagecgroup names a cgroup."""
    try:
        status = os.stat(directory)
    except OSError as error:
        raise_errno(error, "cannot look at the cgroup", directory, _NEEDS)
    return status.st_ino if stat.S_ISDIR(status.st_mode) else 0


def read_cgroup_pids(directory: str) -> list[int]:
    """
    Return the processes of a cgroup and of those below it, sorted.

    Processes that this /proc does not show, which read 0, are left out.
    """
    pids: set[int] = set()
    for below, _ in walk_cgroups(directory):
        try:
            pids.update(int(line) for line in read_file(f"{below}/cgroup.procs").split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise_errno(error, "cannot read the processes of the cgroup", below, _NEEDS)
    return sorted(pids - {0})


# memory.stat of a memory cgroup.
#
# Documentation/admin-guide/cgroup-v1/memory.rst (sums with those below begin with ``total_``)
# and cgroup-v2.rst (every figure is with those below).


def read_memory_stat(directory: str) -> dict[str, int]:
    """Return the figures of a cgroup by name, empty if there are none."""
    try:
        return parse_memory_stat(read_file(f"{directory}/memory.stat"))
    except OSError:
        return {}


def parse_memory_stat(raw: bytes) -> dict[str, int]:
    """
    Return the figures by name.

    >>> parse_memory_stat(b"anon 4096\\nfile 8192\\n")
    {'anon': 4096, 'file': 8192}
    """
    rows = (line.split() for line in raw.decode("ascii", "replace").split("\n"))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
