"""
System V segments of every IPC namespace.

/proc/sysvipc/shm (Documentation/filesystems/proc.rst), shmat(2), setns(2).
"""

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from memlens.errors import ParseError
from memlens.kernel.procfs import Host, decode_bytes, read_file
from memlens.kernel.syscalls import MAP_FAILED, libc, raise_last_errno
from memlens.objects.namespaces import Entrance

SHM_RDONLY = 0o10000

# A segment that was removed lives until its last holder detaches.
SHM_DEST = 0o1000


class Segment(NamedTuple):
    """
    One line of /proc/sysvipc/shm.

    :param shmid: identifier, which is also the inode number of its object.
    :param key: as given to shmget, 0 for a private one.
    :param permissions: mode bits; ``SHM_DEST`` is set once it was removed.
    :param attached: number of attachments.
    :param rss_bytes: what of it is in RAM.
    :param swap_bytes: what of it is on swap.
    """

    shmid: int
    key: int
    permissions: int
    size_bytes: int
    attached: int
    uid: int
    changed_s: int
    rss_bytes: int
    swap_bytes: int


def parse_segments(raw: bytes, path: str = "/proc/sysvipc/shm") -> list[Segment]:
    """
    Return the segments of one IPC namespace.

    :raises ParseError: if a line is not as documented.
    """
    found = []
    for number, line in enumerate(decode_bytes(raw).split("\n")[1:], 2):
        fields = line.split()
        if not fields:
            continue
        try:
            found.append(
                Segment(
                    key=int(fields[0]) & 0xFFFFFFFF,
                    shmid=int(fields[1]),
                    permissions=int(fields[2], 8),
                    size_bytes=int(fields[3]),
                    attached=int(fields[6]),
                    uid=int(fields[7]),
                    changed_s=int(fields[13]),
                    rss_bytes=int(fields[14]),
                    swap_bytes=int(fields[15]),
                )
            )
        except (ValueError, IndexError) as error:
            raise ParseError(
                "not a segment", path=path, line_number=number, text=line
            ) from error
    return found


def read_segments(host: Host, namespace: Entrance | None = None) -> list[Segment]:
    """
    Return the segments of an IPC namespace.

    :param namespace: the way into it; None for our own.
    :raises OSError: if it may not be entered or read.
    :raises ParseError: if the file is not as documented.
    """
    path = f"{host.root}/sysvipc/shm"
    if namespace is None:
        return parse_segments(read_file(path), path)
    found: list[Segment] = []
    _in_ipc_namespace(namespace, lambda: found.extend(parse_segments(read_file(path), path)))
    return found


def open_segment(shmid: int, namespace: Entrance | None = None) -> int:
    """
    Return an O_PATH descriptor of a segment that nobody need have attached.

    It is attached read-only, found in map_files, and detached: no page is touched, but
    the kernel notes the time and our PID (atime, dtime, lpid).

    :raises OSError: as shmat(2) gives it.
    """
    found: list[int] = []
    if namespace is not None:
        _in_ipc_namespace(namespace, lambda: found.append(_open_attached(shmid)))
    else:
        found.append(_open_attached(shmid))
    return found[0]


def _open_attached(shmid: int) -> int:
    address = libc.shmat(shmid, None, SHM_RDONLY)
    if address == MAP_FAILED:
        raise_last_errno(f"sysv:{shmid}")
    try:
        prefix = f"{address:x}-"
        for name in os.listdir("/proc/self/map_files"):
            if name.startswith(prefix):
                return os.open(f"/proc/self/map_files/{name}", os.O_PATH | os.O_CLOEXEC)
    finally:
        libc.shmdt(address)
    raise OSError(2, "the attached segment is not in map_files")


def _in_ipc_namespace(namespace: Entrance, work: Callable[[], object]) -> None:
    """Run in a thread of its own, which alone enters the namespace and then ends."""
    failure: list[OSError | ParseError] = []

    def run(fd: int) -> None:
        try:
            if libc.setns(fd, _CLONE_NEWIPC) != 0:
                raise_last_errno(namespace.paths[0])
            work()
        except (OSError, ParseError) as error:
            failure.append(error)

    with namespace.opened() as fd:
        thread = threading.Thread(target=run, args=(fd,), name="memlens-ipc")
        thread.start()
        thread.join()
    if failure:
        raise failure[0]


_CLONE_NEWIPC = 0x08000000
