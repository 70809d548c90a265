"""
The root of /proc, reads from it, and the one place where errno becomes an error.

Documentation/filesystems/proc.rst, Documentation/admin-guide/mm/pagemap.rst.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported

_T = TypeVar("_T")
_ESCAPE = re.compile(r"\\([0-7]{3})")
READ_NEEDS = "the same user, or root (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
# Interfaces that MEMLENS_DISABLE can switch off, to prove the other paths.
SWITCHES = (
    "pagemap_scan",
    "map_files",
    "seek_data",
    "cachestat",
    "mincore",
    "kpageflags",
    "smaps",
    "cachewalk",
    "frameslots",
    "kcmp",
    "scm_fds",
)


@dataclass(slots=True)
class Meter:
    """
    What the reads of one run cost.

    :param read_bytes: bytes that kernel files gave.
    :param longest_read_s: longest call that can hold the target's mmap lock.
    :param used: names of the interfaces that gave evidence.
    """

    read_bytes: int = 0
    longest_read_s: float = 0.0
    used: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.perf_counter)

    def add(self, read_bytes: int, seconds: float) -> None:
        """Count one read."""
        self.read_bytes += read_bytes
        if seconds > self.longest_read_s:
            self.longest_read_s = seconds

    def time(self, call: Callable[[], _T]) -> _T:
        """Return what ``call`` returns, and count the time it took."""
        before = time.perf_counter()
        try:
            return call()
        finally:
            self.add(0, time.perf_counter() - before)

    def wall_s(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self.started


def page_size_bytes() -> int:
    """Return the size of a base page of this machine."""
    return os.sysconf("SC_PAGE_SIZE")


def read_disabled() -> frozenset[str]:
    """
    Return the interfaces that MEMLENS_DISABLE switches off.

    :raises ValueError: if it names one that does not exist.
    """
    listed = os.environ.get("MEMLENS_DISABLE", "").split(",")
    names = frozenset(filter(None, map(str.strip, listed)))
    unknown = names - frozenset(SWITCHES)
    if unknown:
        raise ValueError(
            f"MEMLENS_DISABLE: unknown {', '.join(sorted(unknown))}; "
            f"known: {', '.join(SWITCHES)}"
        )
    return names


@dataclass(slots=True, eq=False)
class Host:
    """
    The kernel that is asked, and by which of its files.

    >>> Host("/proc").root
    '/proc'

    :param root: the /proc to read.
    :param sys: the /sys to read.
    :param page_size_bytes: size of a base page.
    :param disabled: interfaces that are switched off; MEMLENS_DISABLE, if nothing is said.
    :param meter: counts what is read.
    """

    root: str = "/proc"
    sys: str = "/sys"
    page_size_bytes: int = field(default_factory=page_size_bytes)
    disabled: frozenset[str] = field(default_factory=read_disabled)
    meter: Meter = field(default_factory=Meter)

    def check_stop(self) -> None:
        """Go on: of a host alone there is no scan that could end."""


def raise_errno(error: OSError, what: str, path: str, needs: str = READ_NEEDS) -> NoReturn:
    """
    Raise the memlens error that an errno stands for.

    :param what: what was tried, as "cannot read the mappings of process 7".
    :param path: the file that was asked.
    :param needs: the privilege that would be enough if it was refused.
    :raises ProcessGone: for ESRCH and ENOENT.
    :raises AccessDenied: for EACCES and EPERM.
    :raises Unsupported: for ENOSYS, ENOTTY, EOPNOTSUPP.
    :raises MemlensError: for everything else.
    """
    code = error.errno
    reason = os.strerror(code) if code else str(error)
    if code in (errno.ESRCH, errno.ENOENT):
        raise ProcessGone(f"{what}: no such process or thread", path=path) from error
    if code in (errno.EACCES, errno.EPERM):
        raise AccessDenied(f"{what}: {reason}", path=path, needs=needs) from error
    if code in (errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP):
        raise Unsupported(f"{what}: this kernel cannot", path=path) from error
    raise MemlensError(f"{what}: {reason}", path=path) from error


def read_file(path: str, dir_fd: int | None = None, size: int = 1 << 14) -> bytes:
    """
    Read a whole /proc file, which has no size and may be longer than one read.

    :param size: bytes to ask for at a time; most files give 4 KiB, and room for 128 KiB is a
        mapping that is made and taken away again.
    :raises OSError: as open and read give it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        pieces = []
        while piece := os.read(fd, size):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def decode_bytes(raw: bytes) -> str:
    """Return kernel text; bytes that are not UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def encode_text(text: str) -> bytes:
    """Return the bytes that ``decode_bytes`` was given."""
    return text.encode("utf-8", "surrogateescape")


def unescape_path(text: str) -> str:
    r"""
    Return a path as it is, from one with ``\040`` and its like (mangle_path, fs/seq_file.c).

    >>> unescape_path("/a\\040b\\134c")
    '/a b\\c'
    """
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
