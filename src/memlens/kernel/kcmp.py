"""
Whether two tasks run in one memory: kcmp(2).

Processes made by clone(2) with CLONE_VM and without CLONE_THREAD do; nothing in /proc tells
them from forked ones whose memory is alike.
"""

import errno
import os
import platform

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import libc, raise_last_errno

_KCMP_VM = 1
# The system call tables of the kernel; most of the newer ones share the generic one.
_NUMBERS = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "ppc64le": 354,
    "ppc64": 354,
    "s390x": 343,
}
_ORDERS = {0: 0, 1: -1, 2: 1}


def compare_memory(one: int, other: int) -> int:
    """
    Return 0 if two tasks run in one memory, else -1 or 1: the kernel has an order of them.

    :param one: PID or TID, in the namespace of this process.
    :raises ProcessGone: if one of them is gone.
    :raises AccessDenied: if this reader may not ask.
    :raises Unsupported: if this kernel has no kcmp, or nobody knows its number here.

    Two that have ended and not been waited for are alike: they have no memory.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise Unsupported("kcmp has no known number on this machine")
    order = libc.syscall(number, one, other, _KCMP_VM, 0, 0)
    if order < 0:
        _raise_last(one)
    if order not in _ORDERS:
        raise Unsupported("kcmp gives no order of memories")
    return _ORDERS[order]


def _raise_last(pid: int) -> None:
    try:
        raise_last_errno()
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise ProcessGone(f"process {pid} or another has ended") from error
        if error.errno in (errno.EPERM, errno.EACCES):
            message = "kcmp is not permitted"
            raise AccessDenied(message, needs="CAP_SYS_PTRACE") from error
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            message = "this kernel has no kcmp (CONFIG_KCMP)"
            raise Unsupported(message) from error
        raise MemlensError(f"kcmp: {error.strerror}") from error


def has_memory(tid: int, proc: str = "/proc") -> bool:
    """Return whether a task still has memory, as one that has ended has not."""
    try:
        return int(read_file(f"{proc}/{tid}/statm").split()[0]) > 0
    except (OSError, ValueError, IndexError):
        return False


def is_own_namespace(proc: str = "/proc") -> bool:
    """Return whether the PIDs of a /proc are those that system calls of this process take."""
    try:
        if int(os.readlink(f"{proc}/self")) != os.getpid():
            return False
        lines = read_file(f"{proc}/self/status").split(b"\n")
    except (OSError, ValueError):
        return False
    # One number for each namespace from that of the mount inwards.
    numbers = [line.split()[1:] for line in lines if line.startswith(b"NSpid:")]
    return all(len(row) == 1 for row in numbers)
