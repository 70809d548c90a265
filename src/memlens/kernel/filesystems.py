"""File systems, by the number of statfs(2) (linux/magic.h) and by the name in mountinfo."""

TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
HUGETLBFS_MAGIC = 0x958458F6
OVERLAYFS_MAGIC = 0x794C7630
BTRFS_MAGIC = 0x9123683E
PROC_MAGIC = 0x9FA0
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
