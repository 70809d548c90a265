"""
A mix of memory partly on swap, in every hand that there is; built and counted without memlens.

Shared memory that two processes map, that is only open, that nobody holds, that lies in
other mount and IPC namespaces, and private pages that a parent shares with its children.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import (
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_SHARED,
    MNT_DETACH,
    PAGE,
    PROT_READ,
    Target,
)
from tests.kernel.support.machine import StateMoved, undone_at_exit, wait_until
from tests.kernel.support.namespaces import CLONE_NEWIPC
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import (
    Builder,
    Made,
    Mix,
    count_evicted,
    count_resident,
    fill,
    fresh,
    segment_columns,
)

IPC_RMID, IPC_CREAT = 0, 0o1000


def build(stack: ExitStack, squeeze: Squeeze, swap: str, directory: Path) -> Mix:
    """Build everything; it goes with the stack."""
    mix = Mix(directory)
    builder = Builder(stack, squeeze, swap, mix)
    for make in (
        _private_family,
        *(_memfd_of_two, _anonymous_of_two, _memfd_only_open, _memfd_copied_privately),
        *(_file_of_nobody, _file_with_two_names, _deleted_file_mapped),
        *(_file_of_other_mounts, _file_below_a_bind_mount),
        *(segment_of_nobody, _segment_removed, _segments_of_other_namespaces),
    ):
        make(builder)
    return mix


@contextmanager
def mixed(squeeze: Squeeze, swap: str, directory: Path) -> Iterator[Mix]:
    """Build the mix, and take it away at the end."""
    with ExitStack() as stack:
        yield build(stack, squeeze, swap, directory)


def _private_family(builder: Builder) -> None:
    """Swapped private pages of a parent and two children, one of which read some back."""
    parent = builder.target()
    start = parent.mmap(499)
    with builder.squeeze.cgroup() as cgroup:
        with cgroup.charging(parent.pid):
            fill(parent, start, range(307))
        page_out(parent, start, range(307))

        def is_out() -> bool:
            cgroup.reclaim()
            words = oracle.read_pagemap(parent.pid, start, 307).tolist()
            return all(word & oracle.SWAP for word in words)

        wait_until(is_out, "private pages on swap")
    fill(parent, start, range(307, 401))
    # On a swap file these keep their slots.
    parent.peek(start, range(41))
    children = [parent.fork(), parent.fork()]
    children[0].peek(start, range(100, 153))
    builder.mix.family = [parent.pid, *(child.pid for child in children)]


def make_memfd(driven: Target, name: str, pages: int) -> tuple[int, int]:
    fd: int = driven.os("memfd_create", name, 1)
    driven.os("ftruncate", fd, pages * PAGE)
    return fd, driven.mmap(pages, flags=MAP_SHARED, fd=fd)


def _memfd_of_two(builder: Builder) -> None:
    """One maps all of it and has it open; the other maps its upper part, read-only."""
    first, second = builder.target(), builder.target()
    fd, start = make_memfd(first, "of two", 211)
    builder.out(first, start, 127)
    fill(first, start, range(127, 151))
    if builder.swap == "file":
        first.madvise(start, range(7, 18), MADV_WILLNEED)
    other = second.os("open", f"/proc/{first.pid}/fd/{fd}", os.O_RDONLY)
    upper = second.mmap(111, protection=PROT_READ, flags=MAP_SHARED, fd=other, offset_pages=100)
    second.peek(upper, range(27, 30))
    second.os("close", other)
    holders = {first.pid: (211, True), second.pid: (111, False)}
    builder.add(
        *(first, start, "memfd of two", "memfd"),
        out=127,
        resident=24,
        name="memfd:of two",
        holders=holders,
    )


def _anonymous_of_two(builder: Builder) -> None:
    parent = builder.target()
    start = parent.mmap(101, flags=MAP_SHARED | MAP_ANONYMOUS)
    builder.out(parent, start, 53)
    child = parent.fork()
    fill(child, start, range(53, 61))
    builder.mix.family += [child.pid]
    holders = {parent.pid: (101, False), child.pid: (101, False)}
    builder.add(
        *(parent, start, "shared anonymous memory", "anonymous"),
        out=53,
        resident=8,
        holders=holders,
    )


def _memfd_only_open(builder: Builder) -> None:
    driven = builder.target()
    fd, start = make_memfd(driven, "only open", 83)
    builder.out(driven, start, 71)
    fill(driven, start, range(71, 73))
    made = builder.add(
        *(driven, start, "memfd only open", "memfd"),
        out=71,
        resident=2,
        name="memfd:only open",
    )
    driven.libc("munmap", start, 83 * PAGE)
    made.holders = {driven.pid: (0, True)}
    made.marks = set()
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/fd/{fd}")


def _memfd_copied_privately(builder: Builder) -> None:
    """A sealed memfd mapped privately: the copy of a page on swap is another page."""
    driven = builder.target()
    fd: int = driven.os("memfd_create", "copied", 3)
    driven.os("ftruncate", fd, 43 * PAGE)
    start = driven.mmap(43, flags=MAP_SHARED, fd=fd)
    builder.out(driven, start, 37)
    driven.libc("munmap", start, 43 * PAGE)
    # F_ADD_SEALS: F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
    driven.libc("fcntl", fd, 1033, 2 | 4 | 8)
    start = driven.mmap(43, flags=2, fd=fd)
    fill(driven, start, range(40, 43))
    builder.add(
        *(driven, start, "memfd mapped privately", "memfd"),
        out=37,
        resident=0,
        name="memfd:copied",
        marks={"sealed"},
        holders={driven.pid: (43, True)},
    )
    # Writing to the holes of the memfd made real pages of them first.
    builder.mix.objects[-1].resident = count_resident(f"/proc/{driven.pid}/fd/{fd}")


def make_file(builder: Builder, driven: Target, path: Path, pages: int, out: int) -> Made:
    """Make a file of a tmpfs with pages on swap; mapped by the target and not open."""
    fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    driven.os("ftruncate", fd, pages * PAGE)
    start = driven.mmap(pages, flags=MAP_SHARED, fd=fd)
    driven.os("close", fd)
    builder.out(driven, start, out)
    return builder.add(
        *(driven, start, path.name, "tmpfs"),
        out=out,
        name=str(path),
        holders={driven.pid: (pages, False)},
    )


def place_of(pid: int, made: Made) -> tuple[int, int]:
    """Return address and length of the object's only mapping."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if fields[3:5] == [made.device, str(made.inode)]:
            start, stop = (int(part, 16) for part in fields[0].split("-"))
            return start, stop - start
    raise StateMoved(f"{made.label} is not mapped by {pid}")


