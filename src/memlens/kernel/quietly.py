"""
Finding a file by its path without asking a file system that may never answer.

openat(2) with O_PATH opens nothing; before a name is looked up in a directory, its file system
is known from statx(2), which asks nobody outside of the kernel.
"""

import errno
import os
import stat
from collections.abc import Callable

from memlens.kernel.filesystems import PROC_MAGIC
from memlens.kernel.syscalls import fstatfs_type, status_of

# As the kernel has it (MAXSYMLINKS, include/linux/namei.h).
_LINKS_AT_MOST = 40
_HOLD = os.O_PATH | os.O_CLOEXEC


def hold_quietly(path: bytes, check: Callable[[int], None]) -> int:
    """
    Return an O_PATH descriptor of what a path leads to; links are followed.

    :param check: called with a descriptor of everything on the way, before it is asked
        anything, and of what is returned; raises if it must not be asked.
    :raises OSError: as openat(2) gives it.
    """
    # Of an empty path the kernel says that there is none.
    current = os.open(path and _beginning(path), _HOLD)
    try:
        names, links = _names(path), 0
        while True:
            check(current)
            if not names:
                return current
            found, target = _step(current, names.pop(0))
            if target:
                links += 1
                if links > _LINKS_AT_MOST:
                    os.close(found)
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                names = _names(target) + names
            os.close(current)
            current = found
    except BaseException:
        os.close(current)
        raise


def _beginning(path: bytes) -> bytes:
    return b"/" if path.startswith(b"/") else b"."


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _step(directory: int, name: bytes) -> tuple[int, bytes]:
    """Return what a name leads to; of a link, where its text begins, and the text."""
    found = os.open(name, _HOLD | os.O_NOFOLLOW, dir_fd=directory)
    if not stat.S_ISLNK(status_of(found).mode):
        return found, b""
    try:
        if fstatfs_type(directory) == PROC_MAGIC:
            # Those of fd, root and the like lead to a file whatever their text is.
            return os.open(name, _HOLD, dir_fd=directory), b""
        target = os.readlink(name, dir_fd=directory)
    finally:
        os.close(found)
    if target.startswith(b"/"):
        return os.open(b"/", _HOLD), target
    return os.dup(directory), target
