"""
PIDs and the identity of a process: /proc/PID/stat, comm, cmdline, status, task.

Documentation/filesystems/proc.rst.  A process is its PID and its start time;
its directory is held open, so that a reused PID is never read by mistake.
"""

import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.mounts import parse_mounts
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.procfs import READ_NEEDS, Host, decode_bytes, raise_errno, read_file
from memlens.kernel.syscalls import libc

PF_KTHREAD = 0x00200000


class Identity(NamedTuple):
    """
    Which process this is.

    :param pid: as this /proc numbers it.
    :param name: comm, raw.
    :param cmdline: arguments, raw.
    :param started_at: UTC.
    :param start_ticks: field 22 of stat; with the PID it names the process for good.
    """

    pid: int
    name: str
    cmdline: tuple[str, ...]
    started_at: datetime
    start_ticks: int


class Stat(NamedTuple):
    """
    Fields of /proc/PID/stat: comm, state, kernel flags, threads, start time, arguments.

    ``arg_start`` and ``arg_stop`` are addresses, 0 if this reader may not see them.
    """

    name: str
    state: str
    flags: int
    threads: int
    start_ticks: int
    arg_start: int = 0
    arg_stop: int = 0


def parse_stat(raw: bytes) -> Stat:
    """
    Return the fields of /proc/PID/stat that memlens uses.

    >>> parse_stat(b"7 (a) b) S 1 1 1 0 -1 64 " + b"0 " * 10 + b"3 0 99 0").name
    'a) b'
    """
    head, _, tail = raw.rpartition(b")")
    fields = tail.split()
    return Stat(
        name=decode_bytes(head.partition(b"(")[2]),
        state=fields[0].decode(),
        flags=int(fields[6]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        arg_start=int(fields[45]) if len(fields) > 46 else 0,
        arg_stop=int(fields[46]) if len(fields) > 46 else 0,
    )


class ProcessDir:
    """
    An open /proc/PID directory, or that of a live thread if the leader has exited.

    :param pid: the process.
    :param host: where it is looked up; its meter counts what is read.
    :raises ProcessGone: if there is none, or it is a zombie.
    :raises Unsupported: if it is a kernel thread.
    :raises AccessDenied: if its mappings may not be read.
    """

    def __init__(self, pid: int, host: Host) -> None:
        self.pid = pid
        self.host = host
        # The thread whose files are read.
        self.tid = pid
        self.path = f"{host.root}/{pid}"
        self.fd = self._open(self.path)
        try:
            self.stat = self._read_stat()
            if self.stat.flags & PF_KTHREAD:
                raise Unsupported(
                    f"process {pid} ({self.stat.name}) is a kernel thread: "
                    "it has no memory of its own",
                    path=self.path,
                )
            if self.stat.state in "ZX":
                self._use_live_thread()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ProcessDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """
        Open a file of the process and return its descriptor.

        :raises MemlensError: as ``raise_errno`` tells.
        """
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            raise_errno(
                error, f"cannot open {name} of process {self.pid}", f"{self.path}/{name}"
            )

    def read(self, name: str) -> bytes:
        """
        Return the content of a file of the process.

        :raises MemlensError: as ``raise_errno`` tells.
        """
        try:
            raw = self.host.meter.time(lambda: read_file(name, dir_fd=self.fd))
        except OSError as error:
            raise_errno(
                error, f"cannot read {name} of process {self.pid}", f"{self.path}/{name}"
            )
        self.host.meter.add(len(raw), 0.0)
        return raw

    def iter_read(self, name: str) -> Iterator[bytes]:
        """
        Yield the content of a file of the process, read by read.

        :raises MemlensError: as ``raise_errno`` tells.
        """
        fd = self.open(name)
        try:
            while raw := self.host.meter.time(lambda: os.read(fd, 1 << 14)):
                self.host.meter.add(len(raw), 0.0)
                yield raw
        except OSError as error:
            raise_errno(
                error, f"cannot read {name} of process {self.pid}", f"{self.path}/{name}"
            )
        finally:
            os.close(fd)

    def read_maps(self) -> list[Mapping]:
        """Return the mappings now."""
        return parse_maps(self.read("maps"), f"{self.path}/maps")

    def identity(self, pagemap: Pagemap) -> Identity:
        """
        Return who this is.

        :param pagemap: its page table.

        The arguments lie in its own memory, and the kernel reads them as the process would:
        they are left out where that would bring a page back from swap.
        """
        stat = self.stat
        is_there = pagemap.has_pages(stat.arg_start, stat.arg_stop)
        raw = self.read("cmdline") if is_there else b""
        arguments = raw.removesuffix(b"\0").split(b"\0") if raw else []
        return Identity(
            pid=self.pid,
            name=self.stat.name,
            cmdline=tuple(decode_bytes(part) for part in arguments),
            started_at=_started_at(self.stat.start_ticks, self.host),
            start_ticks=self.stat.start_ticks,
        )

    def title(self, pagemap: Pagemap) -> str:
        """
        Return its name, or what it calls itself if that begins so: ``postgres: checkpointer``.

        :param pagemap: its page table, see ``identity``.
        """
        identity = self.identity(pagemap)
        first = identity.cmdline[0].strip() if identity.cmdline else ""
        return first if first.startswith(f"{identity.name}:") else identity.name

    def gone_error(self) -> ProcessGone:
        """Return the error for a page table that has vanished under the reader."""
        try:
            stat = self._read_stat()
            is_same = stat.start_ticks == self.stat.start_ticks and stat.state not in "ZX"
            # One that is ending loses its memory a moment before it is a zombie.
            has_new_memory = is_same and bool(self.read("maps"))
        except MemlensError:
            has_new_memory = False
        if has_new_memory:
            what = "executed another program during the scan"
        else:
            what = "ended during the scan"
        return ProcessGone(f"process {self.pid} {what}", path=self.path)

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if not os.path.isdir(f"{self.host.root}/self") and not os.path.exists(
                f"{self.host.root}/stat"
            ):
                raise Unsupported(
                    f"{self.host.root} is not a proc file system", path=path
                ) from error
            if isinstance(error, FileNotFoundError) and _is_hidden(self.pid, self.host):
                raise AccessDenied(
                    f"process {self.pid} is hidden (proc is mounted with hidepid)",
                    path=path,
                    needs="root, or membership of the gid= group of that mount",
                ) from error
            if isinstance(error, FileNotFoundError):
                raise ProcessGone(f"process {self.pid} does not exist", path=path) from error
            raise_errno(error, f"cannot open process {self.pid}", path)

    def _read_stat(self) -> Stat:
        try:
            return parse_stat(read_file("stat", dir_fd=self.fd))
        except OSError as error:
            if isinstance(error, PermissionError):
                raise AccessDenied(
                    f"process {self.pid} may not be read", path=self.path, needs=READ_NEEDS
                ) from error
            raise ProcessGone(f"process {self.pid} has ended", path=self.path) from error

    def _use_live_thread(self) -> None:
        """Continue with another thread: the leader's own files are empty once it exited."""
        try:
            threads = os.listdir(f"{self.path}/task")
        except OSError:
            threads = []
        for thread in sorted(map(int, threads)):
            try:
                # task/TID has no map_files, so the directory of the TID itself is used.
                fd = os.open(
                    f"{self.host.root}/{thread}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            except OSError:
                continue
            try:
                is_alive = bool(read_file("maps", dir_fd=fd))
            except OSError:
                is_alive = False
            if is_alive:
                os.close(self.fd)
                self.fd, self.tid = fd, thread
                self.path = f"{self.host.root}/{thread}"
                return
            os.close(fd)
        raise ProcessGone(
            f"process {self.pid} ({self.stat.name}) is a zombie: its memory is already freed",
            path=self.path,
        )


def _started_at(start_ticks: int, host: Host) -> datetime:
    """Start times count from boot, suspended time included (CLOCK_BOOTTIME)."""
    seconds = start_ticks / os.sysconf("SC_CLK_TCK")
    booted = _boot_time(host)
    return datetime.fromtimestamp(booted + seconds, UTC)


def _boot_time(host: Host) -> float:
    try:
        for line in read_file(f"{host.root}/stat").split(b"\n"):
            if line.startswith(b"btime "):
                return float(line.split()[1])
    except OSError:
        pass
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_hidden(pid: int, host: Host) -> bool:
    """Return whether a PID exists although this /proc does not show it."""
    try:
        mounts = parse_mounts(read_file("/proc/self/mountinfo"))
    except OSError:
        return False
    real = os.path.realpath(host.root)
    options = [m.options for m in mounts if m.mount_point == real and m.kind == "proc"]
    if not options or "hidepid=" not in options[-1]:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


# Tables of descriptors of one process: threads may have their own.
#
# /proc/PID/task/TID/fd, kcmp(2), unshare(2) with CLONE_FILES.


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
    can_ask = _NR_KCMP is not None and _has_own_pids(process.host.root)
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
def _has_own_pids(root: str) -> bool:
    """Return whether this /proc numbers processes as system calls of ours do."""
    try:
        return os.readlink(f"{root}/self") == str(os.getpid())
    except OSError:
        return False