def unmap(driven: Target, made: Made, *, is_elsewhere: bool = False) -> None:
    """Unmap the file: nobody holds it any more."""
    driven.libc("munmap", *place_of(driven.pid, made))
    made.holders = {}
    made.marks = {"no_holder"} | ({"other_mount_namespace"} if is_elsewhere else set())
    path = f"/proc/{driven.pid}/root{made.name}"
    made.count_out = lambda: count_evicted(path)


def _file_of_nobody(builder: Builder) -> None:
    driven = builder.target()
    made = make_file(builder, driven, builder.tmpfs() / "of nobody", 61, 59)
    unmap(driven, made)


def _file_with_two_names(builder: Builder) -> None:
    driven = builder.target()
    path = builder.tmpfs() / "two names"
    made = make_file(builder, driven, path, 31, 29)
    os.link(path, path.with_name("two names, again"))
    unmap(driven, made)
    made.name = ""


def _deleted_file_mapped(builder: Builder) -> None:
    driven = builder.target()
    path = builder.tmpfs() / "deleted"
    made = make_file(builder, driven, path, 47, 41)
    path.unlink()
    made.marks = {"deleted"}


def _file_of_other_mounts(builder: Builder) -> None:
    """A file nobody holds, in a namespace whose first process sees no mount of it."""
    first = builder.target()
    first.isolate_mounts()
    where = builder.mix.directory / fresh("elsewhere")
    jail = builder.mix.directory / fresh("jail")
    jail.mkdir()
    first.mount("tmpfs", where)
    made = make_file(builder, first, where / "in another namespace", 67, 17)
    second = first.fork()
    builder.mix.family += [second.pid]
    unmap(first, made, is_elsewhere=True)
    second.libc("munmap", *place_of(second.pid, made))
    first.os("chroot", str(jail))
    path = f"/proc/{second.pid}/root{made.name}"
    made.count_out = lambda: count_evicted(path)


