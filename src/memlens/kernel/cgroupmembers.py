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
    Return the directory of a cgroup.

    :param path: the directory, or a path as /proc/PID/cgroup gives it.
    :raises MemlensError: if there is no such cgroup.
    """
    for directory in (path, find_hierarchy(proc).directory_of(path)):
        try:
            if os.path.exists(f"{directory}/cgroup.procs"):
                return directory.rstrip("/")
        except ValueError:
            break
    raise MemlensError("no such cgroup", path=path)


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
