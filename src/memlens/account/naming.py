"""Naming one shared-memory object: a path, ``PID:FD``, ``sysv:ID``, ``inode:DEV:INO``."""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from memlens.account.foundobject import FoundObject
from memlens.errors import MemlensError, Unsupported
from memlens.kernel.filesystems import TMPFS_MAGIC
from memlens.kernel.opening import device_number
from memlens.kernel.procfs import encode_text, raise_errno
from memlens.kernel.syscalls import fstatfs_type

_FD = re.compile(r"([0-9]{1,18}):([0-9]{1,18})\Z")
_SYSV = re.compile(r"sysv:([0-9]{1,18})\Z")
_INODE = re.compile(r"inode:([0-9a-fA-F]{1,8}:[0-9a-fA-F]{1,8}):([0-9]{1,20})\Z")


class ObjectName(NamedTuple):
    """
    A name of an object.

    :param text: as it was given.
    :param matches: whether a found object is the one.
    """

    text: str
    matches: Callable[[FoundObject], bool]


def resolve_name(text: str, proc: str = "/proc") -> ObjectName:
    """
    Return what a name stands for.

    :param text: a path, ``PID:FD``, ``sysv:ID``, ``inode:DEV:INO`` with the device in
        hexadecimal as maps has it (``inode:00:01:5``), or a name as the list shows it.
    :raises MemlensError: if there is no such file or descriptor.
    :raises Unsupported: if it is no shared memory.
    """
    if match := _SYSV.match(text):
        shmid = int(match[1])
        return ObjectName(text, lambda item: item.kind == "sysv" and item.key[1] == shmid)
    if match := _INODE.match(text):
        device, inode = device_number(match[1]), int(match[2])
        return ObjectName(text, lambda item: item.key[:2] == (device, inode))
    if match := _FD.match(text):
        return _resolve_file(text, f"{proc}/{int(match[1])}/fd/{int(match[2])}")
    if text.startswith(("memfd:", "anonymous:")):
        return ObjectName(text, lambda item: item.name == text)
    return _resolve_file(text, text)


def _resolve_file(text: str, path: str) -> ObjectName:
    try:
        handle = os.open(encode_text(path), os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        # Deleted, or in another mount namespace: the name is what is left to go by.
        return ObjectName(text, lambda item: item.name == text)
    except OSError as error:
        raise_errno(error, "cannot look at the object", path)
    try:
        if fstatfs_type(handle) != TMPFS_MAGIC:
            raise Unsupported("not shared memory: it is on no tmpfs", path=path)
        status = os.fstat(handle)
    except OSError as error:
        raise_errno(error, "cannot look at the object", path)
    finally:
        os.close(handle)
    key = (status.st_dev, status.st_ino)
    return ObjectName(text, lambda item: item.key[:2] == key)


def no_such_object(name: ObjectName) -> MemlensError:
    """Return the error for a name that no object has."""
    return MemlensError(f"no such shared-memory object: {name.text}")
