"""
Which cgroup a path names, and which processes are in it.

Documentation/admin-guide/cgroup-v2.rst; cgroup.procs reads alike in version 1.
"""

import os
import stat

from memlens.errors import MemlensError
from memlens.kernel.cgroups import find_hierarchy
from memlens.kernel.procfs import raise_errno, read_file

_NEEDS = "read access to the cgroup file system"


def find_cgroup(path: str, proc: str = "/proc") -> str:
    """
    Return the directory of a memory cgroup, below the mount point of the controller.

    :param path: the directory, or a path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is no such cgroup, or it is of another hierarchy: each
        numbers its cgroups anew, so that its number would be another cgroup's here.
    """
    hierarchy = find_hierarchy(proc)
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
    for below, _, _ in os.walk(root):
        if os.stat(below).st_ino == number:
            return below
    raise MemlensError(f"no such cgroup below {root}", path=directory)


def find_cgroup_path(path: str, proc: str = "/proc") -> str:
    """
    Return the path of a memory cgroup as /proc/PID/cgroup gives it.

    :param path: as ``find_cgroup`` takes it.
    :raises MemlensError: as ``find_cgroup`` does.
    """
    hierarchy = find_hierarchy(proc)
    if not hierarchy.root:
        # Nothing shows which there are; processes say in which they are all the same.
        return os.path.normpath(f"/{path.lstrip('/')}")
    return hierarchy.path_of(find_cgroup(path, proc))


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
    for below, _, _ in os.walk(directory):
        try:
            pids.update(int(line) for line in read_file(f"{below}/cgroup.procs").split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise_errno(error, "cannot read the processes of the cgroup", below, _NEEDS)
    return sorted(pids - {0})
