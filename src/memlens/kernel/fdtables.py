"""
Tables of descriptors of one process: threads may have their own.

/proc/PID/task/TID/fd, kcmp(2), unshare(2) with CLONE_FILES.
"""

import os
import platform
from functools import lru_cache

from memlens.kernel.process import ProcessDir
from memlens.kernel.syscalls import libc

# alpha, sparc and the like have numbers of their own: there every thread is read.
_NR_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272}.get(platform.machine())
_KCMP_FILES = 2


def list_other_tables(process: ProcessDir) -> list[int]:
    """
    Return threads, one for each table of descriptors that is not that of ``process.tid``.

    Where tables cannot be compared every thread is given: what it has open may be seen twice.
    """
    try:
        names = os.listdir(f"{process.path}/task")
    except OSError:
        return []
    can_ask = _NR_KCMP is not None and _has_own_pids(process.proc)
    known = [process.tid]
    for thread in sorted(map(int, names)):
        if thread == process.tid:
            continue
        if not (can_ask and any(_is_same_table(thread, other) for other in known)):
            known.append(thread)
    return known[1:]


def _is_same_table(thread: int, other: int) -> bool:
    return bool(libc.syscall(_NR_KCMP, thread, other, _KCMP_FILES, 0, 0) == 0)


@lru_cache(maxsize=1)
def _has_own_pids(proc: str) -> bool:
    """Return whether this /proc numbers processes as system calls of ours do."""
    try:
        return os.readlink(f"{proc}/self") == str(os.getpid())
    except OSError:
        return False
