"""
Shared memory in hands that are easily overlooked, partly on swap; built without memlens.

Each function builds one object; what it is and who holds it is in the mix.
"""

import os
import platform
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    HUGE,
    MADV_PAGEOUT,
    MAP_PRIVATE,
    MAP_SHARED,
    MNT_DETACH,
    PAGE,
    Target,
)
from tests.kernel.support.machine import wait_until
from tests.kernel.support.namespaces import (
    CLONE_FILES,
    CLONE_NEWIPC,
    MS_BIND,
    NR_EXIT,
    mount_tmpfs,
    start_thread,
)
from tests.kernel.support.target import send
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import (
    Builder,
    Made,
    count_evicted,
    count_resident,
    fill,
    fresh,
)
from tests.kernel.workloads.shm_mix import (
    IPC_RMID,
    make_file,
    make_memfd,
    make_segment,
    place_of,
    unmap,
)

IORING_REGISTER_FILES = 2
# One number on all architectures but alpha.
NR_IO_URING_SETUP, NR_IO_URING_REGISTER = 425, 427
NR_PIVOT_ROOT = {"x86_64": 155}.get(platform.machine(), 41)


def open_in_a_thread(builder: Builder) -> Made:
    """A memfd that only one thread has open, in a table of descriptors of its own."""
    driven = builder.target()
    fd, start = make_memfd(driven, "of a thread", 33)
    builder.out(driven, start, 31)
    made = builder.add(driven, start, "open in a thread", "memfd", out=31)
    made.holders = {driven.pid: (0, True)}
    tid = start_thread(driven, CLONE_FILES)
    driven.os("close", fd)
    driven.libc("munmap", start, 33 * PAGE)
    made.count_out = lambda: count_evicted(f"/proc/{tid}/fd/{fd}")
    return made


