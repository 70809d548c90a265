"""
What probes stand on: memory of our own whose state is known, and its page table.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.procfs import decode_bytes, raise_errno, read_file
from memlens.kernel.syscalls import MAP_PRIVATE
from memlens.objects.backing import Backing
from memlens.scan.machine import Machine
from memlens.selftest.memory import MAP_SHARED, Region, borrow
from memlens.selftest.records import Reader


@dataclass(slots=True)
class Ground:
    """
    Where probes are made.

    :param machine: what is asked.
    :param own: directory of this process in it.
    :param reader: who asks.
    :param capabilities: names of the effective ones, in the kernel's order.
    """

    machine: Machine
    own: str
    reader: Reader
    capabilities: tuple[str, ...] = ()

    def pages(self, pages: int, is_shared: bool = False) -> AbstractContextManager[Region]:
        """Hold untouched anonymous memory, private or a shared-memory object."""
        return borrow(pages, MAP_SHARED if is_shared else MAP_PRIVATE)

    def pagemap(self, directory: str = "", what: str = "this process") -> Pagemap:
        """
        Open the page table of a process, by default our own.

        :param what: whose it is, for a person.

        :raises MemlensError: as ``raise_errno`` tells.
        """
        path = f"{directory or self.own}/pagemap"
        return Pagemap(open_file(path, f"pagemap of {what}"), self.machine, path)

    def words(
        self, pages: Region, directory: str = "", what: str = "this process"
    ) -> NDArray[np.uint64]:
        """
        Return the pagemap words of pages, by default of memory of our own.

        :raises MemlensError: as ``raise_errno`` tells.
        """
        with closing(self.pagemap(directory, what)) as pagemap:
            return pagemap.read_words(pages.first_page, pages.pages)

    def memfd(self, pages: int) -> Backing:
        """Return a new shared-memory object of so many pages, all holes."""
        fd = os.memfd_create("memlens-probe", os.MFD_CLOEXEC)
        os.ftruncate(fd, pages * self.machine.page_size_bytes)
        return Backing(fd, "shmem", self.machine, True, "memfd")


def open_file(path: str, what: str, flags: int = os.O_RDONLY) -> int:
    """
    Open a file and return its descriptor.

    :param what: what it is, for a person.
    :raises Unsupported: if this kernel does not have it.
    :raises MemlensError: as ``raise_errno`` tells.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unsupported(f"there is no {what}", path=path) from error
    except OSError as error:
        raise_errno(error, f"cannot open {what}", path)


def read_text(path: str, what: str) -> bytes:
    """
    Read a whole file.

    :param what: what it is, for a person.
    :raises MemlensError: as ``open_file`` tells.
    """
    try:
        return read_file(path)
    except FileNotFoundError as error:
        raise Unsupported(f"there is no {what}", path=path) from error
    except OSError as error:
        raise_errno(error, f"cannot read {what}", path)


def expect(is_so: bool, otherwise: str) -> None:
    """
    Go on if an answer is what it must be.

    :param otherwise: what the answer was instead, for a person.
    :raises Unsupported: if it is not.
    """
    if not is_so:
        raise Unsupported(otherwise)


def probed(ask: Callable[[Ground], str], ground: Ground) -> str:
    """
    Return the proof of a probe.

    :raises MemlensError: whatever went wrong, in one line.
    """
    try:
        return ask(ground)
    except ProcessGone as error:
        raise Unsupported(error.message, path=error.path) from error
    except MemlensError:
        raise
    except PermissionError as error:
        reason = os.strerror(error.errno or 0)
        raise AccessDenied(reason, path=str(error.filename or "")) from error
    except OSError as error:
        raise_errno(error, "refused", str(error.filename or ""))


# Who reads: user, capabilities and namespaces, from /proc/self/status and /proc/self/ns.
#
# Documentation/filesystems/proc.rst, capabilities(7), namespaces(7).


# include/uapi/linux/capability.h, by bit.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

# Inodes of the first namespaces (include/linux/proc_ns.h), the same since v3.8.
_INIT_PID = "pid:[4026531836]"
_INIT_USER = "user:[4026531837]"


def parse_capabilities(mask: int) -> tuple[str, ...]:
    """
    Return the names of a capability mask; unknown bits show by number.

    >>> parse_capabilities(1 << 19 | 1 << 21)
    ('CAP_SYS_PTRACE', 'CAP_SYS_ADMIN')
    """
    return tuple(
        CAPABILITIES[bit] if bit < len(CAPABILITIES) else f"CAP_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def parse_status(raw: bytes) -> dict[str, str]:
    r"""
    Return the fields of /proc/PID/status, as text.

    >>> parse_status(b"Name:\ta b\nSeccomp:\t0\n")
    {'Name': 'a b', 'Seccomp': '0'}
    """
    lines = (line.partition(":") for line in decode_bytes(raw).split("\n"))
    return {name: rest.strip() for name, colon, rest in lines if colon}


def read_reader(own: str = "/proc/self") -> Reader:
    """
    Return who asks.

    :param own: directory of this process.
    :raises OSError: as reading its status gives it.
    """
    return Reader(
        uid=os.geteuid(),
        is_init_user_namespace=_is_namespace(f"{own}/ns/user", _INIT_USER),
        is_init_pid_namespace=_is_namespace(f"{own}/ns/pid", _INIT_PID),
        is_filtered=parse_status(read_file(f"{own}/status")).get("Seccomp", "0") == "2",
    )


def read_capabilities(own: str = "/proc/self") -> tuple[str, ...]:
    """
    Return the names of the effective capabilities, in the kernel's order.

    :raises OSError: as reading the status gives it.
    """
    status = parse_status(read_file(f"{own}/status"))
    return parse_capabilities(int(status.get("CapEff", "0"), 16))


def _is_namespace(path: str, name: str) -> bool | None:
    try:
        return os.readlink(path) == name
    except OSError:
        return None
