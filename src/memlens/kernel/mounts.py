"""
/proc/PID/mountinfo: what is mounted where.

Documentation/filesystems/proc.rst, section 3.5.
"""

import os
from dataclasses import dataclass

from memlens.kernel.procfs import decode_bytes, unescape_path

# How mountinfo ends the root of a mount of what has no name any more (fs/d_path.c).
UNNAMED = "//deleted"


@dataclass(frozen=True, slots=True)
class Mount:
    """
    One line of mountinfo.

    :param mount_id: number of the mount, as fdinfo has it.
    :param device: as ``st_dev``.
    :param root: directory of the file system that is mounted, "/" for all of it.
    :param mount_point: relative to the root of the process.
    :param kind: file system type.
    :param options: those of the file system, raw: ``unescape_path`` is for each value.
    """

    mount_id: int
    device: int
    root: str
    mount_point: str
    kind: str
    options: str


def parse_mounts(raw: bytes) -> list[Mount]:
    """
    Return the mounts of a mountinfo file, in its order: of two at one place the last is seen.

    >>> parse_mounts(b"24 1 0:21 / /dev/shm rw - tmpfs tmpfs rw")[0].mount_point
    '/dev/shm'
    """
    found = []
    for line in decode_bytes(raw).split("\n"):
        head, dash, tail = line.partition(" - ")
        if not dash:
            continue
        fields = head.split(" ")
        kind, _, rest = tail.partition(" ")
        major, _, minor = fields[2].partition(":")
        found.append(
            Mount(
                mount_id=int(fields[0]),
                device=os.makedev(int(major), int(minor)),
                root=unescape_path(fields[3]),
                mount_point=unescape_path(fields[4]),
                kind=kind,
                options=rest.partition(" ")[2],
            )
        )
    return found