def open_below_a_zombie(builder: Builder) -> Made:
    """A memfd that a process has open whose first thread has ended."""
    driven = builder.target()
    fd, start = make_memfd(driven, "of a zombie", 17)
    builder.out(driven, start, 13)
    made = builder.add(driven, start, "open below a zombie", "memfd", out=13)
    made.holders = {driven.pid: (0, True)}
    driven.libc("munmap", start, 17 * PAGE)
    tid = start_thread(driven, 0)
    # Nobody answers this: exit(2) ends one thread.
    send(driven.channel, ("run", ("libc.syscall(number, 0)",), {"values": {"number": NR_EXIT}}))
    stat = Path(f"/proc/{driven.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    made.count_out = lambda: count_evicted(f"/proc/{tid}/fd/{fd}")
    return made


def only_a_path(builder: Builder) -> Made:
    """A memfd of which only an O_PATH descriptor is left."""
    driven = builder.target()
    fd, start = make_memfd(driven, "only a path", 9)
    builder.out(driven, start, 8)
    made = builder.add(driven, start, "only a path", "memfd", out=8)
    made.holders = {driven.pid: (0, True)}
    other = driven.os("open", f"/proc/self/fd/{fd}", os.O_PATH)
    driven.libc("munmap", start, 9 * PAGE)
    driven.os("close", fd)
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/fd/{other}")
    return made


def received(builder: Builder) -> Made:
    """A memfd that was made by a process which has let it go."""
    maker, holder = builder.target(), builder.target()
    fd, start = make_memfd(maker, "received", 17)
    builder.out(maker, start, 15)
    made = builder.add(maker, start, "received", "memfd", out=15)
    made.holders = {holder.pid: (0, True)}
    other = holder.os("open", f"/proc/{maker.pid}/fd/{fd}", os.O_RDWR)
    maker.libc("munmap", start, 17 * PAGE)
    maker.os("close", fd)
    made.count_out = lambda: count_evicted(f"/proc/{holder.pid}/fd/{other}")
    return made


def mapped_twice(builder: Builder) -> Made:
    """One process maps two parts that overlap: what both cover counts once."""
    driven = builder.target()
    fd, start = make_memfd(driven, "mapped twice", 100)
    builder.out(driven, start, 60)
    driven.mmap(40, flags=MAP_SHARED, fd=fd, offset_pages=30)
    made = builder.add(driven, start, "mapped twice", "memfd", out=60)
    made.holders = {driven.pid: (70, True)}
    driven.libc("munmap", start + 40 * PAGE, 60 * PAGE)
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/fd/{fd}")
    return made


def copied_and_swapped(builder: Builder) -> Made:
    """A file mapped shared and privately at once, with private copies on swap as well."""
    driven = builder.target()
    path = builder.tmpfs() / "copied and swapped"
    made = make_file(builder, driven, path, 50, 45)
    fd = driven.os("open", str(path), os.O_RDWR)
    start = driven.mmap(50, flags=MAP_PRIVATE, fd=fd)
    driven.os("close", fd)
    # A write to a hole makes a page of the file first, and then a copy of it.
    copies = range(45, 50)
    with builder.squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            fill(driven, start, copies)
        page_out(driven, start, copies)

        def is_out() -> bool:
            cgroup.reclaim()
            words = oracle.read_pagemap(driven.pid, start + 45 * PAGE, 5).tolist()
            return all(word & oracle.SWAP for word in words) and not count_resident(str(path))

        wait_until(is_out, "private copies on swap")
    made.out = made.count_out()
    return made


def huge_in_part(builder: Builder) -> Made:
    """A file of huge pages of which one is on swap."""
    driven = builder.target()
    where = builder.mix.directory / fresh("huge")
    where.mkdir()
    mount_tmpfs(builder.stack, where, "huge=always")
    fd = driven.os("open", str(where / "huge"), os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, 1024 * PAGE)
    start = driven.mmap(1024, flags=MAP_SHARED, fd=fd, align=HUGE)
    fill(driven, start, range(1024))
    made = builder.add(driven, start, "huge in part", "tmpfs", out=512, resident=512)
    made.holders, made.marks = {driven.pid: (1024, True)}, {"huge"}
    driven.madvise(start, range(512), MADV_PAGEOUT)
    wait_until(lambda: made.count_out() == 512, "a huge page on swap")
    return made


def attached_elsewhere(builder: Builder) -> Made:
    """The first segment of another IPC namespace: its inode number is 0."""
    driven = builder.target()
    driven.libc("unshare", CLONE_NEWIPC)
    _, _, made = make_segment(builder, driven, 27, 21)
    made.marks = {"other_ipc_namespace"}
    return made


def attached_before_leaving(builder: Builder) -> Made:
    """A segment of our namespace, in the hands of a process that has entered another."""
    driven = builder.target()
    shmid, _, made = make_segment(builder, driven, 23, 19)
    first, length = place_of(driven.pid, made)
    path = f"/proc/{driven.pid}/map_files/{first:x}-{first + length:x}"
    made.count_out = lambda: count_evicted(path)
    driven.libc("unshare", CLONE_NEWIPC)
    builder.stack.callback(oracle.libc.shmctl, shmid, IPC_RMID, None)
    return made


def file_over_a_file(builder: Builder) -> Made:
    """A file that is mounted alone, over another file, of a tmpfs that is nowhere else."""
    driven = builder.target()
    driven.isolate_mounts()
    whole = builder.mix.directory / fresh("whole")
    point = builder.mix.directory / fresh("point")
    point.write_bytes(b"")
    driven.mount("tmpfs", whole)
    made = make_file(builder, driven, whole / "alone", 13, 11)
    ends = bytes(whole / "alone") + b"\0", bytes(point) + b"\0"
    driven.libc("mount", *ends, None, MS_BIND, None)
    driven.libc("umount2", bytes(whole) + b"\0", MNT_DETACH)
    unmap(driven, made, is_elsewhere=True)
    made.name = str(point)
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/root{point}")
    return made


def of_a_user_namespace(builder: Builder) -> Made:
    """A file of nobody, on a tmpfs that a user mounted in a namespace of its own."""
    driven = builder.target()
    driven.libc("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{driven.pid}/{name}").write_text("0 0 1")
    where = builder.mix.directory / fresh("user")
    driven.mount("tmpfs", where)
    made = make_file(builder, driven, where / "of a user", 19, 18)
    unmap(driven, made, is_elsewhere=True)
    return made


def named_as_others_are(builder: Builder) -> Made:
    """A file at the root of a mount namespace that is called as segments are."""
    driven = builder.target()
    driven.isolate_mounts()
    root = builder.mix.directory / fresh("root")
    driven.mount("tmpfs", root)
    driven.os("mkdir", str(root / "old"))
    driven.os("chdir", str(root))
    driven.libc("syscall", NR_PIVOT_ROOT, b".\0", b"old\0")
    driven.os("chdir", "/")
    fd = driven.os("open", "/SYSV00000000", os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, 7 * PAGE)
    start = driven.mmap(7, flags=MAP_SHARED, fd=fd)
    builder.out(driven, start, 5)
    made = builder.add(driven, start, "named as others are", "tmpfs", out=5)
    made.name, made.marks = "/SYSV00000000", {"other_mount_namespace"}
    made.holders = {driven.pid: (7, True)}
    return made


def below_an_overlay(builder: Builder) -> Made:
    """A file of the upper layer of an overlay, held by way of that: unseen, and said so."""
    driven = builder.target()
    driven.isolate_mounts()
    upper, lower, merged = (builder.mix.directory / fresh(n) for n in ("up", "low", "merged"))
    lower.mkdir()
    merged.mkdir()
    driven.mount("tmpfs", upper)
    for name in ("files", "work"):
        driven.os("mkdir", str(upper / name))
    options = f"lowerdir={lower},upperdir={upper}/files,workdir={upper}/work"
    driven.mount("overlay", merged, options)
    fd = driven.os("open", str(merged / "file"), os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, 29 * PAGE)
    start = driven.mmap(29, flags=MAP_SHARED, fd=fd)
    path = f"/proc/{driven.pid}/root{upper}/files/file"
    with builder.squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            fill(driven, start, range(23))

        def is_out() -> bool:
            cgroup.reclaim()
            return count_evicted(path) == 23 and not count_resident(path)

        wait_until(is_out, "a file of an upper layer on swap")
    status = os.stat(path)
    made = Made(
        label="below an overlay",
        kind="tmpfs",
        device=f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}",
        inode=status.st_ino,
        size_bytes=status.st_size,
        out=23,
        marks={"other_mount_namespace"},
        count_out=lambda: count_evicted(path),
    )
    builder.mix.objects.append(made)
    return made