def _file_below_a_bind_mount(builder: Builder) -> None:
    """A tmpfs that is gone from its place: only a directory of it is mounted."""
    driven = builder.target()
    whole = builder.mix.directory / fresh("whole")
    part = builder.mix.directory / fresh("part")
    part.mkdir()
    driven.isolate_mounts()
    driven.mount("tmpfs", whole)
    driven.os("mkdir", str(whole / "below"))
    driven.libc("mount", bytes(whole / "below") + b"\0", bytes(part) + b"\0", None, 4096, None)
    made = make_file(builder, driven, part / "below a bind mount", 19, 13)
    driven.libc("umount2", bytes(whole) + b"\0", MNT_DETACH)
    unmap(driven, made, is_elsewhere=True)


def make_segment(
    builder: Builder, driven: Target, pages: int, out: int
) -> tuple[int, int, Made]:
    shmid = driven.libc("shmget", 0, pages * PAGE, IPC_CREAT | 0o600)

    def remove() -> None:
        try:
            driven.libc("shmctl", shmid, IPC_RMID, None)
        except OSError:
            pass

    # While the target lives: the stack ends it later.
    builder.stack.callback(remove)
    start = driven.libc("shmat", shmid, None, 0)
    builder.out(driven, start, out)
    made = builder.add(driven, start, f"segment of {pages} pages", "sysv", out=out)
    made.name = f"sysv:{shmid}"
    made.holders = {driven.pid: (pages, False)}
    made.count_out = lambda: segment_columns(driven, shmid)[2]
    return shmid, start, made


def segment_of_nobody(builder: Builder) -> None:
    driven = builder.target()
    _, start, made = make_segment(builder, driven, 37, 31)
    fill(driven, start, range(31, 34))
    made.resident = 3
    driven.libc("shmdt", start)
    made.holders, made.marks = {}, {"no_holder", "detached"}


def _segment_removed(builder: Builder) -> None:
    driven = builder.target()
    shmid, _, made = make_segment(builder, driven, 29, 23)
    driven.libc("shmctl", shmid, IPC_RMID, None)
    made.marks = {"deleted"}


def _segments_of_other_namespaces(builder: Builder) -> None:
    """The first segment of each namespace has the same number."""
    for pages, out in ((89, 79), (97, 73)):
        driven = builder.target()
        driven.libc("unshare", CLONE_NEWIPC)
        _, start, made = make_segment(builder, driven, pages, out)
        driven.libc("shmdt", start)
        made.holders = {}
        made.marks = {"no_holder", "detached", "other_ipc_namespace"}


# What nothing that the kernel lists leads to


def memfd_in_a_message(builder: Builder) -> Made:
    """A memfd that only a message holds, which nobody has read."""
    driven = builder.target()
    fd, start = make_memfd(driven, "in a message", 47)
    builder.out(driven, start, 43)
    made = builder.add(driven, start, "memfd in a message", "memfd", out=43)
    code = """
import socket
pair = socket.socketpair()
socket.send_fds(pair[0], [b"f"], [fd])
os.close(fd)
result = [end.detach() for end in pair]
"""
    driven.run(code, fd=fd)
    driven.libc("munmap", start, 47 * PAGE)
    return made


def deleted_file_of_a_loop_device(builder: Builder) -> Made:
    """A deleted file of a tmpfs that only a loop device holds."""
    driven = builder.target()
    path = builder.tmpfs() / "backing"
    made = make_file(builder, driven, path, 64, 59)
    device = subprocess.run(
        ["losetup", "--find", "--show", path], check=True, capture_output=True, text=True
    ).stdout.strip()
    detach = ["losetup", "--detach", device]
    builder.stack.enter_context(undone_at_exit(lambda: subprocess.run(detach, check=True)))
    driven.libc("munmap", *place_of(driven.pid, made))
    path.unlink()
    return made


def file_of_a_detached_mount(builder: Builder) -> Made:
    """A file of a mount that is in no namespace; a process has its root open."""
    driven = builder.target()
    driven.isolate_mounts()
    where = builder.mix.directory / fresh("detached")
    driven.mount("tmpfs", where)
    made = make_file(builder, driven, where / "on a detached mount", 41, 37)
    driven.libc("munmap", *place_of(driven.pid, made))
    driven.os("open", str(where), os.O_PATH | os.O_DIRECTORY)
    driven.libc("umount2", bytes(where) + b"\0", MNT_DETACH)
    return made


UNREACHABLE = (memfd_in_a_message, deleted_file_of_a_loop_device, file_of_a_detached_mount)
