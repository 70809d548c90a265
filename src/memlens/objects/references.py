"""
Loop devices over files that have no name any more: /sys/block/loopN/loop/backing_file,
and LOOP_GET_STATUS64.

Documentation/ABI/testing/sysfs-block-loop, include/uapi/linux/loop.h.  Such a file is no
descriptor of any process.
"""

import fcntl
import os
import stat
import struct
from functools import lru_cache

from memlens.kernel.procfs import Host, decode_bytes, read_file

_DELETED = " (deleted)"
_LOOP_GET_STATUS64 = 0x4C05

# struct loop_info64: lo_device and lo_inode are its first members.
_STATUS_BYTES = 232
_STATUS_HEAD = struct.Struct("=QQ")


def list_deleted_backing_files(host: Host) -> list[tuple[str, str]]:
    """Return name and file, raw, of each loop device whose file was deleted."""
    found = []
    try:
        names = sorted(os.listdir(f"{host.sys}/block"))
    except OSError:
        return []
    for name in names:
        if not name.startswith("loop"):
            continue
        try:
            path = decode_bytes(read_file(f"{host.sys}/block/{name}/loop/backing_file")).rstrip(
                "\n"
            )
        except OSError:
            continue
        if path.endswith(_DELETED):
            found.append((name, path.removesuffix(_DELETED)))
    return found


def read_backing_inode(name: str, host: Host, dev: str = "/dev") -> tuple[int, int]:
    """
    Return device, as ``st_dev``, and inode of the file that a loop device has.

    The device is opened for reading and nothing is read of it.  The kernel asks the file for
    its status, so that this waits if the file is on a file system that does not answer.

    :raises OSError: if its node is not there, is another's, or may not be opened.
    """
    number = read_file(f"{host.sys}/block/{name}/dev").strip().decode()
    # Opening another node, as one of a tape, may do things: first it is held, then opened.
    handle = os.open(f"{dev}/{name}", os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        is_it = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" == number
        if not (stat.S_ISBLK(status.st_mode) and is_it):
            raise OSError(19, os.strerror(19), f"{dev}/{name}")
        # Only what is open for writing is looked at by udev when it is closed.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"/proc/self/fd/{handle}", flags)
    finally:
        os.close(handle)
    try:
        answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_STATUS_BYTES))
    finally:
        os.close(fd)
    device, inode = _STATUS_HEAD.unpack_from(answer)
    return device, inode


# Descriptors in messages that nobody has read: scm_fds in /proc/PID/fdinfo/FD of a socket.
#
# unix(7) on SCM_RIGHTS; commit 3c32da19a858 ("unix: Show number of pending scm files of
# receive queue in fdinfo") (in v5.6).  Only sockets of AF_UNIX have this line.


_MOST_BYTES = 4096
_LINE = b"scm_fds:"


def read_message_descriptors(path: str) -> int | None:
    """
    Return how many descriptors wait in a socket to be received.

    :param path: of its fdinfo.
    :return: None if it is no socket of AF_UNIX, or the kernel does not tell.
    :raises OSError: if it is closed, or may not be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # In one read: these are asked of every socket of the machine.
        _, found, rest = os.read(fd, _MOST_BYTES).partition(_LINE)
    finally:
        os.close(fd)
    return int(rest.split(None, 1)[0]) if found else None


@lru_cache(maxsize=1)
def has_message_counts() -> bool:
    """Return whether this kernel tells of descriptors in messages."""
    # Imported here: it takes some milliseconds, and most scans come by without.
    import socket

    one, other = socket.socketpair()
    with one, other:
        try:
            path = f"/proc/self/fdinfo/{one.fileno()}"
            return read_message_descriptors(path) is not None
        except OSError:
            return False


def is_socket_link(target: str) -> bool:
    """Return whether a link in /proc/PID/fd is that of a socket: ``socket:[7]``."""
    return target.startswith("socket:[")


# F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE; the first
# alone, which every memfd made without MFD_ALLOW_SEALING has, keeps nobody from anything.
_SEALS = 0x1F & ~fcntl.F_SEAL_SEAL


def is_sealed(fd: int) -> bool:
    """Return whether anything that an open memfd could do is forbidden for good."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS)
    except OSError:
        # Files of a mounted tmpfs and disk files have none.
        return False