OVERLOOKED = (
    *(open_in_a_thread, open_below_a_zombie, only_a_path, received, mapped_twice),
    *(copied_and_swapped, huge_in_part, attached_elsewhere, attached_before_leaving),
    *(file_over_a_file, of_a_user_namespace, named_as_others_are, below_an_overlay),
)


# What nothing that the kernel lists leads to


def registered_with_io_uring(builder: Builder) -> Made:
    """A memfd that only a ring holds, as a file registered with it."""
    driven = builder.target()
    fd, start = make_memfd(driven, "registered", 25)
    builder.out(driven, start, 22)
    made = builder.add(driven, start, "registered with io_uring", "memfd", out=22)
    ring = driven.libc("syscall", NR_IO_URING_SETUP, 4, bytes(120))
    files = fd.to_bytes(4, "little")
    driven.libc("syscall", NR_IO_URING_REGISTER, ring, IORING_REGISTER_FILES, files, 1)
    driven.os("close", fd)
    driven.libc("munmap", start, 25 * PAGE)
    return made


def file_of_a_namespace_without_processes(builder: Builder) -> Made:
    """A file in a mount namespace that is only open."""
    driven, keeper = builder.target(), builder.target()
    driven.isolate_mounts()
    where = builder.mix.directory / fresh("without processes")
    driven.mount("tmpfs", where)
    made = make_file(builder, driven, where / "file", 24, 16)
    unmap(driven, made)
    _end(driven, keeper, "mnt")
    return made


def segment_of_a_namespace_without_processes(builder: Builder) -> Made:
    """A segment in an IPC namespace that is only open."""
    driven, keeper = builder.target(), builder.target()
    driven.libc("unshare", CLONE_NEWIPC)
    _, start, made = make_segment(builder, driven, 35, 34)
    driven.libc("shmdt", start)
    _end(driven, keeper, "ipc")
    return made


def _end(driven: Target, keeper: Target, name: str) -> None:
    """End a target, and have another keep its namespace."""
    keeper.os("open", f"/proc/{driven.pid}/ns/{name}", os.O_RDONLY)
    driven.end()
    os.waitid(os.P_PID, driven.pid, os.WEXITED | os.WNOWAIT)


UNREACHABLE = (
    registered_with_io_uring,
    file_of_a_namespace_without_processes,
    segment_of_a_namespace_without_processes,
)
