"""
The memory cgroup of a process, and what it is charged.

Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

import os
from typing import NamedTuple

from memlens.kernel.procfs import decode_bytes, read_file


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
    """

    root: str
    version: int

    def swap_bytes(self, path: str) -> int | None:
        """
        Return the swap that a cgroup is charged, with those below it, in bytes.

        :return: None if the kernel does not say.
        """
        base = f"{self.root}{path}".rstrip("/")
        if self.version == 2:
            return _read_number(f"{base}/memory.swap.current")
        stat = _read_stat(f"{base}/memory.stat")
        return stat.get("total_swap", stat.get("swap"))


def find_hierarchy(proc: str = "/proc") -> MemoryHierarchy:
    """Return where the memory controller is mounted."""
    unified = ""
    try:
        mounts = decode_bytes(read_file(f"{proc}/self/mountinfo")).split("\n")
    except OSError:
        return MemoryHierarchy("", 2)
    for line in mounts:
        head, _, tail = line.partition(" - ")
        if not tail:
            continue
        kind, _, options = tail.split(" ", 2)
        point = head.split(" ")[4]
        if kind == "cgroup" and "memory" in options.split(","):
            return MemoryHierarchy(point, 1)
        if kind == "cgroup2" and not unified:
            unified = point
    return MemoryHierarchy(unified, 2)


def cgroup_paths_by_inode(hierarchy: MemoryHierarchy) -> dict[int, str]:
    """Return the path of every cgroup by the inode number that kpagecgroup gives."""
    found = {}
    if hierarchy.root:
        for directory, _, _ in os.walk(hierarchy.root):
            path = directory[len(hierarchy.root) :] or "/"
            try:
                found[os.stat(directory).st_ino] = path
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
    for directory, names, _ in os.walk(hierarchy.root):
        path = directory[len(hierarchy.root) :] or "/"
        if hierarchy.version == 1:
            figures = _read_stat(f"{directory}/memory.stat")
            own = figures["swap"] + figures.get("swapcached", 0) if "swap" in figures else None
        else:
            own = _read_number(f"{directory}/memory.swap.current")
            if own is not None:
                own -= sum(_swap_current(f"{directory}/{name}") for name in names)
        if own is not None:
            found[path] = max(own, 0)
    return found


def _swap_current(directory: str) -> int:
    return _read_number(f"{directory}/memory.swap.current") or 0


def _read_number(path: str) -> int | None:
    try:
        return int(read_file(path))
    except (OSError, ValueError):
        return None


def _read_stat(path: str) -> dict[str, int]:
    try:
        raw = read_file(path).decode()
    except OSError:
        return {}
    rows = (line.split() for line in raw.split("\n"))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}
