"""Shared memory: one filesystem under many names."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Cgroup
from tests.kernel.support.driver import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MADV_DONTNEED,
    MADV_REMOVE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    Target,
    pages_where,
)
from tests.kernel.support.machine import wait_until
from tests.kernel.workloads.base import (
    BOTH,
    PRIME,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
    page_out,
    pattern,
)

ENTRIES, workload = entries()

STATES = {
    "written": P.PRESENT,
    "zapped": P.CACHED,
    "pwritten": P.CACHED,
    "read fault": P.PRESENT,
    "untouched": P.NONE,
    "punched": P.NONE,
    "removed": P.NONE,
    "fallocated": P.PREALLOCATED,
    "fallocated, written": P.PRESENT,
    "swapped": P.SWAPPED,
    "swap cached": P.SWAP_CACHED,
    "read back": P.PRESENT,
    "pread back": P.CACHED,
    "swapped, punched": P.NONE,
    "read fault, reclaimed": P.NONE,
    "fallocated, reclaimed": P.SWAPPED,
    "beyond": P.BEYOND_END,
}
HOME_STATES = (
    *("written", "zapped", "untouched", "pwritten", "fallocated", "read fault"),
    *("punched", "fallocated, written", "removed"),
)
SWAP_STATES = (
    *("written", "swapped", "zapped", "untouched", "swap cached", "fallocated", "swapped"),
    *("read back", "pwritten", "pread back", "swapped, punched", "read fault, reclaimed"),
    *("fallocated, reclaimed", "read fault", "swap cached"),
)


def make_shmem(
    tools: Tools,
    driven: Target,
    start: int,
    fd: int,
    states: Sequence[str],
    *,
    offset_pages: int = 0,
    is_writable: bool = True,
) -> list[PageClass]:
    """
    Bring each page of a shared mapping of a fresh object into its state.

    :param start: the mapping's address in the target.
    :param fd: the object, open for writing in the target.
    :param is_writable: False if the mapping is read-only: write by pwrite alone.
    :return: the class of each page.
    """

    def where(*wanted: str) -> list[int]:
        return pages_where(states, *wanted)

    def in_file(pages: Sequence[int]) -> list[int]:
        return [page + offset_pages for page in pages]

    def write(pages: Sequence[int]) -> None:
        if is_writable:
            driven.poke(start, pages)
        else:
            driven.pwrite(fd, in_file(pages))
            driven.peek(start, pages)

    out = where("swapped", "swap cached", "read back", "pread back", "swapped, punched")
    if tools.swap != "none":
        with tools.squeeze.cgroup() as cgroup:
            with cgroup.charging(driven.pid):
                write(out)
                driven.fallocate(fd, in_file(where("fallocated, reclaimed")))
                driven.peek(start, where("read fault, reclaimed"))
            page_out(driven, start, out + where("read fault, reclaimed"))
            push_out(cgroup, driven, fd, in_file(out + where("fallocated, reclaimed")))
    write(where("written", "zapped", "fallocated, written"))
    driven.pwrite(fd, in_file(where("pwritten", "punched", "removed")))
    driven.fallocate(fd, in_file(where("fallocated")))
    holes = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    driven.fallocate(fd, in_file(where("punched", "swapped, punched")), holes)
    if is_writable:
        driven.madvise(start, where("removed"), MADV_REMOVE)
    else:
        driven.fallocate(fd, in_file(where("removed")), holes)
    driven.madvise(start, where("swap cached"), MADV_WILLNEED)
    driven.peek(start, where("read back", "read fault"))
    for page in in_file(where("pread back")):
        driven.os("pread", fd, 1, page * PAGE)
    # A read fault maps its neighbours too (fault-around): unmap what must not be mapped.
    unmapped = [page for page, state in enumerate(states) if STATES[state] is not P.PRESENT]
    driven.madvise(start, unmapped, MADV_DONTNEED)
    return [STATES[state] for state in states]


def push_out(cgroup: Cgroup, driven: Target, fd: int, pages: Sequence[int]) -> None:
    """Reclaim these pages of the object until they are on swap and nowhere else."""
    descriptor = os.open(f"/proc/{driven.pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def is_swapped(page: int) -> bool:
        counts = oracle.read_cachestat(descriptor, page * PAGE, PAGE)
        return counts == (0, 1) and not oracle.read_mincore(descriptor, page * PAGE, 1)[0]

    def is_out() -> bool:
        cgroup.reclaim()
        return all(is_swapped(page) for page in pages)

    try:
        wait_until(is_out, "pages on swap only")
    finally:
        os.close(descriptor)


def memfd(driven: Target, pages: int, flags: int = 1, cut_bytes: int = 0) -> int:
    """Return a memfd of this many pages in the target."""
    fd: int = driven.os("memfd_create", "memlens-test", flags)
    driven.os("ftruncate", fd, pages * PAGE - cut_bytes)
    return fd


def own_map_file(driven: Target, start: int, pages: int) -> int:
    """Return the object of a shared anonymous mapping, open in the target."""
    name = f"/proc/self/map_files/{start:x}-{start + pages * PAGE:x}"
    fd: int = driven.os("open", name, os.O_RDWR)
    return fd


def mixed_states(tools: Tools, pages: int, step: int = 1) -> list[str]:
    return pattern(HOME_STATES if tools.swap == "none" else SWAP_STATES, pages, step)


def map_mixed(
    tools: Tools,
    driven: Target,
    fd: int,
    *,
    pages: int = 61,
    step: int = 1,
    offset_pages: int = 0,
    beyond: int = 0,
) -> Expected:
    """Map an object of ``offset_pages + pages`` pages and make every state in it."""
    states = mixed_states(tools, pages, step)
    start = driven.mmap(pages + beyond, flags=MAP_SHARED, fd=fd, offset_pages=offset_pages)
    classes = make_shmem(tools, driven, start, fd, states, offset_pages=offset_pages)
    classes += [P.BEYOND_END] * beyond
    states += ["beyond"] * beyond
    return Expected(driven.pid, start, classes, "shmem", offset_pages * PAGE, states)


@workload("none", *BOTH)
def shared_anonymous(tools: Tools) -> Workload:
    """MAP_SHARED | MAP_ANONYMOUS, and /dev/zero mapped shared: the same thing."""
    driven = tools.target()
    mappings = []
    zero = driven.os("open", "/dev/zero", os.O_RDWR)
    for flags, fd in ((MAP_SHARED | MAP_ANONYMOUS, -1), (MAP_SHARED, zero)):
        states = mixed_states(tools, 61)
        start = driven.mmap(61, flags=flags, fd=fd)
        object_fd = own_map_file(driven, start, 61)
        classes = make_shmem(tools, driven, start, object_fd, states)
        driven.os("close", object_fd)
        mappings.append(Expected(driven.pid, start, classes, "shmem", 0, states))
    return Workload(driven, mappings)


@workload("none", *BOTH)
def memfds(tools: Tools) -> Workload:
    """Memfds: with an offset, with a partial last page, mapped past the end."""
    driven = tools.target()
    plain = map_mixed(tools, driven, memfd(driven, 61))
    offset = map_mixed(tools, driven, memfd(driven, 7 + 61), offset_pages=7)
    partial = map_mixed(tools, driven, memfd(driven, 61, cut_bytes=1000), beyond=5)
    stretches = map_mixed(
        tools, driven, memfd(driven, 11 + 97), pages=97, step=7, offset_pages=11
    )
    return Workload(driven, [plain, offset, partial, stretches])


@workload("none", *BOTH)
def memfd_sealed(tools: Tools) -> Workload:
    """A memfd sealed against writing, growing and shrinking, mapped read-only."""
    driven = tools.target()
    states = mixed_states(tools, 61)
    fd = memfd(driven, 61, flags=3)
    readable = driven.os("open", f"/proc/self/fd/{fd}", os.O_RDONLY)
    start = driven.mmap(61, protection=PROT_READ, flags=MAP_SHARED, fd=readable)
    classes = make_shmem(tools, driven, start, fd, states, is_writable=False)
    driven.libc("fcntl", fd, 1033, 0x0F & ~1)  # F_ADD_SEALS: SHRINK, GROW, WRITE
    return Workload(driven, [Expected(driven.pid, start, classes, "shmem", 0, states)])


@workload("none", *BOTH)
def memfd_future_sealed(tools: Tools) -> Workload:
    """A memfd sealed against future writes; the mapping that was there may still write."""
    driven = tools.target()
    fd = memfd(driven, 61, flags=3)
    mapping = map_mixed(tools, driven, fd)
    driven.libc("fcntl", fd, 1033, 0x10)
    return Workload(driven, [mapping])


def _system_v(tools: Tools, driven: Target, pages: int) -> tuple[int, int]:
    """Return identifier and address of a new attached SysV segment."""
    identifier = driven.libc("shmget", 0, pages * PAGE, 0o600)
    libc = ctypes.CDLL(None)
    tools.stack.callback(libc.shmctl, identifier, 0, None)  # IPC_RMID; an error if gone
    where = driven.mmap(pages)
    driven.libc("munmap", where, pages * PAGE)
    return identifier, driven.libc("shmat", identifier, where, 0)


@workload("none", *BOTH)
def system_v(tools: Tools) -> Workload:
    """SysV segments: plain, removed while attached, and locked."""
    driven = tools.target()
    mappings = []
    for is_removed in (False, True):
        states = mixed_states(tools, 61)
        identifier, start = _system_v(tools, driven, 61)
        fd = own_map_file(driven, start, 61)
        classes = make_shmem(tools, driven, start, fd, states)
        driven.os("close", fd)
        if is_removed:
            driven.libc("shmctl", identifier, 0, None)
        mappings.append(Expected(driven.pid, start, classes, "shmem", 0, states))
    identifier, start = _system_v(tools, driven, PRIME)
    driven.poke(start, range(0, PRIME, 2))
    driven.libc("shmctl", identifier, 11, None)  # SHM_LOCK
    driven.madvise(start, range(0, PRIME, 4), MADV_DONTNEED)
    classes = [P.CACHED if page % 4 == 0 else P.PRESENT for page in range(PRIME)]
    classes = [P.NONE if page % 2 else kind for page, kind in enumerate(classes)]
    mappings.append(Expected(driven.pid, start, classes, "shmem"))
    return Workload(driven, mappings)


@workload("none", *BOTH)
def posix_shm(tools: Tools) -> Workload:
    """A file on /dev/shm, as shm_open makes it; and one that was deleted."""
    driven = tools.target()
    mappings = []
    for is_deleted in (False, True):
        path = Path(f"/dev/shm/memlens-test-{driven.pid}-{is_deleted}")
        tools.stack.callback(path.unlink, missing_ok=True)
        fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        driven.os("ftruncate", fd, 61 * PAGE)
        mappings.append(map_mixed(tools, driven, fd))
        if is_deleted:
            path.unlink()
        driven.os("close", fd)
    return Workload(driven, mappings)


def _tmpfs_file(driven: Target, directory: Path, pages: int, options: str = "") -> int:
    driven.mount("tmpfs", directory, options)
    fd: int = driven.os("open", str(directory / "file of a tmpfs"), os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", fd, pages * PAGE)
    return fd


@workload("none", *BOTH)
def tmpfs_of_another_mount(tools: Tools) -> Workload:
    """A tmpfs that only the target's mount namespace has; also after it was detached."""
    driven = tools.target()
    driven.isolate_mounts()
    mounted = _tmpfs_file(driven, tools.directory / "mounted", 3 + 61)
    detached = _tmpfs_file(driven, tools.directory / "detached", 61)
    mappings = [
        map_mixed(tools, driven, mounted, offset_pages=3),
        map_mixed(tools, driven, detached),
    ]
    driven.libc("umount2", bytes(tools.directory / "detached") + b"\0", 2)
    return Workload(driven, mappings)


@workload("none", *BOTH)
def other_namespaces(tools: Tools) -> Workload:
    """A process in user, mount and PID namespaces of its own, with a tmpfs there."""
    outer = tools.target()
    outer.libc("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID)
    Path(f"/proc/{outer.pid}/uid_map").write_text("0 65534 1")
    Path(f"/proc/{outer.pid}/setgroups").write_text("deny")
    Path(f"/proc/{outer.pid}/gid_map").write_text("0 65534 1")
    outer.os("setgid", 0)
    outer.os("setuid", 0)
    driven = outer.fork()
    driven.mount("tmpfs", Path("/mnt"))
    fd = driven.os("open", "/mnt/file", os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", fd, 61 * PAGE)
    in_tmpfs = map_mixed(tools, driven, fd)
    in_memfd = map_mixed(tools, driven, memfd(driven, 61))
    return Workload(driven, [in_tmpfs, in_memfd])
