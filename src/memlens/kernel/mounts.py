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


TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
HUGETLBFS_MAGIC = 0x958458F6
OVERLAYFS_MAGIC = 0x794C7630
BTRFS_MAGIC = 0x9123683E
PROC_MAGIC = 0x9FA0

# The kinds of objects by file system; all others are plain files.
KIND_BY_MAGIC = {
    TMPFS_MAGIC: "shmem",
    RAMFS_MAGIC: "ramfs",
    HUGETLBFS_MAGIC: "hugetlb",
    OVERLAYFS_MAGIC: "overlay",
}

# File systems whose files are windows on the kernel, not pages on a disk.
KERNEL_MAGICS = {
    PROC_MAGIC: "proc",
    0x62656572: "sysfs",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x09041934: "anon_inode",
    0x5345434D: "secretmem",
    0xA10A10A1: "aio",
}

# Asking these runs a daemon or waits for a server, which may never answer.
_HANGING = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "9p", "lustre", "autofs", "coda"),
        *("fuse", "fuseblk"),
    }
)


def may_hang(kind: str) -> bool:
    """
    Return whether a question to a file system of this type may never be answered.

    >>> [kind for kind in ("ext4", "fuse.sshfs", "fuseblk", "fusion") if may_hang(kind)]
    ['fuse.sshfs', 'fuseblk']
    """
    return kind in _HANGING or kind.startswith("fuse.")
