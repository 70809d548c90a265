"""
Which processes of the machine this reader can look at.

/proc/PID/stat, /proc/self/status; pid_namespaces(7), capabilities(7), proc(5) on hidepid.
"""

import os

from memlens.errors import MemlensError
from memlens.kernel.process import PF_KTHREAD, parse_stat
from memlens.kernel.procfs import read_file

_KTHREADD = 2
_CAP_SYS_PTRACE = 1 << 19
# Inode of the first user namespace (include/linux/proc_ns.h), the same since v3.8.
_INIT_USER = "user:[4026531837]"


def has_all_processes(proc: str) -> bool:
    """
    Return whether a /proc shows every process of the machine.

    The parent of kernel threads is seen through none but the first PID namespace, and not
    through a /proc that hides processes of others.
    """
    try:
        stat = parse_stat(read_file(f"{proc}/{_KTHREADD}/stat"))
    except (OSError, MemlensError, ValueError, IndexError):
        return False
    return bool(stat.flags & PF_KTHREAD)


def can_look_at_others() -> bool:
    """Return whether this reader is refused no process for lack of privilege."""
    try:
        if os.readlink("/proc/self/ns/user") != _INIT_USER:
            return False
        for line in read_file("/proc/self/status").split(b"\n"):
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_SYS_PTRACE)
    except (OSError, ValueError):
        pass
    return False
