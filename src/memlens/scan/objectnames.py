"""Naming one shared-memory object: a path, ``PID:FD``, ``sysv:ID``, ``inode:DEV:INO``."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.mounts import TMPFS_MAGIC, may_hang, parse_mounts
from memlens.kernel.procfs import decode_bytes, encode_text, raise_errno, read_file
from memlens.kernel.syscalls import fstatfs_type, status_of
from memlens.objects.filewalk import hold_quietly
from memlens.objects.opener import device_number
from memlens.scan.machine import Machine
from memlens.scan.process import ShmemDevices

_FD = re.compile(r"([0-9]{1,18}):([0-9]{1,18})\Z")
_SYSV = re.compile(r"sysv:([0-9]{1,18})\Z")

# What follows the root of /proc in a path through a process.
_OF_PROCESS = re.compile(r"/([0-9]{1,18})/")
_NOT_ASKED = "cannot look at the object"
_INODE = re.compile(r"inode:([0-9a-fA-F]{1,8}:[0-9a-fA-F]{1,8}):([0-9]{1,20})\Z")


class Named(Protocol):
    """An object as far as its name tells of it."""

    @property
    def key(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...


class ObjectName(NamedTuple):
    """
    A name of an object.

    :param text: as it was given.
    :param matches: whether a found object is the one.
    """

    text: str
    matches: Callable[[Named], bool]


def resolve_name(text: str, machine: Machine) -> ObjectName:
    """
    Return what a name stands for.

    :param text: a path, ``PID:FD``, ``sysv:ID``, ``inode:DEV:INO`` with the device in
        hexadecimal as maps has it (``inode:00:01:5``), or a name as the list shows it.
    :raises MemlensError: if there is no such file or descriptor.
    :raises Unsupported: if it is no shared memory, or on what may never answer.
    """
    if match := _SYSV.match(text):
        shmid = int(match[1])
        return ObjectName(text, lambda item: item.kind == "sysv" and item.key[1] == shmid)
    if match := _INODE.match(text):
        device, inode = device_number(match[1]), int(match[2])
        return ObjectName(text, lambda item: item.key[:2] == (device, inode))
    if match := _FD.match(text):
        pid, fd = int(match[1]), int(match[2])
        return _resolve_file(text, _Wary(machine, pid), _descriptor_paths(machine, pid, fd))
    if text.startswith(("memfd:", "anonymous:")):
        return ObjectName(text, lambda item: item.name == text)
    match = _OF_PROCESS.match(text.removeprefix(machine.root.rstrip("/")))
    return _resolve_file(text, _Wary(machine, int(match[1]) if match else None), [text])


class _Wary:
    """
    Refuses file systems that may never answer, before they are asked anything.

    :param machine: whose process it is.
    :param pid: a process whose mounts may be met beside our own.
    """

    def __init__(self, machine: Machine, pid: int | None) -> None:
        self._kinds: dict[int, str] = {}
        self._unnamed = ShmemDevices()
        tables = ["/proc/self/mountinfo"]
        tables += [] if pid is None else [f"{machine.root}/{pid}/mountinfo"]
        for table in tables:
            try:
                mounts = parse_mounts(read_file(table))
            except OSError:
                continue
            self._kinds |= {mount.device: mount.kind for mount in mounts}

    def check(self, handle: int) -> None:
        """
        Raise unless what an O_PATH descriptor holds may be asked.

        :raises Unsupported: if so.
        """
        device = status_of(handle).device
        kind = self._kinds.get(device)
        if kind is not None and may_hang(kind):
            raise Unsupported(f"{_NOT_ASKED}: {kind} could hang the reader")
        if kind is None:
            # Of a mount in no table, as a detached one, nothing tells but a question.
            self._unnamed.is_shmem(device, lambda: fstatfs_type(handle) == TMPFS_MAGIC)
            if device in self._unnamed.silent:
                raise Unsupported(f"{_NOT_ASKED}: its file system does not answer")


def _descriptor_paths(machine: Machine, pid: int, fd: int) -> Iterator[str]:
    """Yield where a descriptor may be: threads may have tables of their own."""
    yield f"{machine.root}/{pid}/fd/{fd}"
    try:
        threads = sorted(map(int, os.listdir(f"{machine.root}/{pid}/task")))
    except OSError:
        return
    # The first one is asked by the PID, and has nothing open once it has ended.
    yield from (f"{machine.root}/{pid}/task/{tid}/fd/{fd}" for tid in threads if tid != pid)


def _resolve_file(text: str, wary: _Wary, paths: Iterable[str]) -> ObjectName:
    """Return the object of the first path that there is."""
    for path in paths:
        try:
            return ObjectName(text, _matcher(encode_text(path), wary))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise_errno(error, "cannot look at the object", path)
    # Deleted, or in another mount namespace: the name is what is left to go by.
    return ObjectName(text, lambda item: item.name == text)


def _matcher(path: bytes, wary: _Wary) -> Callable[[Named], bool]:
    handle = hold_quietly(path, wary.check)
    try:
        if fstatfs_type(handle) != TMPFS_MAGIC:
            raise Unsupported("not shared memory: it is on no tmpfs", path=decode_bytes(path))
        status = os.fstat(handle)
    finally:
        os.close(handle)
    key = (status.st_dev, status.st_ino)
    return lambda item: item.key[:2] == key


def no_such_object(name: ObjectName) -> MemlensError:
    """Return the error for a name that no object has."""
    return MemlensError(f"no such shared-memory object: {name.text}")
