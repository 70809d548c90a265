"""
Who reads: user, capabilities and namespaces, from /proc/self/status and /proc/self/ns.

Documentation/filesystems/proc.rst, capabilities(7), namespaces(7).
"""

import os
from dataclasses import dataclass

from memlens.kernel.procfs import decode_bytes, read_file

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


@dataclass(frozen=True, slots=True)
class Reader:
    """
    The user and the privileges that everything was asked with.

    :param uid: effective user.
    :param capabilities: names of the effective ones, in the kernel's order.
    :param is_init_user_namespace: whether capabilities count outside of a container too;
        None if that cannot be seen.
    :param is_init_pid_namespace: whether every process of the machine is in its /proc.
    :param is_filtered: whether seccomp may refuse system calls that the kernel has.
    """

    uid: int
    capabilities: tuple[str, ...]
    is_init_user_namespace: bool | None
    is_init_pid_namespace: bool | None
    is_filtered: bool


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
    status = parse_status(read_file(f"{own}/status"))
    return Reader(
        uid=os.geteuid(),
        capabilities=parse_capabilities(int(status.get("CapEff", "0"), 16)),
        is_init_user_namespace=_is_namespace(f"{own}/ns/user", _INIT_USER),
        is_init_pid_namespace=_is_namespace(f"{own}/ns/pid", _INIT_PID),
        is_filtered=status.get("Seccomp", "0") == "2",
    )


def _is_namespace(path: str, name: str) -> bool | None:
    try:
        return os.readlink(path) == name
    except OSError:
        return None
