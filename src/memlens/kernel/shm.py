"""
Where shared memory can be found: tmpfs mounts of every mount namespace, System V
segments of every IPC namespace.

/proc/PID/mountinfo, /proc/PID/ns, /proc/sysvipc/shm (Documentation/filesystems/proc.rst),
shmat(2), setns(2).
"""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from memlens.errors import ParseError
from memlens.kernel.filesystems import may_hang
from memlens.kernel.mounts import Mount
from memlens.kernel.procfs import decode_bytes, encode_text, read_file
from memlens.kernel.syscalls import MAP_FAILED, libc, raise_last_errno

SHMEM_TYPES = frozenset({"tmpfs", "devtmpfs"})
SHM_RDONLY = 0o10000
# A segment that was removed lives until its last holder detaches.
SHM_DEST = 0o1000


class TmpfsFile(NamedTuple):
    """
    A regular file of a tmpfs, or a symbolic link that owns memory.

    :param path: as the mount namespace names it, raw.
    :param reach: path through which this process can open it.
    :param device: as ``st_dev``.
    :param blocks: 512-byte units that it owns in RAM and on swap.
    """

    path: str
    reach: bytes
    device: int
    inode: int
    size_bytes: int
    blocks: int
    uid: int
    changed_s: float
    is_link: bool = False


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


def namespace_inode(process_fd: int, name: str) -> int:
    """
    Return the number of a namespace of a process: ``mnt``, ``ipc``, ``pid``.

    :raises OSError: if it may not be read.
    """
    return os.stat(f"ns/{name}", dir_fd=process_fd).st_ino


def walk_tmpfs(base: str, mount: Mount, mounts: list[Mount]) -> Iterator[TmpfsFile]:
    """
    Yield the regular files of a mounted tmpfs, and the symbolic links that own a page.

    The target of a link is in a page if it is longer than 128 bytes (mm/shmem.c).

    :param base: ``/proc/PID/root`` of a process in the mount namespace.
    :param mount: the mount.
    :param mounts: all mounts of that namespace; none of the others is entered.
    :raises OSError: if the mount cannot be reached.
    """
    hanging = [m.mount_point for m in mounts if may_hang(m.kind)]
    if any(_is_below(mount.mount_point, point) for point in hanging):
        raise OSError(5, "below a mount that could hang")
    points = {encode_text(m.mount_point) for m in mounts} - {encode_text(mount.mount_point)}
    prefix = encode_text(base)
    top = encode_text(mount.mount_point)
    status = os.stat(prefix + top)
    if status.st_dev != mount.device:
        raise OSError(16, "covered by another mount")
    if not stat.S_ISDIR(status.st_mode):
        # A file alone can be mounted over another.
        file = _tmpfs_file(status, prefix + top, top, mount.device)
        yield from [file] if file is not None else []
        return
    stack = [top]
    while stack:
        directory = stack.pop()
        try:
            entries = list(os.scandir(prefix + directory))
        except OSError:
            if directory == top:
                raise
            continue
        for entry in entries:
            path = os.path.join(directory, entry.name)
            if path in points:
                continue
            if entry.is_dir(follow_symlinks=False):
                stack.append(path)
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                file = _tmpfs_file(status, entry.path, path, mount.device)
                if file is not None:
                    yield file


def read_segments(proc: str, namespace: str = "") -> list[Segment]:
    """
    Return the segments of an IPC namespace.

    :param namespace: its file, ``/proc/PID/ns/ipc``; "" for our own.
    :raises OSError: if it may not be entered or read.
    :raises ParseError: if the file is not as documented.
    """
    path = f"{proc}/sysvipc/shm"
    if not namespace:
        return parse_segments(read_file(path), path)
    found: list[Segment] = []
    _in_ipc_namespace(namespace, lambda: found.extend(parse_segments(read_file(path), path)))
    return found


def open_segment(shmid: int, namespace: str = "") -> int:
    """
    Return an O_PATH descriptor of a segment that nobody need have attached.

    It is attached read-only, found in map_files, and detached: no page is touched, but
    the kernel notes the time and our PID (atime, dtime, lpid).

    :raises OSError: as shmat(2) gives it.
    """
    found: list[int] = []
    if namespace:
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


def _in_ipc_namespace(namespace: str, work: Callable[[], object]) -> None:
    """Run in a thread of its own, which alone enters the namespace and then ends."""
    failure: list[OSError | ParseError] = []

    def run() -> None:
        try:
            fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(fd, _CLONE_NEWIPC) != 0:
                    raise_last_errno(namespace)
            finally:
                os.close(fd)
            work()
        except (OSError, ParseError) as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="memlens-ipc")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


_CLONE_NEWIPC = 0x08000000


def _tmpfs_file(
    status: os.stat_result, reach: bytes, path: bytes, device: int
) -> TmpfsFile | None:
    is_link = stat.S_ISLNK(status.st_mode) and status.st_blocks > 0
    if status.st_dev != device or not (is_link or stat.S_ISREG(status.st_mode)):
        return None
    return TmpfsFile(
        path=decode_bytes(path),
        reach=reach,
        device=device,
        inode=status.st_ino,
        size_bytes=status.st_size,
        blocks=status.st_blocks,
        uid=status.st_uid,
        changed_s=status.st_ctime,
        is_link=is_link,
    )


def _is_below(path: str, point: str) -> bool:
    return path != point and (path + "/").startswith(point.rstrip("/") + "/")
