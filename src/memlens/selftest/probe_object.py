"""
Probes of what an open object says: SEEK_DATA, mincore, cachestat, the page-cache walk.

lseek(2), mincore(2), Documentation/admin-guide/mm/pagemap.rst.  Each returns what its
round trip showed, or raises why there is nothing to show.
"""

import errno
import os
import stat
import sys

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.cachewalk import walker
from memlens.kernel.procfs import raise_errno
from memlens.objects.backing import Backing
from memlens.objects.references import read_message_descriptors
from memlens.selftest.probe_ground import Ground, expect

_OTHER_UID = 65534

# Files that every system has, and that few may write.
_COMMON_FILES = ("/proc/self/exe", sys.executable, "/bin/sh", "/etc/passwd", "/etc/hosts")


def ask_seek_data(ground: Ground) -> str:
    """Of three pages, the one that was written is data."""
    backing = _memfd_with_page_1(ground)
    try:
        extents = backing.data_extents(0, 3).tolist()
    finally:
        backing.close()
    expect(extents == [[1, 2]], f"data is said to be at {extents}, not at page 1 of 3")
    return "on a memfd, data is the one page of three that was written"


def ask_mincore(ground: Ground) -> str:
    """Of three pages, the one that was written is in RAM."""
    backing = _memfd_with_page_1(ground)
    try:
        found = backing.mincore(0, 3).tolist()
    finally:
        backing.close()
    expect(found == [False, True, False], f"says {found} where one page of three is in RAM")
    return "on a memfd, in RAM is the one page of three that was written"


def ask_cachestat(ground: Ground) -> str:
    """Of three pages, one is in the page cache, and it is the middle one (v6.5)."""
    backing = _memfd_with_page_1(ground)
    try:
        found = [backing.cachestat(page, 1) for page in range(3)]
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise AccessDenied("cachestat is refused even on our own memory") from error
        raise Unsupported(f"cachestat: {os.strerror(error.errno or 0)}") from error
    finally:
        backing.close()
    expect(found == [(0, 0), (1, 0), (0, 0)], f"says {found} where one page of three is cached")
    return "on a memfd, cached is the one page of three that was written"


def ask_scm_fds(ground: Ground) -> str:
    """Send a descriptor to ourselves, and see it counted until it is received."""
    import socket

    one, other = socket.socketpair()
    with one, other:
        path = f"{ground.own}/fdinfo/{other.fileno()}"
        counts = [_count_descriptors(path)]
        socket.send_fds(one, [b"x"], [one.fileno()])
        counts.append(_count_descriptors(path))
    expect(counts == [0, 1], f"{counts} descriptors in a message before and after one was sent")
    return "counts a descriptor that was sent"


def _count_descriptors(path: str) -> int:
    try:
        count = read_message_descriptors(path)
    except OSError as error:
        raise_errno(error, "cannot look at a socket", path)
    if count is None:
        raise Unsupported("fdinfo of sockets has no scm_fds", path=path)
    return count


def ask_unwritable_files(ground: Ground) -> str:
    """
    Past the end of a file nothing is in RAM; to who may not write it, everything is.

    The kernel hides what is cached of a file from those who may neither write nor own it:
    mincore answers 1 for every page (commit 134fca9063ad), and cachestat fails.
    """
    found = _open_of_another(ground)
    if found is None:
        return _trust_capabilities(ground)
    backing, what = found
    try:
        # Behind the end, and behind what a file system may have read ahead.
        page = backing.size_pages() + 1
        is_hidden = bool(backing.mincore(page, 1)[0])
    finally:
        backing.close()
    if is_hidden:
        raise AccessDenied(f"mincore calls every page of {what} resident, even past its end")
    return f"mincore is honest past the end of {what}"


def ask_cachewalk(ground: Ground) -> str:
    """The walk finds the one page that was written."""
    backing = _memfd_with_page_1(ground)
    try:
        found = walker().walk_fd(backing.fd).index.tolist()
    except OSError as error:
        raise Unsupported(f"the walk failed: {os.strerror(error.errno or 0)}") from error
    finally:
        backing.close()
    expect(found == [1], f"the walk found {found} where page 1 of three is cached")
    return "on a memfd, the walk finds the one page of three that was written"


def _memfd_with_page_1(ground: Ground) -> Backing:
    backing = ground.memfd(3)
    os.pwrite(backing.fd, b"x", ground.machine.page_size_bytes)
    return backing


def _trust_capabilities(ground: Ground) -> str:
    if "CAP_FOWNER" in ground.capabilities and ground.reader.is_init_user_namespace:
        return "CAP_FOWNER is effective; not tried, for lack of a file of another owner"
    raise MemlensError("no file of another owner was found to try with")


def _open_of_another(ground: Ground) -> tuple[Backing, str] | None:
    """Open a file that this user neither owns nor, without privilege, may write."""
    backing = ground.memfd(1)
    try:
        os.fchmod(backing.fd, 0)
        os.fchown(backing.fd, _OTHER_UID if ground.reader.uid != _OTHER_UID else 0, -1)
    except OSError:
        backing.close()
    else:
        return backing, "a memfd given to another user"
    for path in _COMMON_FILES:
        fd = _open_unwritable(path)
        if fd >= 0:
            name = os.path.realpath(path)
            return Backing(fd, "file", ground.machine, False, name), name
    return None


def _open_unwritable(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    status = os.fstat(fd)
    is_fit = stat.S_ISREG(status.st_mode) and status.st_uid != os.geteuid()
    if is_fit and not os.access(path, os.W_OK, effective_ids=True):
        return fd
    os.close(fd)
    return -1
