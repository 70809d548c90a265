"""
Descriptors in messages that nobody has read: scm_fds in /proc/PID/fdinfo/FD of a socket.

unix(7) on SCM_RIGHTS; commit 3c32da19a858 ("unix: Show number of pending scm files of receive
queue in fdinfo") (in v5.6).  Only sockets of AF_UNIX have this line.
"""

import os
from functools import lru_cache

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
