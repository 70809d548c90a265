"""
Which process has which parent: /proc/PID/stat of all processes.

Documentation/filesystems/proc.rst.  A child whose parent has ended belongs to PID 1 or to
the nearest subreaper.
"""

import os
from collections.abc import Iterable

from memlens.errors import Unsupported
from memlens.kernel.procfs import read_file


def read_parents(proc: str = "/proc") -> dict[int, int]:
    """
    Return the parent of every process.

    :raises Unsupported: if ``proc`` is none.
    """
    try:
        names = os.listdir(proc)
    except OSError as error:
        raise Unsupported(f"{proc} is not a proc file system", path=proc) from error
    parents = {}
    for name in names:
        if name.isdecimal():
            try:
                parents[int(name)] = parse_parent(read_file(f"{proc}/{name}/stat"))
            except (OSError, ValueError, IndexError):
                continue
    return parents


def parse_parent(raw: bytes) -> int:
    """
    Return the PID of the parent from /proc/PID/stat.

    >>> parse_parent(b"7 (a) b) S 3 7 7 0")
    3
    """
    return int(raw.rpartition(b")")[2].split()[1])


def add_descendants(pids: Iterable[int], parents: dict[int, int]) -> list[int]:
    """
    Return processes, each followed by those that descend from it.

    >>> add_descendants([1], {1: 0, 5: 1, 6: 5, 7: 1, 8: 2})
    [1, 5, 6, 7]
    """
    children: dict[int, list[int]] = {}
    for pid, parent in sorted(parents.items()):
        children.setdefault(parent, []).append(pid)
    found: dict[int, None] = {}
    pending = list(reversed(list(pids)))
    while pending:
        pid = pending.pop()
        if pid not in found:
            found[pid] = None
            pending.extend(reversed(children.get(pid, [])))
    return list(found)
